"""`orchestrator submit` against a real head."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.runners.submission import jobs
from tests.cluster.conftest import Head


def test_submit_follows_the_log_and_exits_as_the_job(
    ray_head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job's own data are not there, so that it ends at once, with the code of a usage error."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(
        "name: no-data\n"
        "data: {source: {kind: csv, path: nothing.csv}, target: y}\n"
        "model: {name: mlp}\n"
        f"storage: {tmp_path}/runs\n"
    )
    result = CliRunner().invoke(app, ["submit", "job.yaml", "--address", ray_head.address])
    assert result.exit_code == 2, result.output
    assert "submitted no-data-20" in result.output
    assert "nothing.csv" in result.output


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_running(ray_head: Head, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "name: patient\n"
        "data: {source: {kind: sklearn, name: digits}, target: target}\n"
        "model: {name: cnn}\n"
        f"storage: {tmp_path}/runs\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "submit", "job.yaml", "--address", ray_head.address],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Running entrypoint"):
            break
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    status = jobs.job_status(ray_head.address, "patient")
    jobs.stop_job(ray_head.address, status["job_id"])

    assert process.returncode == 130, said
    assert f"goes on; stop it with: orchestrator stop {status['job_id']}" in said
    assert "Traceback" not in said
    assert status["state"] == "RUNNING"
    assert jobs.wait_job(ray_head.address, status["job_id"], timeout_s=120) == 143
