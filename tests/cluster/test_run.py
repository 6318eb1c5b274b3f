"""Whole runs on a real local Ray: same numbers everywhere, faults survived or named, stops that lose nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml
from mlflow import MlflowClient

import orchestrator
from orchestrator.errors import Infeasible
from orchestrator.runners import driver
from orchestrator.runners.result import Result
from orchestrator.runs.folder import RunFolder, find_run, list_runs
from orchestrator.storage import Folder

SPEC: dict[str, Any] = {
    "name": "small",
    "seed": 5,
    "data": {
        "source": {"kind": "sklearn", "name": "digits"},
        "target": "label",
        "split": {"kind": "stratified"},
        "transforms": [{"kind": "standardize"}],
    },
    "model": {"name": "mlp"},
    "train": {"max_epochs": 2, "global_batch_size": 50, "optimizer": {"kind": "adamw", "lr": 0.01}},
    "mlflow": {"registered_model_name": "small"},
}
FLAKY_MODEL = '''
import os, signal, time
from pathlib import Path
import torch

class Flaky(torch.nn.Module):
    """Does what its `how` says in the training step with the number `at`, in the first process to get there."""

    def __init__(self, input_shape, num_outputs, how, at, marker):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_outputs))
        self.how, self.at, self.marker, self.steps = how, at, Path(marker), 0

    def forward(self, images):
        self.steps += self.training
        if self.training and self.steps == self.at and not self.marker.exists():
            self.marker.touch()
            if self.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            print("the secret is", os.environ.get("HUSH"))
            raise ValueError("no such luck with " + os.environ.get("HUSH", "nothing"))
        return self.layers(images)


class Slow(torch.nn.Module):
    """Takes its time in training, until the file `hurry` is there."""

    def __init__(self, num_outputs, hurry):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_outputs))
        self.hurry = Path(hurry)

    def forward(self, images):
        if self.training and not self.hurry.exists():
            time.sleep(0.1)
        return self.layers(images)
'''


def run(storage: Path, *, inline: bool = False, **overrides: Any) -> Result:
    sections = {"storage": str(storage / "runs"), **overrides}
    return orchestrator.run(SPEC, inline=inline, quiet=True, **sections)


def weights(result: Result) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(Path(result.folder) / "model" / "model.safetensors")


def mlflow_run(result: Result) -> Any:
    assert result.mlflow_run_id
    return MlflowClient(result.tracking_uri).get_run(result.mlflow_run_id)


@pytest.fixture
def flaky_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The module `flaky`, importable here and in the workers: they look in the driver's working directory."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "flaky.py").write_text(FLAKY_MODEL)
    monkeypatch.chdir(folder)
    yield folder
    sys.modules.pop("flaky", None)


@pytest.mark.slow  # the unit and gloo tests hold each part of it
def test_inline_one_worker_and_two_workers_agree(ray_cluster: str, tmp_path: Path) -> None:
    inline = run(tmp_path / "a", inline=True)
    one = run(tmp_path / "b", resources={"num_workers": 1})
    two = run(tmp_path / "c", resources={"num_workers": 2})
    assert [result.status for result in (inline, one, two)] == ["SUCCEEDED"] * 3
    assert inline.metrics == one.metrics
    for name, tensor in weights(inline).items():
        assert torch.equal(weights(one)[name], tensor), name
        torch.testing.assert_close(weights(two)[name], tensor, rtol=1e-4, atol=1e-5)
    assert two.metrics["test/loss"] == pytest.approx(one.metrics["test/loss"], rel=1e-4)
    assert two.metrics["test/accuracy"] == one.metrics["test/accuracy"]

    recorded = mlflow_run(two)
    assert recorded.info.status == "FINISHED"
    assert recorded.info.run_name == "small-1"
    assert recorded.data.metrics["test/accuracy"] == two.metrics["test/accuracy"]
    client = MlflowClient(two.tracking_uri)
    history = client.get_metric_history(recorded.info.run_id, "train/loss")
    assert sorted(metric.step for metric in history) == list(range(1, 53))
    of_one = client.__class__(one.tracking_uri).get_metric_history(mlflow_run(one).info.run_id, "train/loss")
    by_step = {metric.step: metric.value for metric in of_one}
    assert all(metric.value == pytest.approx(by_step[metric.step], rel=1e-3) for metric in history)
    assert two.model == "models:/small/1"
    assert client.get_model_version("small", "1").run_id == recorded.info.run_id


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_run_goes_on(
    ray_cluster: str, tmp_path: Path, flaky_model: Path
) -> None:
    args = {"how": "kill", "at": 40, "marker": str(tmp_path / "marker")}
    survived = run(
        tmp_path,
        model={"name": "flaky:Flaky", "args": args},
        resources={"num_workers": 2},
        checkpoint={"every_n_steps": 10},
    )
    assert survived.status == "SUCCEEDED"
    assert (tmp_path / "marker").exists()
    record = find_run(Folder.at(tmp_path / "runs"), "small-1").read_record()
    assert record is not None
    assert record.attempts == 2
    assert "1 restart (worker killed)" in survived.goodput
    recorded = mlflow_run(survived)
    assert recorded.data.metrics["goodput/restarts"] == 1
    assert recorded.data.metrics["goodput/lost_by/hardware"] > 0
    assert "| 1 | &emsp;2 | &emsp;" in recorded.data.tags["mlflow.note.content"]
    culprit = Path(survived.folder) / "logs" / "attempt-1" / "postmortem" / "verdict.json"
    assert "the worker process" in json.loads(culprit.read_text())["culprit"]["error"]
    # As if nothing had happened: every step is logged once, and the weights are those of an unhurt run.
    history = MlflowClient(survived.tracking_uri).get_metric_history(survived.mlflow_run_id, "train/loss")
    assert sorted(metric.step for metric in history) == list(range(1, 53))
    unhurt = run(
        tmp_path / "unhurt", model={"name": "flaky:Flaky", "args": args}, resources={"num_workers": 2}
    )
    for name, tensor in weights(unhurt).items():
        assert torch.equal(weights(survived)[name], tensor), name


def test_a_user_error_is_named_not_retried_and_tells_no_secret(
    ray_cluster: str, tmp_path: Path, flaky_model: Path
) -> None:
    failed = run(
        tmp_path,
        model={"name": "flaky:Flaky", "args": {"how": "raise", "at": 7, "marker": str(tmp_path / "marker")}},
        resources={"num_workers": 2},
        secrets={"HUSH": "correct-horse-battery"},
    )
    assert (failed.status, failed.exit_code) == ("FAILED", 1)
    assert failed.verdict.cause == "user error"
    assert failed.verdict.rank in (0, 1)
    assert failed.verdict.reason == "ValueError: no such luck with ***"
    assert "flaky.py:" in failed.verdict.mend
    record = find_run(Folder.at(tmp_path / "runs"), "small-1").read_record()
    assert record is not None
    assert record.attempts == 1
    recorded = mlflow_run(failed)
    assert recorded.info.status == "FAILED"
    assert recorded.data.tags["orchestrator.cause"] == "user error"
    assert "HUSH" not in os.environ
    for path in (tmp_path / "runs").rglob("*"):
        assert not path.is_file() or b"correct-horse" not in path.read_bytes(), path
    assert b"correct-horse" not in (tmp_path / "mlflow.db").read_bytes()


@pytest.mark.slow
def test_a_stop_request_saves_and_the_same_spec_goes_on(
    ray_cluster: str, tmp_path: Path, flaky_model: Path
) -> None:
    hurry = tmp_path / "hurry"
    sections: dict[str, Any] = {
        "model": {"name": "flaky:Slow", "args": {"hurry": str(hurry)}},
        "resources": {"num_workers": 2},
        "train": {"max_epochs": 4},
    }
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path, **sections)))
    thread.start()
    stopping = wait_for_step(Folder.at(tmp_path / "runs"), 5, timeout_s=120)
    stopping.request_stop()
    thread.join(60)
    (stopped,) = results
    assert (stopped.status, stopped.exit_code) == ("STOPPED", 143)
    assert mlflow_run(stopped).info.status == "KILLED"
    (newest, *_) = sorted(
        (tmp_path / "runs" / "small-1" / "checkpoints").glob("step-*/manifest.json"), reverse=True
    )
    saved = int(newest.parent.name.removeprefix("step-"))
    assert 5 < saved < 104
    assert f"saved at step {saved}" in stopped.verdict.reason

    hurry.touch()
    resumed = run(tmp_path, **sections)
    assert (resumed.run, resumed.resumed, resumed.status) == ("small-1", True, "SUCCEEDED")
    assert resumed.mlflow_run_id == stopped.mlflow_run_id
    assert mlflow_run(resumed).info.status == "FINISHED"
    history = MlflowClient(resumed.tracking_uri).get_metric_history(resumed.mlflow_run_id, "train/loss")
    assert sorted(metric.step for metric in history) == list(range(1, 105))
    straight = run(tmp_path / "straight", **sections)
    for name, tensor in weights(straight).items():
        assert torch.equal(weights(resumed)[name], tensor), name


def wait_for_step(storage: Folder, step: int, timeout_s: float) -> RunFolder:
    """The run `small-1` once it has come so far."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        for found in list_runs(storage, "small"):
            beat = found.read_beat()
            if beat and beat.progress and beat.progress.step > step:
                return found
        time.sleep(0.2)
    raise AssertionError(f"no run came to step {step} in {timeout_s} s")


