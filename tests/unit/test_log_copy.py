"""Logs written on this machine are found in a bucket, served by a real S3 server (moto's)."""

from __future__ import annotations

import contextlib
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.monitor import log_copy
from orchestrator.monitor.log_copy import copied_log, log_content
from orchestrator.runs.folder import RunFolder, RunRecord
from orchestrator.storage import Folder
from tests.unit.s3_case import ACCOUNT, s3_server

SOON = {"first_s": 0.01, "every_s": 0.05}


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with s3_server() as found:
        yield f"http://{found}"


@pytest.fixture
def run(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunFolder]:
    """A run in a bucket, as one node sees it."""
    for name, value in {**ACCOUNT, "AWS_ENDPOINT_URL": address, "HOME": str(tmp_path / "node1")}.items():
        monkeypatch.setenv(name, value)
    bucket = Folder.at("s3://bucket?allow_bucket_creation=true&allow_bucket_deletion=true").create()
    found = RunFolder(Folder.at("s3://bucket/runs"), "digits", 1)
    found.write_record(RunRecord("digits", 1))
    yield found
    bucket.remove()


def write(run: RunFolder, name: str, text: str) -> None:
    path = run.local / "logs" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


def wait_until(holds: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(1000):
        if holds():
            return
        pause.wait(0.02)
    raise AssertionError("it did not come to pass in 20 s")


def copied(run: RunFolder, name: str) -> str | None:
    attempt, _, file = name.partition("/")
    try:
        return (run.logs / attempt).read_bytes(file).decode()
    except FileNotFoundError:
        return None


def logs(run: RunFolder, *arguments: str) -> str:
    result = CliRunner().invoke(app, ["logs", run.label, "--storage", "s3://bucket/runs", *arguments])
    assert result.exit_code == 0, result.exception
    return result.output


def test_logs_outlive_their_node(run: RunFolder) -> None:
    with copied_log(run.local / "logs", run.logs, "attempt-2/rank-1.log", **SOON):
        write(run, "attempt-2/rank-1.log", "beginning\n")
        wait_until(lambda: copied(run, "attempt-2/rank-1.log") == "beginning\n")
        write(run, "attempt-2/rank-1.log", "middle\n")
        wait_until(lambda: copied(run, "attempt-2/rank-1.log") == "beginning\nmiddle\n")
        write(run, "attempt-2/rank-1.log", "end\n")
    with copied_log(run.local / "logs", run.logs, "attempt-1/driver.log", first_s=60):
        write(run, "attempt-1/driver.log", "the driver\n")
    shutil.rmtree(run.local)
    assert logs(run, "--rank", "1") == "beginning\nmiddle\nend\n"
    assert logs(run, "--attempt", "1") == "the driver\n"


def test_what_a_killed_process_left_is_copied_by_the_next_one_on_its_node(run: RunFolder) -> None:
    write(run, "attempt-1/rank-0.log", "copied in time\n")
    with copied_log(run.local / "logs", run.logs, "attempt-1/rank-0.log"):
        pass
    write(run, "attempt-1/rank-0.log", "last words\n")
    write(run, "attempt-2/rank-3.log", "never copied\n")
    write(run, "attempt-3/rank-1.log", "another rank of this attempt, which copies its own\n")
    with copied_log(run.local / "logs", run.logs, "attempt-3/rank-0.log"):
        pass
    assert copied(run, "attempt-1/rank-0.log") == "copied in time\nlast words\n"
    assert copied(run, "attempt-2/rank-3.log") == "never copied\n"
    assert copied(run, "attempt-3/rank-1.log") is None


def test_storage_that_fails_is_tried_again_and_disturbs_nobody(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_bytes, failures = Folder.write_bytes, iter([OSError("gone"), ValueError("odd"), OSError("gone")])

    def sometimes(folder: Folder, name: str, data: bytes) -> None:
        for error in failures:
            raise error
        write_bytes(folder, name, data)

    monkeypatch.setattr(Folder, "write_bytes", sometimes)
    with copied_log(run.local / "logs", run.logs, "attempt-1/rank-0.log", **SOON):
        write(run, "attempt-1/rank-0.log", "all the same\n")
        wait_until(lambda: copied(run, "attempt-1/rank-0.log") is not None)
    assert copied(run, "attempt-1/rank-0.log") == "all the same\n"


@pytest.mark.parametrize("failed", [False, True])
def test_the_end_does_not_wait_long_for_storage_that_hangs(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, failed: bool
) -> None:
    block_left, answers = threading.Event(), []
    monkeypatch.setattr(log_copy, "HURRY_S" if failed else "LAST_S", 0.05)
    monkeypatch.setattr(Folder, "write_bytes", lambda *_: answers.append(block_left.wait(30)))
    write(run, "attempt-1/rank-0.log", "x")
    with (
        contextlib.suppress(KeyError),
        copied_log(run.local / "logs", run.logs, "attempt-1/rank-0.log"),
    ):
        if failed:
            raise KeyError
    block_left.set()
    wait_until(lambda: bool(answers))
    assert answers == [True]  # the storage still hung when the block was left


def test_a_log_in_a_folder_of_this_machine_is_left_alone(tmp_path: Path) -> None:
    before = threading.active_count()
    with copied_log(tmp_path, Folder.at(tmp_path), "attempt-1/rank-0.log"):
        assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []


def test_of_a_long_log_the_beginning_and_the_end_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_copy, "MOST_BYTES", 10)
    monkeypatch.setattr(log_copy, "HEAD_BYTES", 4)
    path = tmp_path / "rank-0.log"
    path.write_bytes(b"0123456789")
    assert log_content(path) == b"0123456789"
    path.write_bytes(b"0123456789ABCDEF")
    head, told, tail = log_content(path).decode().split("\n")
    assert (head, tail) == ("0123", "ABCDEF")
    assert "6 bytes" in told


def test_runs_of_one_label_in_two_places_do_not_share_a_cache(
    run: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = RunFolder(Folder.at("s3://bucket/others"), "digits", 1)
    assert run.local != other.local
    assert run.local.is_relative_to(tmp_path / "node1")
