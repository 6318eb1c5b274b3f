"""What a run does about a fault of its workers: who is blamed, what is tried again, and that nothing is left behind."""

from __future__ import annotations

import copy
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group

from orchestrator.records import Progress
from orchestrator.runners.driver import run_job
from orchestrator.runners.result import Result
from orchestrator.runs.folder import RunFolder, find_run
from orchestrator.spec import load_spec
from orchestrator.storage import Folder
from tests.cluster.test_run import SPEC

FAULTY_MODEL = '''
import os, sys, time
from pathlib import Path
import torch

class Faulty(torch.nn.Module):
    """Does what its `how` says on rank 1 in its step `at`; once, unless `always`."""

    def __init__(self, input_shape, num_outputs, how, marker, at=8, always=False):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_outputs))
        self.how, self.marker, self.at, self.always, self.steps = how, Path(marker), at, always, 0

    def forward(self, images):
        self.steps += self.training
        due = self.training and self.steps == self.at and os.environ.get("RANK") == "1"
        if due and (self.always or not self.marker.exists()):
            self.marker.touch()
            if self.how == "raise":
                raise ValueError("rank 1 has had enough")
            if self.how == "sys.exit":
                sys.exit(7)
            if self.how == "os._exit":
                os._exit(7)
            time.sleep(3600)
        return self.layers(images)
'''


class Listener:
    """Keeps what a run tells, and lets a test wait for it."""

    def __init__(self) -> None:
        self.messages: list[str] = []
        self._heard = threading.Condition()

    def message(self, text: str) -> None:
        with self._heard:
            self.messages.append(text)
            self._heard.notify_all()

    def progress(self, progress: Progress) -> None:
        pass

    def wait_for(self, part: str, timeout_s: float = 200) -> str:
        with self._heard:
            assert self._heard.wait_for(lambda: any(part in text for text in self.messages), timeout_s), (
                self.messages
            )
            return next(text for text in self.messages if part in text)


@pytest.fixture(autouse=True)
def nothing_left_behind(ray_cluster: str) -> Iterator[None]:
    """After each test no worker process lives and no place is held."""
    yield
    alive = [info for info in ray._private.state.actors().values() if info["State"] != "DEAD"]
    # Ray Data, which an earlier test used, keeps actors of its own.
    assert [info["ActorClassName"] for info in alive if "WorkerProcess" in info["ActorClassName"]] == []
    states = {table["state"] for table in placement_group_table().values()}
    assert states <= {"REMOVED"}


@pytest.fixture
def faulty_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "faulty.py").write_text(FAULTY_MODEL)
    monkeypatch.chdir(folder)
    yield
    sys.modules.pop("faulty", None)


def run(storage: Path, listener: Listener | None = None, **sections: Any) -> Result:
    spec = copy.deepcopy(SPEC) | {"resources": {"num_workers": 2}, "mlflow": {}}
    loaded = load_spec(spec, overrides_dict={"storage": str(storage / "runs"), **sections})
    return run_job(loaded, observer=listener)


def faulty(tmp_path: Path, how: str, **args: Any) -> dict[str, Any]:
    return {"name": "faulty:Faulty", "args": {"how": how, "marker": str(tmp_path / "marker"), **args}}


def folder_of(tmp_path: Path) -> RunFolder:
    return find_run(Folder.at(tmp_path / "runs"), "small-1")


def attempts(tmp_path: Path) -> int:
    record = folder_of(tmp_path).read_record()
    assert record is not None
    return record.attempts


def test_an_exception_in_one_rank_is_laid_at_its_door(tmp_path: Path, faulty_model: None) -> None:
    failed = run(tmp_path, model=faulty(tmp_path, "raise"))
    assert (failed.status, failed.verdict.rank, failed.verdict.cause) == ("FAILED", 1, "user error")
    assert failed.verdict.reason == "ValueError: rank 1 has had enough"
    assert attempts(tmp_path) == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["sys.exit", "os._exit"])
def test_an_exit_code_to_recover_on_is_retried_and_not_counted(
    tmp_path: Path, faulty_model: None, how: str
) -> None:
    failure = {"recover_on_exit_codes": [7], "max_failures": 0}
    survived = run(tmp_path, model=faulty(tmp_path, how), failure=failure)
    assert survived.status == "SUCCEEDED"
    assert attempts(tmp_path) == 2


@pytest.mark.slow  # the counterpart of the test above
def test_another_exit_code_ends_the_run(tmp_path: Path, faulty_model: None) -> None:
    failed = run(tmp_path, model=faulty(tmp_path, "os._exit"), failure={"recover_on_exit_codes": [8]})
    assert (failed.status, failed.exit_code, failed.verdict.rank) == ("FAILED", 1, 1)
    assert "exit code 7" in failed.verdict.reason


