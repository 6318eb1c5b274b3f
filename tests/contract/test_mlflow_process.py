"""The process that records in MLflow for a driver: it is not in the way, is replaced, and never outlives the driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from orchestrator.records import Point
from orchestrator.tracking.mlflow_sink import MlflowSink, connect, mlflow_process
from orchestrator.tracking.mlflow_sink.process import MlflowProcess
from orchestrator.tracking.ops import LogMetrics, RunState, SinkUnavailable, StartRun
from tests.faults.case import empty_store

START = StartRun("experiment", "run-1", key="run-1.key", time_ms=1)
DRIVER = """
import os, sys, time
from orchestrator.tracking.mlflow_sink import mlflow_process
from orchestrator.tracking.ops import RunState, StartRun

with mlflow_process(sys.argv[1]) as sink:
    sink.apply(StartRun("experiment", "run-1", key="run-1.key", time_ms=1), RunState())
    print(sink._process.pid, flush=True)
    time.sleep(600)
"""


@pytest.fixture
def uri(tmp_path: Path) -> str:
    (tmp_path / "mlflow.db").write_bytes(empty_store())
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def sink(uri: str) -> Iterator[MlflowProcess]:
    with mlflow_process(uri) as sink:
        yield sink


def server_of(sink: MlflowProcess) -> psutil.Process:
    assert sink._process is not None
    return psutil.Process(sink._process.pid)


def points(uri: str, state: RunState) -> list[tuple[int, float]]:
    assert state.run_id is not None
    history = connect(uri).get_metric_history(state.run_id, "train/loss")
    return sorted((point.step, point.value) for point in history)


def loss(step: int) -> LogMetrics:
    return LogMetrics((Point("train/loss", 1 / step, step, step),))


def test_one_that_was_killed_is_replaced_and_nothing_is_lost(sink: MlflowProcess, uri: str) -> None:
    state = sink.apply(START, RunState())
    first = server_of(sink)
    first.send_signal(signal.SIGINT)  # Ctrl-C is the driver's
    first.send_signal(signal.SIGTERM)
    state = sink.apply(loss(1), state)
    assert server_of(sink).pid == first.pid
    first.kill()
    with pytest.raises(SinkUnavailable, match="ended with code -9"):
        sink.apply(loss(2), state)
    state = sink.apply(loss(2), state)
    assert server_of(sink).pid != first.pid
    assert points(uri, state) == [(1, 1.0), (2, 0.5)]


def test_a_password_in_the_address_is_not_on_its_command_line(sink: MlflowProcess, uri: str) -> None:
    sink.apply(START, RunState())
    assert uri not in " ".join(server_of(sink).cmdline())


def test_it_makes_way_once_the_run_has_begun(sink: MlflowProcess) -> None:
    sink.apply(START, RunState())
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    assert server_of(sink).nice() > usual


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it ends with its next answer")
def test_it_ends_with_a_killed_driver(uri: str) -> None:
    with subprocess.Popen([sys.executable, "-c", DRIVER, uri], stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        server = psutil.Process(int(driver.stdout.readline()))
        driver.kill()
        driver.wait()
        server.wait(20)
        assert not server.is_running()


def test_it_is_gone_after_the_block_even_where_it_hangs(uri: str) -> None:
    with mlflow_process(uri) as sink:
        sink.apply(START, RunState())
        server = server_of(sink)
        server.suspend()
    assert not server.is_running()
    with pytest.raises(SinkUnavailable, match="has ended"):
        sink.apply(loss(1), RunState())


def test_files_of_the_working_directory_are_not_in_its_way(
    uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path)
    with mlflow_process(uri) as sink:
        assert sink.apply(START, RunState()).run_id


def test_both_ways_give_the_same_state(sink: MlflowProcess, uri: str) -> None:
    state = sink.apply(START, RunState())
    assert MlflowSink(uri).apply(START, RunState()) == state
