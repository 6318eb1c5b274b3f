"""A small training case shared by the engine's tests: real digits, prepared once per session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.preparing.prepare import prepare
from orchestrator.engine import collectives
from orchestrator.engine.attempt import Attempt, start_attempt
from orchestrator.engine.link import WorkerLink
from orchestrator.spec import JobSpec, load_spec
from orchestrator.storage import Folder
from orchestrator.worker import build_recipe, checkpoint_store

SPEC: dict[str, Any] = {
    "name": "case",
    "seed": 3,
    "data": {
        "source": {"kind": "sklearn", "name": "digits"},
        "target": "label",
        "split": {"kind": "stratified", "train": 0.3, "val": 0.1, "test": 0.6},
        "transforms": [{"kind": "standardize"}],
    },
    "model": {"name": "mlp", "args": {"hidden": [16]}},
    "train": {
        "max_epochs": 3,
        "global_batch_size": 50,
        "optimizer": {"kind": "adamw", "lr": 0.01},
        "schedule": {"kind": "cosine", "warmup_steps": 3},
    },
}


def case_spec(**sections: Any) -> JobSpec:
    """The case with sections merged over it."""
    return load_spec(SPEC, overrides_dict=sections).spec


def case_data(spec: JobSpec, storage: Path) -> Prepared:
    return prepare(spec.data, task=spec.train.task, seed=spec.seed, storage=Folder.at(storage))


def case_attempt(
    spec: JobSpec, storage: Path, link: WorkerLink | None = None, run: str = "case-1"
) -> Attempt:
    """A started attempt of the spec, with checkpoints under the run's folder in the storage."""
    from orchestrator.runs.folder import RunFolder

    name, _, number = run.rpartition("-")
    store = checkpoint_store(spec, RunFolder(Folder.at(storage), name, int(number)))
    link = link or WorkerLink()
    link.attempt = collectives.broadcast_object(store.begin_attempt() if link.rank == 0 else None)
    return start_attempt(build_recipe(spec, case_data(spec, storage)), link, store, spec.checkpoint)
