"""A disk that is full or gone: no point is lost or recorded twice, and nothing ends that should go on."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from orchestrator.engine.link import WorkerLink
from orchestrator.errors import TrackingError
from orchestrator.records import Letter, Point
from orchestrator.runners.desk import Desk
from orchestrator.tracking.journal import Journal
from orchestrator.tracking.memory import MemorySink
from orchestrator.tracking.ops import LogMetrics, SetTags, StartRun
from orchestrator.tracking.tracker import Tracker
from tests.unit.small_disk import SmallDisk, small_disk

NO_ROOM = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", "1m") as mounted:
        yield mounted


class Once:
    """Waits for what is told; keeps all of it."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.came = threading.Event()

    def __call__(self, text: str) -> None:
        self.told.append(text)
        self.came.set()


def losses(steps: range) -> list[Point]:
    return [Point("train/loss", 1 / step, step, 1000 + step) for step in steps]


def test_on_a_full_disk_points_stay_with_the_worker_and_arrive_once(disk: SmallDisk) -> None:
    sink, told = MemorySink(), Once()
    tracker = Tracker.open(disk.folder / "tracking", sink, interval_s=0.01)
    tracker.start_run(StartRun("digits", "digits-1"))
    desk = Desk(tracker.log_points, on_notice=told)
    link = WorkerLink(channel=desk, interval_s=0.005).start()
    link.log_points(losses(range(1, 51)))
    assert tracker.wait_for_run(20)
    disk.fill()
    link.log_points(losses(range(51, 3001)))
    assert told.came.wait(20)
    link.log_points(losses(range(3001, 3101)))
    kept = {point.step for point in link.unacknowledged()}
    assert set(range(51, 3101)) <= kept  # these a checkpoint would carry
    disk.free()
    assert link.close(20)
    assert tracker.close(20)
    assert len(told.told) == 1
    assert "No space left on device" in told.told[0]
    (run,) = sink.runs.values()
    assert sorted(run.points.values(), key=lambda point: point.step) == losses(range(1, 3101))


def test_shipping_goes_on_when_the_disk_has_room_again(disk: SmallDisk) -> None:
    """The server takes the operations; how far it is cannot be written down for a while."""
    sink = MemorySink()
    tracker = Tracker.open(disk.folder / "tracking", sink, interval_s=60)
    tracker.start_run(StartRun("digits", "digits-1"))
    tracker.log_points(losses(range(1, 301)))
    disk.fill()
    assert not tracker.flush(0.5)
    assert "No space left on device" in tracker.problem
    disk.free()
    tracker.log_points(losses(range(301, 401)))
    assert tracker.close(40)
    (run,) = sink.runs.values()
    assert list(run.points.values()) == losses(range(1, 401))


def test_half_a_line_never_spoils_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk takes half of a line and then goes away altogether, so that the half cannot be cut off at once."""
    journal = Journal(tmp_path)
    journal.append(SetTags({"a": "1"}))
    write = os.write

    def half(handle: int, data: bytes) -> int:
        if len(data) < 20:
            raise NO_ROOM
        return write(handle, data[: len(data) // 2])

    def gone(*args: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("os.write", half)
        patch.setattr("os.ftruncate", gone)
        with pytest.raises(TrackingError, match="make room"):
            journal.append(SetTags({"b": "2"}))
    assert (tmp_path / "journal.jsonl").stat().st_size > journal.size_bytes
    journal.append(SetTags({"c": "3"}))
    assert list(journal.operations()) == [SetTags({"a": "1"}), SetTags({"c": "3"})]
    journal.close()


def test_a_closed_journal_writes_into_no_other_file(tmp_path: Path) -> None:
    """The number of its file belongs to another one by then."""
    journal = Journal(tmp_path / "tracking")
    journal.close()
    with (tmp_path / "other").open("wb") as other:
        other.write(b"precious")
        with pytest.raises(TrackingError, match="is closed"):
            journal.append(SetTags({"a": "1"}))
    assert (tmp_path / "other").read_bytes() == b"precious"


class _Shaky:
    """The shipper's `save_shipped`, which fails so many times."""

    def __init__(self, failures: int, monkeypatch: pytest.MonkeyPatch) -> None:
        from orchestrator.tracking import shipper

        self._failures, self._save = failures, shipper.save_shipped
        monkeypatch.setattr(shipper, "save_shipped", self)
        monkeypatch.setattr(shipper, "back_off_s", lambda failures: 0.01)

    def __call__(self, *args: object, **options: object) -> None:
        if self._failures:
            self._failures -= 1
            raise NO_ROOM
        self._save(*args, **options)  # type: ignore[arg-type]