@pytest.mark.slow  # the time-out alone is a good part of it
def test_a_hang_is_found_its_stacks_are_kept_and_it_is_tried_again(
    tmp_path: Path, faulty_model: None
) -> None:
    listener = Listener()
    survived = run(tmp_path, listener, model=faulty(tmp_path, "hang"), failure={"hang_timeout": 30})
    told = listener.wait_for("no rank has moved", timeout_s=0)
    assert told.startswith("rank 1 failed (hardware)")
    assert "faulty.py:" in told
    assert survived.status == "SUCCEEDED"
    assert attempts(tmp_path) == 2
    assert "1 restart (hang)" in survived.goodput
    logs = folder_of(tmp_path).postmortem(1)
    assert b"time.sleep(3600)" in logs.read_bytes("stacks-rank-1.txt")
    assert b"all_reduce" in logs.read_bytes("stacks-rank-0.txt") or b"backward" in logs.read_bytes(
        "stacks-rank-0.txt"
    )


@pytest.mark.slow
def test_a_stop_ends_the_wait_before_a_retry(tmp_path: Path, faulty_model: None) -> None:
    listener, results = Listener(), list[Result]()
    sections = {
        "model": faulty(tmp_path, "os._exit", always=True),
        "failure": {"recover_on_exit_codes": [7], "initial_backoff": 3600, "max_backoff": 3600},
    }
    thread = threading.Thread(target=lambda: results.append(run(tmp_path, listener, **sections)))
    thread.start()
    listener.wait_for("trying again in 3600 s")
    folder_of(tmp_path).request_stop()
    thread.join(100)
    assert [(result.status, result.exit_code) for result in results] == [("STOPPED", 143)]


def test_a_place_that_is_not_found_in_time_is_explained(tmp_path: Path) -> None:
    held = placement_group([{"CPU": 3}])
    assert held.wait(30)
    try:
        failed = run(tmp_path, Listener(), resources={"num_workers": 2, "start_timeout": 2})
    finally:
        remove_placement_group(held)
    assert (failed.status, failed.verdict.cause, failed.verdict.rank) == ("FAILED", "control plane", None)
    assert failed.exit_code == 75
    assert "within 2 s: needs 2 × {CPU: 1}; room for 1" in failed.verdict.reason
    assert "resources.start_timeout" in failed.verdict.mend


@pytest.mark.slow  # it waits until the run has told why
def test_a_run_waits_for_its_place_and_says_why(tmp_path: Path) -> None:
    held = placement_group([{"CPU": 3}])
    assert held.wait(30)
    listener, results = Listener(), list[Result]()
    thread = threading.Thread(target=lambda: results.append(run(tmp_path, listener)))
    thread.start()
    try:
        told = listener.wait_for("waiting for workers")
    finally:
        remove_placement_group(held)
    thread.join(200)
    assert "needs 2 × {CPU: 1}; room for 1; free:" in told
    assert [result.status for result in results] == ["SUCCEEDED"]


@pytest.mark.slow
def test_two_runs_share_a_cluster(ray_cluster: str, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(SPEC | {"resources": {"num_workers": 2}, "mlflow": {}}))
    command = [sys.executable, "-m", "orchestrator", "run", "job.yaml", "--address", ray_cluster]
    processes = []
    for name in ("a", "b"):
        with (tmp_path / f"{name}.log").open("wb") as log:
            processes.append(
                subprocess.Popen(
                    [*command, f"storage={tmp_path / name / 'runs'}"], cwd=tmp_path, stdout=log, stderr=log
                )
            )
    try:
        codes = [process.wait(280) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, 0], (tmp_path / "a.log").read_text()[-3000:] + (tmp_path / "b.log").read_text()[
        -3000:
    ]
    results = [folder_of(tmp_path / name).read_result() for name in ("a", "b")]
    assert results[0] is not None
    assert results[1] is not None
    assert results[0]["metrics"] == results[1]["metrics"]


@pytest.mark.slow
def test_an_elastic_run_takes_what_fits(tmp_path: Path) -> None:
    held = placement_group([{"CPU": 2}])
    assert held.wait(30)
    time.sleep(1.5)  # until Ray's account of what is free has caught up
    try:
        done = run(tmp_path, Listener(), resources={"num_workers": [1, 3], "wait_for_max": 0})
    finally:
        remove_placement_group(held)
    assert done.status == "SUCCEEDED"
    result = folder_of(tmp_path).read_result()
    assert result is not None
    assert result["world_size"] == 2
