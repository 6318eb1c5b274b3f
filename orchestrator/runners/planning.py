"""What would happen: the arithmetic of a spec against its data and the cluster. Imports: no ray of its own."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from orchestrator.runners.environment import environment
from orchestrator.runners.preparing import data_job, prepare_data
from orchestrator.runners.ray_workers.start import check_fits, cluster_address, inside_ray_job

if TYPE_CHECKING:
    from orchestrator.engine.device.memory import MemoryEstimate
    from orchestrator.spec import JobSpec, LoadedSpec

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """The figures of a run before it runs. Sizes in bytes, per worker."""

    where: str
    resources: Mapping[str, float]
    """All of the cluster, or of this machine."""
    available: Mapping[str, float]
    """What is free of it at this moment."""
    num_workers: int
    per_worker: Mapping[str, float]
    rows: Mapping[str, int]
    task: str
    input_shape: tuple[int, ...]
    num_outputs: int
    global_batch_size: int
    worker_batch_sizes: tuple[int, ...]
    """Samples of a full global batch on each rank."""
    microbatch_size: int
    accumulation: int
    """Microbatches that the fullest rank computes for one optimizer step."""
    last_batch_size: int
    steps_per_epoch: int
    epochs: int
    total_steps: int
    memory: MemoryEstimate
    total_memory_bytes: int
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "memory": asdict(self.memory) | {"total_bytes": self.memory.total_bytes}}


def make_plan(loaded: LoadedSpec, address: str | None = None) -> Plan:
    """Prepare the data (it is cached, a run finds it), build the model on the CPU, and ask the cluster.

    Raises Infeasible where the workers can never fit, and what preparation and the model raise.
    """
    from orchestrator.data.preparing.prepare import discard
    from orchestrator.engine.device.memory import estimate_memory
    from orchestrator.imports import add_search_paths
    from orchestrator.spec import secret_values
    from orchestrator.worker import build_recipe

    spec = loaded.spec
    add_search_paths(loaded.search_paths)
    where, total, available = _resources(cluster_address(address))
    if where != _HERE:
        check_fits(spec, total)
    job = data_job(loaded, None)
    with environment(secret_values(spec)):
        prepared = prepare_data(job, say=_log.info)
    recipe = build_recipe(spec, prepared)
    sizes = share_sizes(spec.train.global_batch_size, spec.resources.num_workers)
    microbatch = min(spec.train.microbatch_size or sizes[0], sizes[0])
    memory = estimate_memory(recipe, microbatch)
    rows = prepared.manifest.rows["train"]
    steps = recipe.steps_per_epoch
    discard(spec.data, job.storage, prepared)
    return Plan(
        where=where,
        resources=total,
        available=available,
        num_workers=spec.resources.num_workers,
        per_worker=spec.resources.per_worker(),
        rows=prepared.manifest.rows,
        task=prepared.manifest.task,
        input_shape=prepared.manifest.input_shape,
        num_outputs=prepared.manifest.num_outputs,
        global_batch_size=spec.train.global_batch_size,
        worker_batch_sizes=sizes,
        microbatch_size=microbatch,
        accumulation=math.ceil(sizes[0] / microbatch),
        last_batch_size=spec.train.global_batch_size
        if spec.train.drop_last or rows % spec.train.global_batch_size == 0
        else rows % spec.train.global_batch_size,
        steps_per_epoch=steps,
        epochs=math.ceil(recipe.total_steps / steps),
        total_steps=recipe.total_steps,
        memory=memory,
        total_memory_bytes=memory.total_bytes * spec.resources.num_workers,
        notes=tuple(_notes(spec, where, total, available, rows, sizes)),
    )


def share_sizes(batch_size: int, num_workers: int) -> tuple[int, ...]:
    """How many samples of a batch each rank takes."""
    from orchestrator.data.prepared.order import rank_slice

    slices = [rank_slice(batch_size, rank, num_workers) for rank in range(num_workers)]
    return tuple(part.stop - part.start for part in slices)


_HERE = "this machine (embedded Ray)"


def _resources(address: str | None) -> tuple[str, dict[str, float], dict[str, float]]:
    if address is None and not inside_ray_job():
        import psutil
        import torch

        here = {"CPU": float(os.cpu_count() or 1), "memory": float(psutil.virtual_memory().total)}
        if torch.cuda.is_available():
            here["GPU"] = float(torch.cuda.device_count())
        return _HERE, here, {**here, "memory": float(psutil.virtual_memory().available)}
    from orchestrator.runners.ray_workers.start import connected_resources

    return connected_resources(address)


def _notes(
    spec: JobSpec,
    where: str,
    total: Mapping[str, float],
    available: Mapping[str, float],
    rows: int,
    sizes: tuple[int, ...],
) -> list[str]:
    notes = []
    workers, per_worker = spec.resources.num_workers, spec.resources.per_worker()
    for name, amount in per_worker.items():
        needed = amount * workers
        if where == _HERE and needed > total.get(name, 0.0):
            notes.append(
                f"{workers} workers share {total.get(name, 0.0):g} {name} here; they ask for {needed:g}"
            )
        elif needed > available.get(name, 0.0):
            notes.append(
                f"{needed:g} {name} are needed and {available.get(name, 0.0):g} are free: the run would wait"
            )
    if spec.train.global_batch_size > rows:
        notes.append(
            f"the global batch of {spec.train.global_batch_size} is larger than the {rows} training rows"
        )
    if 0 in sizes:
        notes.append("some workers get no samples: the global batch is smaller than the number of workers")
    return notes
