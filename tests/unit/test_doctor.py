"""What `orchestrator doctor` finds, with each fault made on purpose."""

from __future__ import annotations

import importlib.metadata
import json
import resource
import shutil
import sqlite3
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.errors import UsageError
from orchestrator.runners.checkup import checks
from orchestrator.runners.checkup.checks import Finding, Places
from orchestrator.runners.checkup.doctor import CHECKS, examine
from orchestrator.storage import Folder

Server = Callable[..., str]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(storage=str(tmp_path / "runs"), tracking_uri=f"sqlite:///{tmp_path}/mlflow.db")


@pytest.fixture
def server() -> Iterator[Server]:
    """Starts a server that answers everything with this date and status."""
    running = []

    def start(date: str | None = None, status: int = 200) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.end_headers()

            def date_time_string(self, timestamp: float | None = None) -> str:
                return date or super().date_time_string(timestamp)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        running.append((server, thread))
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield start
    for server, thread in running:
        server.shutdown()
        thread.join()
        server.server_close()


def only(findings: Iterator[Finding]) -> Finding:
    (finding,) = findings
    return finding


def test_the_tested_versions_are_those_of_the_constraints() -> None:
    lines = (Path(__file__).parents[2] / "constraints.txt").read_text().splitlines()
    pinned = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    assert {name: pinned[name] for name in checks.TESTED} == checks.TESTED


def test_versions_are_compared(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = dict(checks.TESTED)

    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(checks, "TESTED_PYTHONS", (sys.version_info[:2],))
    assert only(checks.packages(places)).level == "ok"
    installed |= {"torch": "2.13.9+cu130"}
    assert only(checks.packages(places)).level == "ok"
    installed |= {"torch": "2.9.0", "ray": "2.59.0"}
    del installed["mlflow"]
    missing, wrong, other = checks.packages(places)
    assert (missing.level, "mlflow" in missing.reason) == ("fail", True)
    assert (wrong.level, "ray 2.59.0" in wrong.reason) == ("fail", True)
    assert (other.level, "torch 2.9.0" in other.reason) == ("warn", True)


def test_storage_is_written_and_left_as_it_was(places: Places, tmp_path: Path) -> None:
    finding = only(checks.storage(places))
    assert finding.level in ("ok", "warn")
    assert "GB free" in finding.reason
    assert list(tmp_path.iterdir()) == []


def test_little_room_is_a_warning(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9, total=10**10))
    finding = only(checks.storage(places))
    assert (finding.level, "1.0 GB free" in finding.reason) == ("warn", True)


