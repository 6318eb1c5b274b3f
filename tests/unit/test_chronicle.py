"""What a driver writes down of its attempts: at once, for the next driver, and in MLflow (here: in memory)."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.records import Failure, Letter, Point, Progress
from orchestrator.runners.chronicle import Chronicle
from orchestrator.runners.desk import Desk
from orchestrator.runners.watch import Silent, Watch
from orchestrator.runs.folder import RunFolder, RunRecord
from orchestrator.runs.logs import newest_postmortem
from orchestrator.storage import Folder
from orchestrator.tracking.memory import MemoryRun, MemorySink
from orchestrator.tracking.ops import StartRun
from orchestrator.tracking.tracker import Tracker
from tests.unit.s3_case import ACCOUNT, s3_server

KILLED = Failure(rank=1, attempt=1, time_s=0.0, error="the worker was killed", cause="hardware")


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return made(Folder.at(tmp_path / "runs"))


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunFolder]:
    with s3_server() as address:
        for name, value in {
            **ACCOUNT, "AWS_ENDPOINT_URL": f"http://{address}", "HOME": str(tmp_path / "node1"),
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        Folder.at("s3://bucket?allow_bucket_creation=true").create()
        yield made(Folder.at("s3://bucket/runs"))


def made(storage: Folder) -> RunFolder:
    run = RunFolder(storage, "digits", 1)
    run.write_record(RunRecord("digits", 1))
    run.write_spec("name: digits\n")
    return run


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()


@pytest.fixture
def tracker(tmp_path: Path, sink: MemorySink) -> Iterator[Tracker]:
    opened = Tracker.open(tmp_path / "journal", sink, interval_s=0.01)
    opened.start_run(StartRun("digits", "digits-1"))
    yield opened
    opened.close(10)


def recorded(sink: MemorySink, tracker: Tracker) -> MemoryRun:
    assert tracker.flush(20)
    (found,) = sink.runs.values()
    return found


def at(step: int, seconds: float, started: int = 0, saved: int = 0) -> Progress:
    return Progress(1, 9, step, 90, step_seconds=seconds, started_step=started, saved_step=saved)


def test_a_failed_attempt_is_recorded_at_once(run: RunFolder, tracker: Tracker, sink: MemorySink) -> None:
    clock = Clock()
    chronicle = Chronicle(run, tracker, lambda text: text, began_s=990.0, clock=clock)
    logs = run.attempt_logs(1).create()
    logs.write_bytes("rank-1.log", b"last words\n")
    chronicle.workers_ready(2)
    assert not chronicle.attempt_failed(KILLED, "before it had a number")
    chronicle.attempt_began(1)
    chronicle.log_points([Point("train/loss", 0.25, 7, 1)])
    clock.now_s += 20
    chronicle.heard(1, at(10, 15.0, saved=5))
    clock.now_s += 2
    other = Failure(rank=0, attempt=2, time_s=0.0, error="of another attempt", cause="data")
    assert chronicle.attempt_failed(KILLED, "worker killed", failures=[KILLED, other], stacks={0: "frames"})
    assert not chronicle.attempt_failed(KILLED, "told twice")
    chronicle.close()
    found = recorded(sink, tracker)
    assert found.status == "RUNNING"
    names = {
        "verdict.json",
        "environment.json",
        "progress.json",
        "nodes.json",
        "spec.yaml",
        "stacks-rank-0.txt",
    }
    assert found.artifacts == {f"postmortem/attempt-1/{name}" for name in names} | {
        "logs/attempt-1/rank-1.log"
    }
    assert found.tags["orchestrator.attempts"] == "1"
    bundle = newest_postmortem(run)
    assert bundle is not None
    assert bundle.uri == str(run.folder.local_path() / "logs" / "attempt-1" / "postmortem")
    assert bundle.read_json("progress.json")["metrics"] == {"train/loss": 0.25}
    assert bundle.read_json("progress.json")["progress"]["step"] == 10
    assert [failure["error"] for failure in bundle.read_json("verdict.json")["failures"]] == [KILLED.error]

    clock.now_s += 3
    chronicle.workers_ready(1)
    chronicle.heard(1, at(99, 99.0))  # a letter that was long under way
    clock.now_s += 2
    chronicle.heard(2, at(6, 1.0, started=5))
    chronicle.attempt_ended("completed")
    chronicle.attempt_failed(KILLED, "after it was over")
    account = chronicle.account()
    assert account.summary == "23%: 1 restart (worker killed), 5 steps repeated, 6.0 s to recover"
    assert [(row["attempt"], row["world_size"], row["ended"]) for row in account.attempts] == [
        (1, 2, "worker killed"),
        (2, 1, "completed"),
    ]


def test_letters_tell_of_attempts(run: RunFolder, tracker: Tracker) -> None:
    watch = Watch(Silent(), str)
    watch.chronicle = chronicle = Chronicle(run, tracker, str, began_s=0.0)
    watch.desk = desk = Desk(chronicle.log_points, watch.show)
    starting = Progress(0, 9, 0, 0, phase="starting")
    for attempt, progress in [
        (1, starting),
        (1, at(4, 2.0)),
        (2, at(4, 2.0)),
        (1, at(5, 3.0)),
        (3, at(4, 2.0)),
    ]:
        desk.exchange(Letter(0, attempt, 0, (), progress))
    rows = chronicle.account().attempts
    assert [(row["attempt"], row["to_step"], row["ended"]) for row in rows] == [
        (1, 4, "lost"),
        (2, 4, "lost"),
        (3, 4, "running"),
    ]


def test_a_later_driver_goes_on_with_the_ledger(run: RunFolder, tracker: Tracker) -> None:
    clock = Clock()
    first = Chronicle(run, tracker, str, began_s=1000.0, clock=clock)
    first.heard(1, at(10, 0.0))
    clock.now_s += 10
    first.keep()  # and then the driver is killed
    second = Chronicle(run, tracker, str, began_s=clock.now_s, clock=clock)
    second.heard(2, at(11, 0.0))
    assert [row["ended"] for row in second.account().attempts] == ["driver lost", "running"]
    assert second.account().figures["goodput/restarts"] == 1
    assert second.account().figures["goodput/seconds"] == 10


def test_the_ledger_is_written_now_and_then_and_when_an_attempt_ends(
    run: RunFolder, tracker: Tracker
) -> None:
    clock = Clock()
    chronicle = Chronicle(run, tracker, str, began_s=clock.now_s, clock=clock)
    path = run.folder.local_path() / "goodput.json"

    def kept() -> float | None:
        path.unlink(missing_ok=True)
        chronicle.keep()
        return json.loads(path.read_text())["drivers"][0]["seconds"] if path.exists() else None

    seen = []
    for _ in range(8):
        seen.append(kept())
        clock.now_s += 2
    assert seen == [0, None, None, 6, None, None, 12, None]
    chronicle.attempt_began(1)
    chronicle.attempt_ended("completed")
    assert kept() == 16


def test_run_json_names_the_mlflow_run_and_the_attempt_while_the_run_goes_on(
    run: RunFolder, tracker: Tracker
) -> None:
    assert tracker.wait_for_run(20)
    chronicle = Chronicle(run, tracker, str, began_s=0.0)
    chronicle.attempt_began(4)
    chronicle.keep()
    record = run.read_record()
    assert record is not None
    assert (record.attempts, record.mlflow_run_id) == (4, tracker.run_id)
    run.update_record(attempts=9)  # someone else's; nothing new, so nothing is written
    chronicle.keep()
    assert (run.read_record() or record).attempts == 9


def test_storage_that_is_briefly_gone_does_not_lose_the_record(
    run: RunFolder, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.update_record(identity={"hash": "abc"})
    chronicle = Chronicle(run, tracker, str, began_s=0.0)
    chronicle.attempt_began(2)
    with monkeypatch.context() as patch:
        patch.setattr(Folder, "read_json", lambda *_: 1 / 0)
        chronicle.keep()
    record = run.read_record()
    assert record is not None
    assert (record.identity, record.attempts) == ({"hash": "abc"}, 2)


def test_recovery_does_not_wait_for_storage(
    run: RunFolder, tracker: Tracker, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage_answers = threading.Event()
    monkeypatch.setattr(RunFolder, "read_spec", lambda _: (storage_answers.wait(30), "name: digits\n")[1])
    chronicle = Chronicle(run, tracker, str, began_s=0.0)
    for attempt in (1, 2):
        chronicle.attempt_began(attempt)
        chronicle.attempt_failed(KILLED)
    assert newest_postmortem(run) is None
    storage_answers.set()
    chronicle.close()
    newest = newest_postmortem(run)
    assert newest is not None
    assert "attempt-2" in newest.path


def test_logs_in_a_bucket_are_recorded_at_once_too(
    remote: RunFolder, tracker: Tracker, sink: MemorySink
) -> None:
    (remote.logs / "attempt-1").write_bytes("rank-0.log", b"written on another node\n")
    (remote.logs / "attempt-1").write_bytes("driver.log", b"copied half a minute ago\n")
    own = remote.local / "logs" / "attempt-1" / "driver.log"
    own.parent.mkdir(parents=True)
    own.write_text("newest\n")
    chronicle = Chronicle(remote, tracker, str, began_s=0.0)
    for attempt in (1, 2):
        chronicle.attempt_began(attempt)
        chronicle.attempt_failed(KILLED)
    chronicle.close()
    found = recorded(sink, tracker)
    assert {"logs/attempt-1/rank-0.log", "logs/attempt-1/driver.log", "attempts.json"} <= found.artifacts
    assert {"postmortem/attempt-1/verdict.json", "postmortem/attempt-2/verdict.json"} <= found.artifacts
    assert own.read_text() == "newest\n"
    assert remote.postmortem(1).read_json("verdict.json")["culprit"]["error"] == KILLED.error
    assert (remote.local / "recorded" / "attempt-1" / "rank-0.log").read_text() == "written on another node\n"
    assert remote.read_goodput() is not None
    rows = json.loads((remote.local / "attempts.json").read_text())
    assert [row["cause"] for row in rows] == ["hardware", "hardware"]
