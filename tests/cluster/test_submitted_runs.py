"""A whole run as a Ray job, by `ray job submit` and by `orchestrator submit`: same result, codes, stop."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

import orchestrator
from orchestrator.runners.submission import jobs
from orchestrator.runs.folder import RunFolder, list_runs
from orchestrator.storage import Folder
from tests.cluster.conftest import Head

SPEC = """
name: shipped
data: {source: {kind: sklearn, name: digits}, target: label, transforms: [{kind: standardize}]}
model: {name: "my_net:Net", args: {hidden: 16}}
train: {max_epochs: 2, global_batch_size: 50, optimizer: {kind: adamw, lr: 0.01}}
resources: {num_workers: 2, resources_per_worker: {CPU: 0.5}}
failure: {stop_grace: 20s}
mlflow: {registered_model_name: shipped}
"""
NET = '''
import os, time
import torch


class Net(torch.nn.Module):
    """The user's own network, in the working directory that travels with the job."""

    def __init__(self, num_outputs, hidden):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, num_outputs)
        )

    def forward(self, images):
        if self.training:
            time.sleep(float(os.environ.get("PAUSE_S", "0")))
        return self.layers(images)
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's project folder, which is the working directory, and storage beside it."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "job.yaml").write_text(SPEC)
    (folder / "my_net.py").write_text(NET)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ORCHESTRATOR_STORAGE", str(tmp_path / "runs"))
    return folder


def newest_run(tmp_path: Path) -> RunFolder:
    return list_runs(Folder.at(tmp_path / "runs"), "shipped")[-1]


@pytest.mark.slow
def test_ray_job_submit_gives_what_a_local_run_gives(ray_head: Head, project: Path, tmp_path: Path) -> None:
    local = orchestrator.run("job.yaml", inline=True, quiet=True, storage=str(tmp_path / "local" / "runs"))
    env = {"env_vars": {"ORCHESTRATOR_STORAGE": str(tmp_path / "runs"), "PYTHONPATH": _search_path()}}
    done = subprocess.run(
        [
            sys.executable, "-m", "ray.scripts.scripts", "job", "submit", "--address", ray_head.address,
            "--working-dir", ".", "--runtime-env-json", json.dumps(env),
            "--", sys.executable, "-m", "orchestrator", "run", "job.yaml",
        ],
        capture_output=True, text=True, check=False, timeout=240,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict: SUCCEEDED shipped-1" in done.stdout
    run = newest_run(tmp_path)
    result = run.read_result()
    assert result is not None
    assert result["metrics"]["test/loss"] == pytest.approx(local.metrics["test/loss"], rel=1e-4)
    assert result["world_size"] == 2
    record = run.read_record()
    assert record is not None
    assert record.submission_id
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_run(record.mlflow_run_id).data.tags["mlflow.source.type"] == "JOB"
    assert client.get_model_version("shipped", "1").run_id == record.mlflow_run_id


@pytest.mark.slow
def test_a_submitted_run_is_stopped_with_its_state_saved_and_goes_on(
    ray_head: Head, project: Path, tmp_path: Path
) -> None:
    submit = [sys.executable, "-m", "orchestrator", "submit", "job.yaml", "runtime_env.env_vars.PAUSE_S='0.2'",
              "--address", ray_head.address]  # fmt: skip
    first = subprocess.run(
        [*submit, "--no-follow", "--submission-id", "shipped-first"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert first.returncode == 0, first.stdout + first.stderr
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        status = jobs.job_status(ray_head.address, "shipped-first")
        if status["progress"] and status["progress"]["step"] >= 3:
            break
        assert status["state"] in ("PENDING", "RUNNING"), status
        time.sleep(0.5)
    jobs.stop_job(ray_head.address, "shipped-first")
    assert jobs.wait_job(ray_head.address, "shipped-first", timeout_s=60) == 143
    run = newest_run(tmp_path)
    verdict, record = run.read_verdict(), run.read_record()
    assert verdict is not None
    assert record is not None
    assert verdict.status == "STOPPED"
    assert "saved at step" in verdict.reason
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    assert client.get_run(record.mlflow_run_id).info.status == "KILLED"

    # The same job again, quick this time (env_vars are no part of a run's identity), ends what was begun.
    submit[5] = "runtime_env.env_vars.PAUSE_S='0'"
    second = subprocess.run(submit, capture_output=True, text=True, check=False, timeout=240)
    assert second.returncode == 0, second.stdout + second.stderr
    assert "resuming shipped-1" in second.stdout
    assert client.get_run(record.mlflow_run_id).info.status == "FINISHED"
    steps = [metric.step for metric in client.get_metric_history(record.mlflow_run_id, "train/loss")]
    assert sorted(steps) == list(range(1, 53))


def _search_path() -> str:
    return os.pathsep.join(path for path in sys.path if path)