def test_a_file_where_the_storage_should_be(places: Places, tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(UsageError, match="is a file"):
        list(checks.storage(places))


def test_storage_that_cannot_be_written(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Folder, "write_bytes", full)
    finding = only(checks.storage(places))
    assert finding.level == "fail"
    assert "No space left" in finding.reason


def test_a_new_store_is_fine_and_not_made(places: Places, tmp_path: Path) -> None:
    assert only(checks.tracking(places)).level == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_store_is_opened(places: Places, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "mlflow.db")
    connection.execute("CREATE TABLE runs (run_uuid TEXT)")
    connection.execute("INSERT INTO runs VALUES ('a')")
    connection.commit()
    connection.close()
    finding = only(checks.tracking(places))
    assert (finding.level, finding.reason) == ("ok", f"{tmp_path}/mlflow.db opens, 1 runs")


def test_a_damaged_store_fails(places: Places, tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
    finding = only(checks.tracking(places))
    assert (finding.level, "mlflow.db" in finding.reason) == ("fail", True)


def test_a_tracking_server_is_asked(places: Places, server: Server) -> None:
    assert only(checks.tracking(Places(places.storage, server()))).level == "ok"
    assert only(checks.tracking(Places(places.storage, server(status=500)))).level == "fail"
    down = only(checks.tracking(Places(places.storage, "http://me:hidden@127.0.0.1:9")))
    assert down.level == "fail"
    assert "hidden" not in down.reason


@pytest.mark.parametrize(
    ("mode", "has_token", "level"),
    [
        (None, False, "ok"),
        (None, True, "warn"),
        ("disabled", True, "ok"),
        ("token", True, "ok"),
        ("token", False, "fail"),
        ("on", False, "fail"),
    ],
)
def test_the_trap_of_the_auth_mode(
    places: Places,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str | None,
    has_token: bool,
    level: str,
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    if mode is not None:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "auth_token"))
    if has_token:
        (tmp_path / "auth_token").write_text("t")
    assert only(checks.auth(places)).level == level


def test_small_shared_memory_is_a_warning(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "memory_total_bytes", lambda: 100 * 10**9)
    monkeypatch.setattr(Path, "is_dir", lambda _: True)
    for total, level in ((64_000_000, "warn"), (31 * 10**9, "ok")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, total=total: SimpleNamespace(total=total))
        assert only(checks.shared_memory(places)).level == level


@pytest.mark.parametrize(
    ("limits", "level"),
    [((1024, 524288), "warn"), ((65536, 65536), "ok"), ((resource.RLIM_INFINITY,) * 2, "ok")],
)
def test_few_open_files_are_a_warning(
    places: Places, monkeypatch: pytest.MonkeyPatch, limits: tuple[int, int], level: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits)
    finding = only(checks.open_files(places))
    assert finding.level == level
    assert "ulimit -n 65536" in finding.mend or level == "ok"


def test_clocks_that_differ_are_a_warning(places: Places, server: Server, tmp_path: Path) -> None:
    agreeing = only(checks.clock(Places(places.storage, server())))
    apart = only(
        checks.clock(Places(places.storage, places.tracking_uri, server("Sat, 01 Jan 2022 00:00:00 GMT")))
    )
    assert (agreeing.level, "storage, tracking server" in agreeing.reason) == ("ok", True)
    assert (apart.level, "cluster -" in apart.reason) == ("warn", True)
    assert list(tmp_path.iterdir()) == []


def test_every_check_is_alone(places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that raises, one that does its work, one that takes too long, one whose process dies."""
    broken, fine = examine(places, names=["no such check", "packages"])
    assert (broken.level, "KeyError" in broken.reason) == ("fail", True)
    assert (fine.check, "Python" in fine.reason) == ("packages", True)
    late = only(iter(examine(places, names=["storage"], timeout_s=0.001)))
    assert (late.level, "within 0.001 s" in late.reason) == ("fail", True)
    dies = tmp_path / "python"
    dies.write_text("#!/bin/sh\necho 'illegal instruction' >&2\nkill -9 $$\n")
    dies.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dies))
    dead = only(iter(examine(places, names=["torch"])))
    assert (dead.level, dead.reason) == ("fail", "the check itself ended by signal 9: illegal instruction")


@pytest.mark.slow
def test_two_processes_reduce_here(places: Places) -> None:
    first, *_ = examine(places, names=["collectives"], timeout_s=120)
    assert (first.level, "GB/s" in first.reason) == ("ok", True), first


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_the_exit_code_tells_of_failures_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: checks.Level, code: int
) -> None:
    found = [Finding("clock", "ok", "on time"), Finding("ray", level, "so so", "do this")]
    monkeypatch.setattr("orchestrator.runners.checkup.doctor.examine", lambda _: found)
    arguments = ["doctor", "--storage", str(tmp_path)]
    text = CliRunner().invoke(app, arguments)
    data = CliRunner().invoke(app, [*arguments, "-o", "json"])
    assert (text.exit_code, data.exit_code) == (code, code)
    assert "so so" in text.output
    assert ("to mend: do this" in text.output) == (level != "ok")
    assert [finding["level"] for finding in json.loads(data.output)] == ["ok", level]


def test_all_checks_have_a_name_to_be_found_by() -> None:
    assert list(CHECKS) == [
        *("packages", "torch", "devices", "collectives", "storage", "tracking", "ray", "auth"),
        *("shared memory", "open files", "clock"),
    ]
