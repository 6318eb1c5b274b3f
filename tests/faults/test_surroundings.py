"""What a run leans on goes away for a while: the tracking server, the storage, the space on it, the right time."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.faults.case import STEPS, Case

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
CLOCK = """
import os
import time
from pathlib import Path

right, right_ns, setting = time.time, time.time_ns, Path(os.environ["CLOCK_AHEAD"])
time.time = lambda: right() + int(setting.read_text())
time.time_ns = lambda: right_ns() + int(setting.read_text()) * 10**9
"""
"""A `sitecustomize.py` for Python's clock on the wall to be ahead by so many seconds as a file says.

libfaketime lets the steady clock jump too, as no real one does; told not to, it breaks `time.sleep`.
"""


@contextmanager
def tracking_server(folder: Path, host: str, port: int) -> Iterator[str]:
    """An MLflow server that the nodes reach; killed as a whole."""
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--host", host, "--port", str(port)),
        *("--allowed-hosts", f"{host}:{port}", "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("a") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    address = f"http://{host}:{port}"
    try:
        deadline_s = time.monotonic() + 120
        while True:
            assert process.poll() is None, (folder / "server.log").read_text()[-2000:]
            assert time.monotonic() < deadline_s
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=2):
                    break
            except OSError:
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def finish_like(case: Case, driver: Any, undisturbed: dict[str, Any], *overrides: str) -> None:
    """The run ends by itself as if nothing had happened, or says what was wrong, and the same command goes on."""
    code = driver.wait()
    if code:
        assert code == 1, driver.output()
        assert case.run.read_verdict() is not None, driver.output()
        assert case.verdict.cause in ("hardware", "control plane"), case.verdict
        again = case.start(*overrides)
        assert again.wait() == 0, again.output()
    assert case.result() == undisturbed
    assert sorted(case.steps()) == list(range(1, STEPS + 1))


def test_the_tracking_server_is_gone_for_a_while(case: Case, undisturbed: dict[str, Any]) -> None:
    host = case.cluster.plan.host_address
    with tracking_server(case.root, host, 5000) as address:
        driver = case.start(f"mlflow.tracking_uri={address}")
        case.wait_for_step(12)
    case.wait_for_step(40)  # the run does not wait for it
    with tracking_server(case.root, host, 5000):
        case.hurry()
        assert driver.wait() == 0, driver.output()
        assert "took not everything" not in driver.output()
    assert case.result() == undisturbed


@pytest.mark.parametrize("step", [6, 12])
def test_the_storage_is_gone_for_a_while(case: Case, undisturbed: dict[str, Any], step: int) -> None:
    """With 6 the first validation, which opens its part of the data, falls into that time."""
    driver = case.start()
    case.wait_for_step(step)
    case.cluster.lose_storage()
    time.sleep(4)  # several checkpoints long
    case.cluster.restore_storage()
    case.hurry()
    finish_like(case, driver, undisturbed)


def test_the_disk_is_full_for_a_while(case: Case, undisturbed: dict[str, Any]) -> None:
    driver = case.start()
    case.wait_for_step(12)
    filler = case.cluster.shared / "filler"
    with filler.open("wb") as file:
        try:
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        except OSError:
            pass
    assert shutil.disk_usage(case.cluster.shared).free == 0
    time.sleep(4)
    filler.unlink()
    case.hurry()
    finish_like(case, driver, undisturbed)


def test_the_clock_of_the_driver_jumps(
    case: Case, undisturbed: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    (case.control / "sitecustomize.py").write_text(CLOCK)
    setting = case.control / "ahead"

    def set_clock(ahead_s: int) -> None:
        setting.with_suffix(".new").write_text(str(ahead_s))
        setting.with_suffix(".new").replace(setting)

    set_clock(0)
    with monkeypatch.context() as patched:
        patched.setenv("CLOCK_AHEAD", str(setting))
        patched.setenv("PYTHONPATH", os.pathsep.join([str(case.control), os.environ.get("PYTHONPATH", "")]))
        driver = case.start()
    for jump in (7200, -7200):
        reached = max(case.steps(), default=0) + 12
        case.wait_for_step(reached)
        set_clock(jump)
    case.hurry()
    assert driver.wait() == 0, driver.output()
    assert case.result() == undisturbed
