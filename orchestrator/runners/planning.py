"""What would happen: the arithmetic of a spec against its data and the cluster. Imports: no ray of its own."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.recovery.sizing import NodeFacts, fitting, why_waiting, worth_waiting
from orchestrator.runners.environment import environment
from orchestrator.runners.preparing import data_job, prepare_data
from orchestrator.runners.ray_workers.start import (
    check_fits,
    cluster_address,
    connected_nodes,
    embedded_cpus,
    inside_ray_job,
    sum_up,
)

if TYPE_CHECKING:
    from orchestrator.engine.device.memory import MemoryEstimate
    from orchestrator.runners.search_plan import SearchPlan
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
    """With how many workers the run would start now; where none fit, the fewest that it waits for."""
    limits: tuple[int, int]
    """The fewest and the most workers; equal unless the run is elastic."""
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
    search: SearchPlan | None = None
    """Of a spec that searches; then all else is about one trial, a widest one."""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "memory": asdict(self.memory) | {"total_bytes": self.memory.total_bytes}}


def make_plan(loaded: LoadedSpec, address: str | None = None) -> Plan:
    """Prepare the data (it is cached, a run finds it), build the model on the CPU, and ask the cluster.

    Raises Infeasible where the workers (of any trial of a search) can never fit, and what preparation and the model
    raise.
    """
    from orchestrator.data.preparing.prepare import discard
    from orchestrator.engine.device.memory import estimate_memory
    from orchestrator.imports import add_search_paths
    from orchestrator.spec import secret_values
    from orchestrator.worker import build_recipe

    add_search_paths(loaded.search_paths)
    where, nodes = _nodes(cluster_address(address))
    whole = loaded
    params: dict[str, Any] = {}
    if loaded.spec.tune:
        from orchestrator.runners.search_plan import check_searcher, widest_trial

        check_searcher(loaded.spec.tune)
        loaded, params = widest_trial(loaded, nodes if where != _HERE else None)
    spec = loaded.spec
    if where != _HERE:
        check_fits(spec, nodes)
    num_workers = _fitting(spec, where, nodes) or spec.resources.min_workers
    job = data_job(loaded, None)
    with environment(secret_values(spec)):
        prepared = prepare_data(job, say=_log.info)
    recipe = build_recipe(spec, prepared)
    sizes = share_sizes(spec.train.global_batch_size, num_workers)
    microbatch = min(spec.train.microbatch_size or sizes[0], sizes[0])
    memory = estimate_memory(recipe, microbatch)
    rows = prepared.manifest.rows["train"]
    steps = recipe.steps_per_epoch
    discard(spec.data, job.storage, prepared)
    search = None
    if whole.spec.tune:
        from orchestrator.runners.search_plan import plan_search

        search = plan_search(whole, params, _free(spec, where, nodes), rows)
    return Plan(
        where=where,
        resources=sum_up(node.total for node in nodes),
        available=sum_up(node.free for node in nodes if not node.draining),
        num_workers=num_workers,
        limits=spec.resources.limits,
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
        total_memory_bytes=memory.total_bytes * num_workers,
        notes=(*_notes_on_size(spec, where, nodes), *_notes_on_batches(spec, rows)),
        search=search,
    )


def share_sizes(batch_size: int, num_workers: int) -> tuple[int, ...]:
    """How many samples of a batch each rank takes."""
    from orchestrator.data.prepared.order import rank_slice

    slices = [rank_slice(batch_size, rank, num_workers) for rank in range(num_workers)]
    return tuple(part.stop - part.start for part in slices)


_HERE = "this machine (embedded Ray)"


def _nodes(address: str | None) -> tuple[str, list[NodeFacts]]:
    """Where the run would be, and the nodes there."""
    if address is None and not inside_ray_job():
        import psutil
        import torch

        here = {"CPU": float(os.cpu_count() or 1), "memory": float(psutil.virtual_memory().total)}
        if torch.cuda.is_available():
            here["GPU"] = float(torch.cuda.device_count())
        free = {**here, "memory": float(psutil.virtual_memory().available)}
        return _HERE, [NodeFacts("here", here, free, name=_HERE)]
    return connected_nodes(address)


def _fitting(spec: JobSpec, where: str, nodes: Sequence[NodeFacts]) -> int:
    """How many workers fit now; 0 where the run would wait."""
    resources = spec.resources
    nodes = _free(spec, where, nodes)
    return fitting(nodes, resources.bundle(), resources.limits, (), resources.placement_strategy)


def _free(spec: JobSpec, where: str, nodes: Sequence[NodeFacts]) -> Sequence[NodeFacts]:
    """The nodes as a run would find them."""
    if where != _HERE:
        return nodes
    return [
        replace(node, free={**node.free, "CPU": float(embedded_cpus(spec))}) for node in nodes
    ]  # may be shared


def _notes_on_size(spec: JobSpec, where: str, nodes: Sequence[NodeFacts]) -> list[str]:
    resources = spec.resources
    (least, most), bundle, fits = resources.limits, resources.bundle(), _fitting(spec, where, nodes)
    if where == _HERE:
        [here] = nodes
        return [
            f"{fits or least} workers share {here.total.get(name, 0.0):g} {name} here; they ask for {needed:g}"
            for name, needed in ((name, amount * (fits or least)) for name, amount in bundle.items())
            if needed > here.total.get(name, 0.0)
        ]
    if fits == 0:
        why = why_waiting(nodes, bundle, least, (), resources.placement_strategy)
        return [f"the run would wait, at most {resources.start_timeout:g} s: {why}"]
    if fits == most:
        return []
    if worth_waiting(nodes, bundle, resources.limits, (), resources.placement_strategy):
        return [
            f"{fits} of {most} workers fit now: the run would wait {resources.wait_for_max:g} s for more, begin with "
            "those that fit, and grow later"
        ]
    return [
        f"{fits} of {most} workers fit on this cluster: the run would begin with them, and grow if nodes come"
    ]


def _notes_on_batches(spec: JobSpec, rows: int) -> list[str]:
    notes, batch_size = [], spec.train.global_batch_size
    if batch_size > rows:
        notes.append(f"the global batch of {batch_size} is larger than the {rows} training rows")
    least, most = spec.resources.limits
    if batch_size < least:
        notes.append("some workers get no samples: the global batch is smaller than the number of workers")
    elif batch_size < most:
        notes.append(
            f"with more than {batch_size} workers some get no samples: lower the largest number of workers"
        )
    return notes
