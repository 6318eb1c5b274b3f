"""A real Ray head with its dashboard: one per test session, on its own ports and temporary folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests


@dataclass(frozen=True)
class Head:
    """Where the head answers: `address` is the dashboard and Jobs API, `gcs` what `ray.init` takes."""

    address: str
    gcs: str
    folder: Path


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """A folder for Ray: paths of sockets are limited to 107 characters, and pytest's own are too deep."""
    folder = Path(tempfile.mkdtemp(prefix="orch-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def ray_head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="orch-", dir="/tmp"))
    ports = free_ports(7)
    options = ("port", "dashboard-port", "dashboard-agent-listen-port", "dashboard-agent-grpc-port",
               "metrics-export-port", "runtime-env-agent-port", "ray-client-server-port")  # fmt: skip
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--num-cpus=2",
        "--node-ip-address=127.0.0.1", f"--temp-dir={folder}", "--object-store-memory=200000000",
        "--disable-usage-stats", *(f"--{name}={port}" for name, port in zip(options, ports, strict=True)),
    ]  # fmt: skip
    with (folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=head_environment(), cwd=folder, start_new_session=True
        )
    head = Head(f"http://127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[0]}", folder)
    try:
        wait_until_up(process, head, timeout_s=120)
        yield head
    finally:
        end_with_all_children(process)
        shutil.rmtree(folder, ignore_errors=True)


def head_environment() -> dict[str, str]:
    """This interpreter first on PATH; nothing of the session's own Ray or Python path."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("RAY_", "PYTHONPATH", "MLFLOW_"))
    }
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return {**kept, "PATH": path, "RAY_AUTH_MODE": "disabled"}


def free_ports(count: int) -> list[int]:
    """Free ports above the range that Ray gives to its workers (10002 to 19999)."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]


def wait_until_up(process: subprocess.Popen[bytes], head: Head, timeout_s: float) -> None:
    """Wait until the head's own node is listed: its dashboard answers earlier."""
    deadline = time.monotonic() + timeout_s
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(requests.RequestException, ValueError):
            answer = requests.get(f"{head.address}/api/v0/nodes?detail=1", timeout=2)
            if answer.ok and "ALIVE" in answer.text:
                return
        time.sleep(0.2)
    raise RuntimeError(f"the Ray head did not come up:\n{(head.folder / 'head.log').read_text()[-4000:]}")


def end_with_all_children(process: subprocess.Popen[bytes]) -> None:
    """Stop the head and all that it started, also what has moved to a session of its own."""
    family = [psutil.Process(process.pid)] if process.poll() is None else []
    for parent in list(family):
        family += parent.children(recursive=True)
    process.terminate()
    _, alive = psutil.wait_procs(family, timeout=15)
    for straggler in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            straggler.kill()
    psutil.wait_procs(alive, timeout=5)
    process.wait()
