"""FSDP: weights, gradients and optimizer state sharded over the workers. Imports: torch.

Only imported where a job wants it, since torch's FSDP takes a second to import.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

# Private, but torch has no public default that one could build on for `set_custom_all_gather`.
from torch.distributed.fsdp._fully_shard._fsdp_collectives import DefaultAllGather, DefaultReduceScatter
from torch.distributed.tensor import DTensor

from orchestrator.engine.device.precision import Precision
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.parallel.batch_norm import BATCH_NORMS, has_batch_norm, own_statistics
from orchestrator.engine.parallel.compression import TrafficMeter
from orchestrator.engine.parallel.recompute import parts_of
from orchestrator.errors import UsageError
from orchestrator.spec.train import Parallel


def shard(
    model: torch.nn.Module,
    section: Parallel,
    link: WorkerLink,
    precision: Precision,
    meter: TrafficMeter,
    mesh: DeviceMesh | None = None,
) -> torch.nn.Module:
    """Shard each part of the model, and then what is left, in place. Collective, unless there is a `mesh` (that of
    a model that was sharded before).

    Zhao et al. 2023 (arXiv:2304.11277). Weights are gathered, and computed with, in the precision's dtype;
    gradients are summed and weights kept in fp32. Autocast has its use beside this: where a model brings fp32
    tensors of its own, a matrix product would meet two dtypes.
    """
    if has_batch_norm(model) and not section.sync_batch_norm:
        raise UsageError(
            "train.parallel.strategy: under fsdp every worker would keep batch statistics of its own for the "
            "model's BatchNorm layers",
            "write train.parallel.sync_batch_norm: true, or strategy: ddp",
        )
    if link.device.type == "cuda":
        torch.cuda.set_device(link.device)
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP takes no other layout, such as channels-last
    mesh = mesh or init_device_mesh(link.device.type, (link.world_size,))
    policy = MixedPrecisionPolicy(param_dtype=precision.dtype, reduce_dtype=torch.float32)
    if precision.dtype is not None:
        # Batch statistics are fp32, and so must be the weights beside them.
        for module in model.modules():
            if isinstance(module, BATCH_NORMS) and module.affine:
                fully_shard(module, mesh=mesh, reshard_after_forward=False)
    for part in _separable_parts(model):
        fully_shard(part, mesh=mesh, mp_policy=policy)
    fully_shard(
        model,
        mesh=mesh,
        mp_policy=MixedPrecisionPolicy(
            param_dtype=precision.dtype, reduce_dtype=torch.float32, output_dtype=torch.float32
        ),
    )
    model.register_forward_hook(_reshard_root)
    _count_traffic(model, meter)
    return model


def mesh_of(model: torch.nn.Module) -> DeviceMesh:
    """The workers over which a model has just been sharded."""
    parameter = next(model.parameters())
    assert isinstance(parameter, DTensor)
    return parameter.device_mesh


@contextlib.contextmanager
def alone(model: torch.nn.Module, meter: TrafficMeter) -> Iterator[None]:
    """Passes of a sharded model in here talk to no other worker: this one can run out of memory without leaving
    them waiting.

    Each gathered weight is made of copies of this worker's shard, and each scattered gradient is its own. So the
    numbers mean nothing, but all sizes are those of a training step. After an error in here the model is of no
    further use: FSDP keeps note of where in a pass it is.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_custom_all_gather(_OwnAllGather())
        module.set_custom_reduce_scatter(_OwnReduceScatter())
    try:
        with own_statistics(model):
            yield
    finally:
        _count_traffic(model, meter)


def _separable_parts(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The parts that can be sharded on their own; what is left is sharded with the root.

    Left are tied weights, which must be sharded together, and recurrent layers: these return views, on which
    an operation in place would get FSDP's gradients wrong.
    """

    def uses(module: torch.nn.Module) -> Counter[torch.nn.Parameter]:
        return Counter(parameter for _, parameter in module.named_parameters(remove_duplicate=False))

    everywhere = uses(model)
    return [
        part
        for part in parts_of(model)
        if all(everywhere[parameter] == count for parameter, count in uses(part).items())
        and not isinstance(part, torch.nn.RNNBase | FSDPModule)
    ]


def _reshard_root(model: torch.nn.Module, _inputs: Any, _outputs: Any) -> None:
    """FSDP leaves the root's weights gathered for the backward pass. Without one they would go stale when the
    weights are next changed."""
    if not torch.is_grad_enabled() and isinstance(model, FSDPModule):
        model.reshard()


def _count_traffic(model: torch.nn.Module, meter: TrafficMeter) -> None:
    """Count the all-gathers and reduce-scatters of each sharded part of the model."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_custom_all_gather(_CountedAllGather(meter))
            module.set_custom_reduce_scatter(_CountedReduceScatter(meter))


class _CountedAllGather(DefaultAllGather):
    def __init__(self, meter: TrafficMeter) -> None:
        super().__init__()
        self._meter = meter

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,
    ) -> dist.Work | None:
        self._meter.add(input_tensor.nbytes)
        return super().__call__(output_tensor, input_tensor, group, async_op)


class _CountedReduceScatter(DefaultReduceScatter):
    def __init__(self, meter: TrafficMeter) -> None:
        super().__init__()
        self._meter = meter

    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp | dist.ReduceOp.RedOpType,
        async_op: bool = False,
    ) -> dist.Work:
        self._meter.add(input_tensor.nbytes)
        return super().__call__(output_tensor, input_tensor, group, op, async_op)


class _OwnAllGather(DefaultAllGather):
    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        async_op: bool = False,  # noqa: ARG002 - torch's signature
    ) -> dist.Work | None:
        for rank, part in enumerate(output_tensor.view(group.size(), -1)):
            if rank != group.rank():  # where the input lies already
                part.copy_(input_tensor)
        return None


class _OwnReduceScatter(DefaultReduceScatter):
    def __call__(
        self,
        output_tensor: torch.Tensor,
        input_tensor: torch.Tensor,
        group: dist.ProcessGroup,
        op: dist.ReduceOp | dist.ReduceOp.RedOpType,  # noqa: ARG002 - torch's signature
        async_op: bool = False,  # noqa: ARG002 - torch's signature
    ) -> dist.Work:
        output_tensor.copy_(input_tensor.view(group.size(), -1)[group.rank()])
        return None  # type: ignore[return-value]  # nothing waits for it