def test_a_state_that_cannot_be_saved_ships_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _Shaky(3, monkeypatch)
    applied: list[object] = []

    class Counting(MemorySink):
        def apply(self, op, state):  # type: ignore[no-untyped-def]
            applied.append(op)
            return super().apply(op, state)

    tracker = Tracker.open(tmp_path, Counting(), interval_s=0.01)
    tracker.start_run(StartRun("digits", "digits-1"))
    tracker.log_points(losses(range(1, 11)))
    tracker.end_run("SUCCEEDED")
    assert tracker.close(20)
    assert [type(op).__name__ for op in applied] == ["StartRun", "LogMetrics", "EndRun"]


def test_what_is_said_once_waits_for_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("orchestrator.tracking.recorder.time.sleep", pauses.append)
    sink = MemorySink()
    tracker = Tracker.open(tmp_path, sink)
    tracker.start_run(StartRun("digits", "digits-1"))
    fsync, failures = os.fsync, [NO_ROOM] * 3

    def shaky(handle: int) -> None:
        if threading.current_thread() is threading.main_thread() and failures:
            raise failures.pop()
        fsync(handle)

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", shaky)
        tracker.set_tags({"a": "1"})
        failures += [NO_ROOM] * 99
        with pytest.raises(TrackingError, match="make room"):
            tracker.set_tags({"b": "2"})
    assert pauses[:3] == [0.5, 1.0, 2.0]
    assert tracker.close(20)
    (run,) = sink.runs.values()
    assert "a" in run.tags
    assert "b" not in run.tags


def test_a_tag_about_a_bad_value_survives_a_failed_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = MemorySink()
    tracker = Tracker.open(tmp_path, sink, interval_s=60)
    tracker.start_run(StartRun("digits", "digits-1"))
    append, bad = Journal.append, [True]

    def shaky(journal: Journal, op: object, child: str = "") -> None:
        if isinstance(op, LogMetrics) and bad:
            bad.clear()
            raise TrackingError("no room")
        append(journal, op, child)  # type: ignore[arg-type]

    monkeypatch.setattr(Journal, "append", shaky)
    point = Point("train/loss", float("inf"), 3, 1003)
    with pytest.raises(TrackingError):
        tracker.log_points([point])
    tracker.log_points([point])
    assert tracker.close(20)
    (run,) = sink.runs.values()
    assert [(p.step, p.value != p.value) for p in run.points.values()] == [(3, True)]
    assert any("inf at step 3" in value for value in run.tags.values())


def test_a_desk_that_cannot_record_acknowledges_nothing_and_tells_once() -> None:
    recorded: list[Point] = []
    trouble = [TrackingError("no room"), OSError("gone")]

    def record(points: Sequence[Point]) -> None:
        if trouble:
            raise trouble.pop()
        recorded.extend(points)

    told: list[str] = []
    desk = Desk(record, on_notice=told.append)
    some, more = tuple(losses(range(1, 4))), tuple(losses(range(1, 6)))
    assert desk.exchange(Letter(0, 1, 0, some)).acknowledged == 0
    assert desk.exchange(Letter(0, 1, 0, some)).acknowledged == 0
    assert desk.exchange(Letter(0, 1, 0, more)).acknowledged == 5
    assert recorded == list(more)
    assert [text.rpartition(": ")[2] for text in told] == ["gone"]
