"""Searches as commands: killed and given again, two at once on one cluster, and one that can never fit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import pytest
import yaml
from mlflow import MlflowClient

from orchestrator.cli.app import run_app
from orchestrator.runners import driver
from orchestrator.runs.folder import RunFolder, list_runs
from orchestrator.storage import Folder
from tests.cluster.test_recovery import nothing_left_behind  # noqa: F401
from tests.cluster.tune_case import EPOCH_STEPS, EPOCHS, LR, NETS, OF_THE_RUN, SPEC, TUNE, net
from tests.faults.case import empty_store

pytestmark = pytest.mark.slow
TRIALS = 8


class Place:
    """A folder with a search's spec and code, its storage and its MLflow store, and the commands started there."""

    def __init__(self, root: Path, address: str) -> None:
        self.root, self.address = root, address
        self.notes = root / "notes"
        self.notes.mkdir(parents=True)
        (root / "trial_nets.py").write_text(NETS)
        (root / "mlflow.db").write_bytes(empty_store())
        self._drivers: list[subprocess.Popen[bytes]] = []
        self._logs: list[IO[bytes]] = []

    def write(self, name: str, **sections: Any) -> None:
        """The spec `<name>.yaml`; sections of it are replaced."""
        spec = {**SPEC, "name": name, "model": net(self.notes, "slow"), "storage": str(self.root / "runs")}
        (self.root / f"{name}.yaml").write_text(yaml.safe_dump(spec | sections))

    def start(self, name: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "orchestrator", "run", f"{name}.yaml", "--address", self.address]
        self._logs.append((self.root / f"{name}-{len(self._logs)}.log").open("wb"))
        process = subprocess.Popen(
            command,
            cwd=self.root,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self._logs[-1],
            stderr=self._logs[-1],
        )
        self._drivers.append(process)
        return process

    def output(self) -> str:
        """The end of what each command said."""
        return "\n".join(Path(log.name).read_text(errors="replace")[-3000:] for log in self._logs)

    def run_of(self, name: str) -> RunFolder:
        """The only run of this name there is: a resumed one is the same run."""
        (run,) = list_runs(Folder.at(self.root / "runs"), name)
        return run

    def summary(self, name: str) -> dict[str, Any]:
        return self.run_of(name).read_search() or {"trials": []}

    def wait_for(self, name: str, condition: Callable[[Mapping[str, Any]], bool], what: str) -> None:
        """Wait until the search's summary is so."""
        deadline_s = time.monotonic() + 120
        while True:
            there = (self.root / "runs").exists() and list_runs(Folder.at(self.root / "runs"), name)
            if there and condition(self.summary(name)):
                return
            late = self._drivers[-1].poll() is not None or time.monotonic() > deadline_s
            assert not late, f"not {what}:\n{self.output()}"
            time.sleep(0.05)

    def mlflow_runs(self, name: str) -> tuple[Any, list[Any]]:
        """The run of a search in MLflow, and those of its trials."""
        client = MlflowClient(f"sqlite:///{self.root}/mlflow.db")
        found = client.search_runs(
            [each.experiment_id for each in client.search_experiments()], max_results=1000
        )
        (parent,) = [run for run in found if run.info.run_name == f"{name}-1"]
        parents = [run.data.tags.get("mlflow.parentRunId") for run in found]
        return parent, [run for run, its in zip(found, parents, strict=True) if its == parent.info.run_id]

    def steps(self, run_id: str, key: str) -> list[int]:
        history = MlflowClient(f"sqlite:///{self.root}/mlflow.db").get_metric_history(run_id, key)
        return sorted(point.step for point in history)

    def close(self) -> None:
        for process in self._drivers:
            if process.poll() is None:
                process.kill()
            process.wait()
        for log in self._logs:
            log.close()


@pytest.fixture
def place(ray_cluster: str, tmp_path: Path) -> Iterator[Place]:
    there = Place(tmp_path / "place", ray_cluster)
    try:
        yield there
    finally:
        there.close()


def ended(count: int) -> Callable[[Mapping[str, Any]], bool]:
    """Whether so many trials have come to their end."""
    return lambda summary: (
        sum(trial["state"] in ("COMPLETED", "PRUNED") for trial in summary["trials"]) >= count
    )


def table(place: Place, name: str) -> list[dict[str, Any]]:
    return [{key: trial[key] for key in OF_THE_RUN} for trial in place.summary(name)["trials"]]


