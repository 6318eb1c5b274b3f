"""`orchestrator ui`: the way to MLflow's server, and one real server that leaves nothing behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.cli.ui import server_command
from orchestrator.errors import UsageError


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that something listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_server_of_its_own_is_only_pointed_at() -> None:
    result = CliRunner().invoke(app, ["ui", "--tracking-uri", "https://me:secret@mlflow.example/"])
    assert result.exit_code == 0
    assert "https://mlflow.example/#/experiments?workflowType=machine_learning" in result.output
    assert "secret" not in result.output


def test_a_port_in_use_names_a_free_one(taken: int, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["ui", "--port", str(taken), "--storage", str(tmp_path / "runs")])
    assert isinstance(result.exception, UsageError)
    suggested = int(result.exception.mend.rsplit(" ", 1)[1])
    assert suggested > taken
    socket.create_server(("127.0.0.1", suggested)).close()
    assert not (tmp_path / "mlflow.db").exists()


def test_a_foreign_host_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["ui", "--host", "198.51.100.7", "--storage", str(tmp_path / "runs")])
    assert isinstance(result.exception, UsageError)
    assert "cannot listen on 198.51.100.7" in str(result.exception)


def test_only_the_names_of_this_machine_are_let_in(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    assert "--allowed-hosts" not in server_command(uri, "127.0.0.1", 5000)
    command = server_command(uri, "0.0.0.0", 5000)
    hosts = command[command.index("--allowed-hosts") + 1].split(",")
    origins = command[command.index("--cors-allowed-origins") + 1].split(",")
    assert f"{socket.gethostname()}:5000" in hosts
    assert f"http://{socket.gethostname()}:5000" in origins
    assert "*" not in hosts + origins
    assert not any("0.0.0.0" in name for name in hosts + origins)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_server_shows_the_training_view_and_goes_at_once(tmp_path: Path, number: signal.Signals) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "orchestrator", "ui", "--port", str(port)],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        link = process.stdout.readline().strip()
        servers = psutil.Process(process.pid).children(recursive=True)
        with urllib.request.urlopen(link.split("#")[0], timeout=10) as page:
            assert b"MLflow" in page.read()
        process.send_signal(number)
        assert process.wait(timeout=30) == 128 + number
    assert link == f"http://127.0.0.1:{port}/#/experiments?workflowType=machine_learning"
    assert servers
    assert not any(server.is_running() for server in servers)
    assert (tmp_path / "mlflow.db").is_file()
