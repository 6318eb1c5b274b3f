"""A small job that searches, and its variations."""

from __future__ import annotations

import copy
from typing import Any

from orchestrator.spec import LoadedSpec, load_spec, to_plain
from orchestrator.spec.space import SearchSpace
from tests.unit.spec_helpers import minimal

SPACE: dict[str, Any] = {
    "train.optimizer.lr": {"loguniform": [1e-4, 1e-1]},
    "train.global_batch_size": {"choice": [32, 64, 128]},
    "train.optimizer.kind": {"choice": ["sgd", "adamw"]},
    "train.optimizer.momentum": {"uniform": [0.5, 0.99], "when": {"train.optimizer.kind": "sgd"}},
    "train.schedule.warmup_steps": {"expr": "4096 // train.global_batch_size"},
}


def searching(param_space: dict[str, Any] | None = None, **tune: Any) -> dict[str, Any]:
    """A job of 20 epochs that searches; further keys are those of `tune`."""
    space = SPACE if param_space is None else param_space
    return minimal(train={"max_epochs": 20}, tune={"param_space": copy.deepcopy(space), **tune})


def loaded(param_space: dict[str, Any] | None = None, **tune: Any) -> LoadedSpec:
    return load_spec(searching(param_space, **tune))


def space_of(job: LoadedSpec) -> SearchSpace:
    assert job.spec.tune
    return SearchSpace.of(job.spec.tune, to_plain(job.spec))
