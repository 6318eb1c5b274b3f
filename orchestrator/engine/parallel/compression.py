"""What workers send each other: how gradients are compressed under DDP, and how many bytes a step takes.

Imports: torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.distributed.algorithms.ddp_comm_hooks.powerSGD_hook import PowerSGDState, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel

from orchestrator.engine.seed import numpy_state, plain_numpy_state
from orchestrator.errors import CheckpointError
from orchestrator.spec.train import Parallel

EXACT_STEPS = 100
"""PowerSGD's first backward passes, which send whole gradients: early training suffers most from rough ones."""

_STATE = "powersgd_state"
_MEMORIES = ("error_dict", "p_memory_dict", "q_memory_dict")
_COUNTS = ("iter", "next_stats_report", "total_numel_before_compression", "total_numel_after_compression")

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
    rank with error feedback (Vogels et al. 2019, arXiv:1905.13727) after `exact_steps` backward passes. On the
    CPU its messages do not overlap with the computation. `compression_state` gives what it remembers.
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
        setattr(parallel, _STATE, state)
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


def compression_state(parallel: torch.nn.Module) -> dict[str, Any] | None:
    """What PowerSGD remembers on this rank, not copied: the error of each bucket of gradients, which is the
    rank's own, the low-rank factors, its random state and counts. None where gradients are sent otherwise."""
    state: PowerSGDState | None = getattr(parallel, _STATE, None)
    if state is None:
        return None
    memories = {name: dict(getattr(state, name)) for name in _MEMORIES}
    counts = {name: int(getattr(state, name)) for name in _COUNTS}
    return {**memories, **counts, "rng": plain_numpy_state(state.rng.get_state())}


def load_compression_state(parallel: torch.nn.Module, saved: Mapping[str, Any]) -> None:
    """Put back what `compression_state` gave on the same rank of as many.

    Raises CheckpointError where the buckets are others: an error belongs to the gradients it was left of.
    """
    state: PowerSGDState = getattr(parallel, _STATE)
    trained = [parameter for parameter in parallel.parameters() if parameter.requires_grad]
    errors = saved["error_dict"]
    remembered = sum(error.numel() for error in errors.values())
    expected = sum(parameter.numel() for parameter in trained)
    if errors and remembered != expected:
        raise CheckpointError(
            f"the saved errors of PowerSGD are of {remembered} gradients, and the model has {expected}",
            "were model.freeze or model.args changed? Start again with --fresh",
        )
    for name in _MEMORIES:
        memory = {bucket: tensor.to(trained[0].device) for bucket, tensor in saved[name].items()}
        setattr(state, name, memory)
    for name in _COUNTS:
        setattr(state, name, saved[name])
    state.rng.set_state(numpy_state(saved["rng"]))


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