def test_what_can_never_fit_is_refused(
    ray_cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "NODES_JOIN_S", 1.0)
    with pytest.raises(Infeasible, match=r"1000 CPU.*num_workers"):
        run(
            tmp_path, resources={"num_workers": 10, "resources_per_worker": {"CPU": 100}}, address=ray_cluster
        )
    assert not (tmp_path / "runs" / "small-1").exists()


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_run_whose_output_cannot_be_written_comes_to_its_end(tmp_path: Path) -> None:
    spec, storage = Path(__file__).parents[2] / "jobs" / "linear_regression.yaml", tmp_path / "runs"
    command = [sys.executable, "-m", "orchestrator", "run", str(spec), "--inline", f"storage={storage}"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "train.max_epochs=3"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 0, done.stderr
    (run_folder,) = list_runs(Folder.at(storage))
    verdict = run_folder.read_verdict()
    assert verdict is not None
    assert verdict.status == "SUCCEEDED"


SLOW_TORCH = """
import sys, time
import orchestrator.data.preparing.build  # else its import may happen to wait for torch's

class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "torch._tensor":
            time.sleep(5)

sys.meta_path.insert(0, Slow())
"""
READER = """
import sys
import pyarrow as pa

def rows():
    # As SciPy's functions do, which ask whether an array is one of torch's.
    torch = sys.modules.get("torch")
    assert torch is None or torch.Tensor
    return pa.table({"x": [float(i) for i in range(40)], "y": [2.0 * i for i in range(40)]})
"""


@pytest.mark.slow
def test_no_library_meets_a_torch_that_is_half_loaded(ray_cluster: str, tmp_path: Path) -> None:
    """torch is loaded while Ray starts, but not beside the preparation of the data."""
    (tmp_path / "reader.py").write_text(READER)
    (tmp_path / "sitecustomize.py").write_text(SLOW_TORCH)
    spec = {
        "name": "half",
        "storage": str(tmp_path / "runs"),
        "data": {"source": {"kind": "python", "function": "reader:rows"}, "target": "y"},
        "model": {"name": "linear"},
        "train": {"max_epochs": 1, "global_batch_size": 8},
    }
    (tmp_path / "half.yaml").write_text(yaml.safe_dump(spec))
    ours = Path(orchestrator.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", "run", str(tmp_path / "half.yaml"), "--address", ray_cluster],
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
        env={**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ours}"},
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)],
)
def test_a_signal_stops_the_command_and_it_saves(tmp_path: Path, number: int, code: int) -> None:
    spec = Path(__file__).parents[2] / "jobs" / "linear_regression.yaml"
    command = [
        sys.executable,
        "-m",
        "orchestrator",
        "run",
        str(spec),
        "--inline",
        f"storage={tmp_path / 'runs'}",
    ]
    with subprocess.Popen(
        [*command, "train.max_epochs=100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        output = ""
        for line in process.stdout:
            output += line
            if line.startswith("epoch "):
                process.send_signal(number)
                break
        output += process.stdout.read()
    assert process.returncode == code, output
    assert "verdict: STOPPED" in output.splitlines()[-1]
    (stopped,) = list_runs(Folder.at(tmp_path / "runs"))
    verdict = stopped.read_verdict()
    assert verdict is not None
    assert verdict.exit_code == code
    assert "saved at step" in verdict.reason
    assert list((tmp_path / "runs").glob("*/checkpoints/step-*/manifest.json"))
