"""Several workers, one model: DDP and FSDP behind the same few functions.

DDP keeps a copy of the model on every worker and averages the gradients. FSDP keeps a shard of each weight,
its gradient and its optimizer state, and gathers the weights of a part of the model when it is computed; so
every worker must run the model equally often, in training and in evaluation. Imports: torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, TypeGuard

import torch
from torch.nn.parallel import DistributedDataParallel

from orchestrator.engine.device.precision import Precision
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.parallel.batch_norm import synchronize_batch_norm
from orchestrator.engine.parallel.compression import TrafficMeter, compress_gradients
from orchestrator.engine.parallel.recompute import recompute_activations
from orchestrator.errors import UsageError
from orchestrator.spec.train import Parallel

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule


def parallelize(
    model: torch.nn.Module,
    section: Parallel,
    link: WorkerLink,
    precision: Precision,
    meter: TrafficMeter | None = None,
    mesh: DeviceMesh | None = None,
) -> torch.nn.Module:
    """What the loop is to call instead of `model`, which must be on the link's device, and the same on all
    workers. Collective where there are several; `meter` counts what they send each other. With the `mesh` of a
    model sharded before, FSDP needs no other worker.

    One worker needs neither DDP nor FSDP: it gets the model itself. Under FSDP the parameters are other objects
    afterwards, so the optimizer is to be built from the result. Forward passes run under the precision's
    autocast in all cases. Raises UsageError where settings exclude each other, or the model.
    """
    _check(section)
    meter = meter or TrafficMeter()
    several = link.world_size > 1
    if several and section.sync_batch_norm:
        model = synchronize_batch_norm(model, link.device)
    if section.activation_checkpointing:
        recompute_activations(model)
    if not several:
        return model
    if section.strategy == "fsdp":
        from orchestrator.engine.parallel.fsdp import shard  # takes a second to import

        return shard(model, section, link, precision, meter, mesh)
    parallel = DistributedDataParallel(
        model,
        device_ids=[link.device] if link.device.type == "cuda" else None,
        bucket_cap_mb=section.bucket_cap_mb,
        static_graph=section.static_graph,
        find_unused_parameters=section.find_unused_parameters,
        gradient_as_bucket_view=True,
    )
    compress_gradients(parallel, section, meter)
    return parallel


def sharded(parallel: torch.nn.Module) -> TypeGuard[FSDPModule]:
    """Whether the model is under FSDP. By a method that only such models have, to import nothing for others."""
    return hasattr(parallel, "set_requires_gradient_sync")


def bare(parallel: torch.nn.Module) -> torch.nn.Module:
    """The network itself; under FSDP its parameters are sharded."""
    if isinstance(parallel, DistributedDataParallel):
        module: torch.nn.Module = parallel.module
        return module
    return parallel


def alone(parallel: torch.nn.Module, meter: TrafficMeter | None) -> contextlib.AbstractContextManager[None]:
    """A pass in here waits for no other worker, whatever the model: to find out how much memory it takes.

    Not for a model under DDP. See `fsdp.alone` for what it does to a sharded one.
    """
    in_shards = sharded(parallel)
    if not in_shards:
        return contextlib.nullcontext()
    from orchestrator.engine.parallel import fsdp  # takes a second to import

    return fsdp.alone(parallel, meter or TrafficMeter())


@contextlib.contextmanager
def no_sync(parallel: torch.nn.Module, enabled: bool = True) -> Iterator[None]:
    """A backward pass in here only adds to this worker's own gradients; the next one outside sends the sum.

    The forward pass belongs in here as well. Under FSDP the weights are gathered all the same.
    """
    if enabled and isinstance(parallel, DistributedDataParallel):
        with parallel.no_sync():
            yield
    elif enabled and sharded(parallel):
        parallel.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            parallel.set_requires_gradient_sync(True)
    else:
        yield


def _check(section: Parallel) -> None:
    if section.static_graph and section.find_unused_parameters:
        raise UsageError(
            "train.parallel.find_unused_parameters: a static graph finds the unused parameters by itself",
            "remove one of static_graph and find_unused_parameters",
        )
    if section.strategy == "fsdp":
        for field, value in (
            ("gradient_compression", section.gradient_compression != "none"),
            ("static_graph", section.static_graph),
            ("find_unused_parameters", section.find_unused_parameters),
        ):
            if value:
                raise UsageError(
                    f"train.parallel.{field}: works with strategy ddp only, and the strategy is fsdp",
                    f"remove train.parallel.{field}, or write strategy: ddp",
                )
