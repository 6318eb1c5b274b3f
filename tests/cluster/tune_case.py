"""A small search on a real Ray, with networks that misbehave when told to; and how to look at what became of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mlflow import MlflowClient

import orchestrator
from orchestrator.runners.result import Result
from orchestrator.runs.folder import RunFolder, find_run
from orchestrator.spec import load_spec
from orchestrator.storage import Folder
from tests.cluster.test_run import SPEC as SMALL
from tests.exactness.compare import saved_state
from tests.faults.case import empty_store

EPOCH_STEPS = 13
EPOCHS = 2
NETS = f'''
import json, os, random, signal, sys, time, warnings
from pathlib import Path

import numpy as np
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

LEFT = []


class Net(torch.nn.Module):
    """Does what its `how` says if its `units` are in `who`, or if nobody is named. Tells in the folder `notes` which
    process made it, and what it found there."""

    def __init__(self, num_outputs, notes, units=16, how="", who=()):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, units), torch.nn.ReLU(), torch.nn.Linear(units, num_outputs)
        )
        self.notes, self.how, self.steps = Path(notes), how if not who or units in who else "", 0
        (self.notes / f"{{units}} {{os.getpid()}}").touch()
        (self.notes / f"found {{how}} {{os.getpid()}} {{time.time_ns()}}").write_text(json.dumps(found()))
        if self.how == "leak":  # to where nobody looks
            torch.__dict__.setdefault("_left", []).append(bytearray(b"x") * 120_000_000)
        if self.how == "spoil":
            register_optimizer_step_post_hook(self.after_step)

    def after_step(self, *_):
        """At the last step, since much of it would spoil the trial itself."""
        self.steps += 1
        if self.steps >= {EPOCH_STEPS * EPOCHS}:
            spoil()
            (self.notes / "spoiled").touch()

    def forward(self, images):
        if self.training:
            self.act()
        return self.layers(images)

    def act(self):
        self.steps += self.how != "spoil"
        if self.how == "slow" and not (self.notes / "hurry").exists():
            time.sleep(0.05)
        if self.how == "raise" and self.steps == 5:
            raise ValueError("no luck")
        if self.how == "kill" and self.steps == 20 and not (self.notes / "killed").exists():
            (self.notes / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)


def found():
    """What of the process has a say in a training."""
    return {{
        "dtype": str(torch.get_default_dtype()),
        "threads": torch.get_num_threads(),
        "hooks": len(torch.nn.modules.module._global_forward_hooks),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "matmul": torch.get_float32_matmul_precision(),
        "gradients": torch.is_grad_enabled(),
        "numpy": np.geterr(),
        "warnings": any(item[1] is not None and item[1].pattern == "spoiled" for item in warnings.filters),
        "environment": os.environ.get("SPOILED"),
        "folder": os.getcwd(),
        "path": "/spoiled" in sys.path,
        "left": len(LEFT),
    }}


def spoil():
    """All that user code may leave behind."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(99), np.random.seed(99), random.seed(99)
    torch.set_num_threads(torch.get_num_threads() + 2)
    torch.nn.modules.module.register_module_forward_hook(
        lambda module, _, output: output * 1.5 if isinstance(module, torch.nn.Linear) else None
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_float32_matmul_precision("medium")
    torch.set_grad_enabled(False)
    np.seterr(invalid="ignore")
    warnings.filterwarnings("error", message="spoiled")
    os.environ["SPOILED"] = "yes"
    os.chdir("/")
    sys.path.insert(0, "/spoiled")
    LEFT.append(1)
'''
SPEC: dict[str, Any] = {
    **{section: SMALL[section] for section in ("name", "seed", "data")},
    "train": {"max_epochs": EPOCHS, "global_batch_size": 100, "optimizer": {"kind": "adamw", "lr": 0.01}},
}
TUNE: dict[str, Any] = {
    "metric": "val/loss",
    "num_samples": 1,  # of a grid: once through it
    "max_concurrent_trials": 1,
    "search_alg": {"kind": "random"},
    "scheduler": {"kind": "fifo"},
    "then": "nothing",
}
LR = "train.optimizer.lr"
UNITS = "model.args.units"
OF_THE_RUN = ("id", "state", "params", "epoch", "score", "best_epoch")
"""What of a trial's row has nothing to do with time."""


class Search(NamedTuple):
    """A search that has ended."""

    result: Result
    run: RunFolder
    summary: dict[str, Any]

    @property
    def trials(self) -> dict[str, dict[str, Any]]:
        return {trial["id"]: trial for trial in self.summary["trials"]}

    @property
    def table(self) -> list[dict[str, Any]]:
        return [{key: trial[key] for key in OF_THE_RUN} for trial in self.summary["trials"]]

    @property
    def states(self) -> list[str]:
        return [trial["state"] for trial in self.summary["trials"]]

    def saved(self, trial: str) -> dict[str, Any]:
        """The trial's last checkpoint, in a form that can be compared."""
        return saved(self.run.trial(trial))


def saved(run: RunFolder) -> dict[str, Any]:
    return saved_state(load_spec({**SPEC, "model": {"name": "mlp"}}).spec, run)


def net(notes: Path, how: str = "", *who: int, **args: Any) -> dict[str, Any]:
    return {"name": "trial_nets:Net", "args": {"notes": str(notes), "how": how, "who": list(who), **args}}


def run(storage: Path, spec: Mapping[str, Any], **settings: Any) -> Result:
    storage.mkdir(exist_ok=True)
    if not (storage / "mlflow.db").exists():
        (storage / "mlflow.db").write_bytes(empty_store())
    return orchestrator.run({**SPEC, **spec, "storage": str(storage / "runs")}, quiet=True, **settings)


def search(
    storage: Path, model: Mapping[str, Any], space: Mapping[str, Any], *, spec: Any = None, **tune: Any
) -> Search:
    """Search to the end; `tune` are fields of that section, `spec` other sections."""
    section = {**TUNE, "param_space": dict(space), **tune}
    return found_by(storage, run(storage, {"model": dict(model), **(spec or {}), "tune": section}))


def found_by(storage: Path, result: Result) -> Search:
    folder = find_run(Folder.at(storage / "runs"), result.run)
    summary = folder.read_search()
    assert summary is not None
    return Search(result, folder, summary)


def children(done: Search) -> dict[str, Any]:
    """The MLflow runs of the trials, by name."""
    assert done.result.mlflow_run_id
    client = MlflowClient(done.result.tracking_uri)
    parent = client.get_run(done.result.mlflow_run_id)
    found = client.search_runs(
        [parent.info.experiment_id], f"tags.mlflow.parentRunId = '{parent.info.run_id}'", max_results=1000
    )
    assert len({child.info.run_name for child in found}) == len(found)
    return {child.info.run_name: child for child in found}


def curve(done: Search, run_id: str, key: str) -> list[tuple[int, float]]:
    history = MlflowClient(done.result.tracking_uri).get_metric_history(run_id, key)
    return sorted((point.step, point.value) for point in history)


def made_by(notes: Path) -> dict[int, set[int]]:
    """The processes in which networks were made, by their units. This one makes some too, to look at their sizes."""
    found: dict[int, set[int]] = {}
    for file in notes.glob("[0-9]*"):
        units, pid = map(int, file.name.split())
        if pid != os.getpid():
            found.setdefault(units, set()).add(pid)
    return found


def found_in_processes(notes: Path, how: str) -> dict[str, set[int]]:
    """What networks of this kind found when they were made, as JSON, and in which processes; it is forgotten then."""
    told: dict[str, set[int]] = {}
    for file in notes.glob(f"found {how} *"):
        pid = int(file.name.split()[-2])
        if pid != os.getpid():
            told.setdefault(file.read_text(), set()).add(pid)
        file.unlink()
    return told