SPACE = {LR: {"loguniform": [1e-4, 1e-1]}, "train.global_batch_size": {"choice": [50, 100]}}
DECISIONS: dict[str, dict[str, Any]] = {
    # What these decide does not depend on which of two trials is the quicker.
    "random, two at once": {"max_concurrent_trials": 2},
    "tpe and asha": {
        "search_alg": {"kind": "optuna", "sampler": "tpe", "startup_trials": 3},
        "scheduler": {"kind": "asha", "grace_period": 1, "reduction_factor": 2},
    },
}


@pytest.mark.parametrize("decisions", DECISIONS)
def test_a_search_that_is_killed_twice_comes_to_the_same_table(place: Place, decisions: str) -> None:
    tune = {**TUNE, "param_space": SPACE, "num_samples": TRIALS, **DECISIONS[decisions]}
    place.write("killed", tune=tune)
    for count in (2, 5):
        process = place.start("killed")
        place.wait_for("killed", ended(count), f"{count} trials ended")
        process.kill()
        assert process.wait() == -signal.SIGKILL, place.output()
    before = place.summary("killed")
    process = place.start("killed")
    assert process.wait(200) == 0, place.output()
    assert "is unfinished and of the same identity" in place.output()
    by_id = {trial["id"]: trial for trial in place.summary("killed")["trials"]}
    for trial in before["trials"]:
        if trial["state"] in ("COMPLETED", "PRUNED"):  # it was not run again
            assert by_id[trial["id"]]["seconds"] == trial["seconds"]
            assert trial["mlflow_run_id"] in (None, by_id[trial["id"]]["mlflow_run_id"])

    (place.notes / "hurry").touch()
    place.write("whole", tune=tune)
    assert place.start("whole").wait(200) == 0, place.output()
    assert table(place, "killed") == table(place, "whole")
    assert place.summary("killed")["best"] == place.summary("whole")["best"]

    parent, children = place.mlflow_runs("killed")
    assert parent.info.status == "FINISHED"
    assert sorted(child.info.run_name for child in children) == sorted(by_id)
    for child in children:
        trial = by_id[child.info.run_name]
        assert child.info.status == "FINISHED", child.info.run_name
        assert child.info.run_id == trial["mlflow_run_id"]
        validated = place.steps(child.info.run_id, "val/loss")
        assert len(validated) == len(set(validated)) == trial["epoch"]
        trained = place.steps(child.info.run_id, "train/loss")
        assert trained == list(range(1, validated[-1] + 1))


def test_two_searches_at_once_share_a_cluster(place: Place) -> None:
    """Each would take all of it; both come to their end, and to what they come to alone."""
    (place.notes / "hurry").touch()
    names = ("one", "other")
    for name, workers in zip(names, (1, 2), strict=True):
        tune = {**TUNE, "param_space": {LR: SPACE[LR]}, "num_samples": 6, "max_concurrent_trials": "auto"}
        place.write(name, tune=tune, resources={"num_workers": workers})
    processes = [place.start(name) for name in names]
    assert [process.wait(250) for process in processes] == [0, 0], place.output()
    for name in names:
        summary = place.summary(name)
        assert [trial["state"] for trial in summary["trials"]] == ["COMPLETED"] * 6
        parent, children = place.mlflow_runs(name)
        assert parent.info.status == "FINISHED"
        assert [child.info.status for child in children] == ["FINISHED"] * 6
        for child in children:
            validated = place.steps(child.info.run_id, "val/loss")
            assert validated == [EPOCH_STEPS * epoch for epoch in range(1, EPOCHS + 1)]
    one, other = (table(place, name) for name in names)
    assert [trial["params"] for trial in one] == [trial["params"] for trial in other]
    for trial, same in zip(one, other, strict=True):
        assert trial["score"] == pytest.approx(same["score"], rel=1e-3)


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize(
    ("resources", "space"),
    [
        ({"num_workers": 2, "resources_per_worker": {"CPU": 100}}, {LR: {"loguniform": [1e-4, 1e-1]}}),
        ({}, {"resources.num_workers": {"grid_search": [1, 50]}}),
    ],
    ids=["all trials", "one trial"],
)
def test_trials_that_can_never_fit_are_refused(
    place: Place,
    verb: str,
    resources: dict[str, Any],
    space: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(driver, "NODES_JOIN_S", 1.0)
    monkeypatch.chdir(place.root)
    place.write("huge", resources=resources, tune={**TUNE, "param_space": space})
    assert run_app([verb, "huge.yaml", "--address", place.address]) == 2
    said = capsys.readouterr().err
    assert "CPU" in said
    assert "num_workers" in said
    assert "Traceback" not in said
    assert not (place.root / "runs" / "huge-1").exists()
    sys.modules.pop("trial_nets", None)
