"""A real MLflow server that is killed in the middle of a run, and comes back."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from orchestrator.records import Point
from orchestrator.tracking import LogModel, StartRun, Tracker
from orchestrator.tracking.mlflow_sink import MlflowSink, connect

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning"),
]


@contextmanager
def server(folder: Path, port: int) -> Iterator[str]:
    """An MLflow server in its own process group, killed as a whole: its workers would outlive it."""
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", "127.0.0.1"),
        *("--port", str(port), "--backend-store-uri", f"sqlite:///{folder}/server.db"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(address, process, folder / "server.log")
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait_until_healthy(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()[-2000:]
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise TimeoutError(log.read_text()[-2000:])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def points(steps: range) -> list[Point]:
    return [
        Point(key, step / 7, step, 1000 + step) for step in steps for key in ("train/loss", "train/accuracy")
    ]


@pytest.mark.slow
def test_a_server_killed_in_the_middle_loses_and_doubles_nothing(tmp_path: Path) -> None:
    port = free_port()
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "weights").write_text("1")
    journal = tmp_path / "tracking"
    with server(tmp_path, port) as address:
        tracker = Tracker.open(journal, MlflowSink(address), interval_s=0.05)
        tracker.start_run(StartRun("digits", "digits-1", params={"lr": 0.1}))
        run_id = tracker.wait_for_run(60)
        assert run_id is not None
        for step in range(100):
            tracker.log_points(points(range(step, step + 1)))
    # Dead by SIGKILL, and surely with something under way: the run does not notice.
    for step in range(100, 500):
        tracker.log_points(points(range(step, step + 1)))
    tracker.log_artifact(bundle / "weights", "files")
    tracker.log_model(LogModel(str(bundle), "model", "some_loader", "digits", pip_requirements=("numpy",)))
    tracker.end_run("SUCCEEDED")
    assert not tracker.flush(0.5)
    assert "127.0.0.1" in tracker.problem

    with server(tmp_path, port) as address:
        assert tracker.close(90), tracker.problem
        assert tracker.refused == []
        # A replay of everything, as after a crash that lost the state, changes nothing.
        (journal / "state.json").unlink()
        again = Tracker.open(journal, MlflowSink(address))
        assert again.close(60), again.problem
        assert again.run_id == run_id

        client = connect(address)
        (experiment,) = [found for found in client.search_experiments() if found.name == "digits"]
        (run,) = client.search_runs([experiment.experiment_id])
        assert run.info.run_id == run_id
        assert run.info.status == "FINISHED"
        found = [
            Point(key, metric.value, metric.step, metric.timestamp)
            for key in ("train/accuracy", "train/loss")
            for metric in client.get_metric_history(run_id, key)
        ]
        assert sorted(found, key=lambda point: (point.key, point.step)) == sorted(
            points(range(500)), key=lambda point: (point.key, point.step)
        )
        assert [entry.path for entry in client.list_artifacts(run_id, "files")] == ["files/weights"]
        (version,) = client.search_model_versions("name = 'digits'")
        assert version.run_id == run_id
        (model,) = client.search_logged_models([experiment.experiment_id])
        (note,) = json.loads(model.tags["mlflow.modelVersions"])
        assert (note["name"], str(note["version"])) == ("digits", version.version)
