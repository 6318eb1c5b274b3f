"""What workers send each other: how gradients are compressed under DDP, and how many bytes a step takes.

Imports: torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from orchestrator.spec.train import Parallel

EXACT_STEPS = 100
"""PowerSGD's first backward passes, which send whole gradients: early training suffers most from rough ones."""

_Future = torch.futures.Future[torch.Tensor]
_Hook = Callable[[Any, Any], _Future]
"""Called with its state and a bucket of gradients (`torch.distributed.GradBucket`)."""


class TrafficMeter:
    """Counts the bytes that this worker hands to collectives on behalf of the model.

    Counted: under DDP the gradients as sent (all-reduce) and the buffers (broadcast); under FSDP this worker's
    shard of the weights at each all-gather and the whole gradients at each reduce-scatter. Not counted: what
    the loop says besides (losses, checkpoints). What a link carries also depends on the algorithm: a
    ring's all-reduce of b bytes over w workers sends 2b(w-1)/w from each, its reduce-scatter half of that.
    """

    def __init__(self) -> None:
        self._bytes = 0
        self.on_last_bucket: Callable[[], None] | None = None
        """Called when DDP has launched the last bucket of a backward pass: all gradients are computed, and the
        rest of `backward` waits for the other workers. It runs in the backward pass, so it should be quick."""

    def add(self, count: int) -> None:
        self._bytes += count

    def take(self) -> int:
        """The bytes since this was last called."""
        count, self._bytes = self._bytes, 0
        return count


def compress_gradients(
    parallel: DistributedDataParallel,
    section: Parallel,
    meter: TrafficMeter,
    *,
    exact_steps: int = EXACT_STEPS,
) -> None:
    """Let DDP send gradients as the spec says, and count them.

    fp16 and bf16: divided by the number of workers, cast, summed. powersgd: approximated by matrices of low
    rank with error feedback (Vogels et al. 2019, arXiv:1905.13727) after `exact_steps` backward passes. Its
    memory of errors is not part of a checkpoint: a resumed run begins with exact steps again. On the CPU its
    messages do not overlap with the computation.
    """
    if section.gradient_compression == "powersgd":
        state = PowerSGDState(
            None,
            matrix_approximation_rank=section.powersgd_rank,
            start_powerSGD_iter=exact_steps,
            # A gradient that is all zeros would be divided by its norm.
            orthogonalization_epsilon=1e-8,
        )
        parallel.register_comm_hook(state, _powersgd_hook(meter))
    else:
        hooks: dict[str, tuple[_Hook, int]] = {
            "none": (_mean_hook, 0),
            "fp16": (default_hooks.fp16_compress_hook, 2),
            "bf16": (default_hooks.bf16_compress_hook, 2),
        }
        hook, element_size = hooks[section.gradient_compression]
        parallel.register_comm_hook(None, _counted_hook(hook, element_size, meter))
    buffer_bytes = sum(buffer.nbytes for buffer in parallel.module.buffers())

    def count_buffers(module: torch.nn.Module, _inputs: object) -> None:
        assert isinstance(module, DistributedDataParallel)
        if module.will_sync_module_buffers():
            meter.add(buffer_bytes)

    if buffer_bytes:
        parallel.register_forward_pre_hook(count_buffers)


def _mean_hook(group: dist.ProcessGroup | None, bucket: Any) -> _Future:
    """The mean over the workers, in the same operations as DDP without a hook, so in the same bits: torch's
    own `allreduce_hook` divides where DDP multiplies by the inverse."""
    gradients = bucket.buffer()
    gradients.mul_(1.0 / dist.get_world_size(group))
    future: _Future = dist.all_reduce(gradients, group=group, async_op=True).get_future()
    return future.then(_first_value)


def _first_value(done: torch.futures.Future[Any]) -> torch.Tensor:
    value: torch.Tensor = done.value()[0]
    return value


def _counted_hook(hook: _Hook, element_size: int, meter: TrafficMeter) -> _Hook:
    """The hook, its buckets counted with `element_size` bytes per value; 0 stands for their own size."""

    def counted(state: Any, bucket: Any) -> _Future:
        gradients = bucket.buffer()
        meter.add(gradients.numel() * (element_size or gradients.element_size()))
        future = hook(state, bucket)
        _tell_last(meter, bucket)
        return future

    counted.__annotations__.clear()  # DDP would take them for wrong, since here they are strings
    return counted


def _powersgd_hook(meter: TrafficMeter) -> _Hook:
    def counted(state: PowerSGDState, bucket: Any) -> _Future:
        gradients = bucket.buffer()
        exact = state.iter < state.start_powerSGD_iter
        sent_before = state.total_numel_after_compression
        future = powerSGD_hook(state, bucket)
        if bucket.buffer().device.type == "cpu":
            # Over gloo the later messages of several buckets could meet in different orders on the workers.
            future.wait()
        sent = gradients.numel() if exact else state.total_numel_after_compression - sent_before
        meter.add(sent * gradients.element_size())
        _tell_last(meter, bucket)
        return future

    counted.__annotations__.clear()  # DDP would take them for wrong, since here they are strings
    return counted


def _tell_last(meter: TrafficMeter, bucket: Any) -> None:
    if meter.on_last_bucket is not None and bucket.is_last():
        meter.on_last_bucket()
