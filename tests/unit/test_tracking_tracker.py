"""Tracker, journal and shipper against sinks that fail in every way they can."""

import json
import math
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import TrackingError
from orchestrator.records import Point
from orchestrator.tracking import (
    LogMetrics,
    LogModel,
    MemorySink,
    RunState,
    SetTags,
    SinkRefused,
    SinkUnavailable,
    StartRun,
    Tracker,
    recorded_run_id,
    recover_journal,
)
from orchestrator.tracking.journal import Journal, JournalBusy
from orchestrator.tracking.memory import MemoryRun
from orchestrator.tracking.ops import EndRun, LogArtifact, LogParams, Op, from_json, halves, to_json
from orchestrator.tracking.shipper import back_off_s

START = StartRun("digits", "digits-1")


class Gate:
    """A sink in front of another one: `before` may raise, or look on."""

    def __init__(self, sink: MemorySink, before: Callable[[Op], None]) -> None:
        self.sink = sink
        self.before = before

    def apply(self, op: Op, state: RunState) -> RunState:
        self.before(op)
        return self.sink.apply(op, state)


class Switch:
    """Raises while it is down."""

    def __init__(self) -> None:
        self.down = True
        self.tried = threading.Event()

    def __call__(self, op: Op) -> None:
        if self.down:
            self.tried.set()
            raise SinkUnavailable("down")


def points(key: str, steps: range) -> list[Point]:
    return [Point(key, step / 7, step, 1000 + step) for step in steps]


def open_tracker(folder: Path, sink: object) -> Tracker:
    return Tracker.open(folder, sink, interval_s=0.01)  # type: ignore[arg-type]


def only_run(sink: MemorySink) -> MemoryRun:
    assert len(sink.runs) == 1
    return next(iter(sink.runs.values()))


def test_everything_arrives_in_order(tmp_path: Path) -> None:
    sink = MemorySink()
    seen: list[str] = []
    tracker = open_tracker(tmp_path, Gate(sink, lambda op: seen.append(type(op).__name__)))
    tracker.start_run(
        StartRun("digits", "digits-1", tags={"a": "b"}, params={"lr": "0.1"}, description="text")
    )
    assert tracker.wait_for_run(5)
    tracker.log_points(points("train/loss", range(5)))
    tracker.set_tags({"phase": "end"})
    tracker.log_params({"late": {"x": 1}})
    (tmp_path / "picture.png").write_text("x")
    tracker.log_artifact(tmp_path / "picture.png", "pictures")
    tracker.set_description("**0.98**")
    tracker.end_run("SUCCEEDED")
    assert tracker.close(5)
    run = only_run(sink)
    assert list(run.points.values()) == points("train/loss", range(5))
    assert run.tags == {"a": "b", "mlflow.note.content": "**0.98**", "phase": "end"}
    assert run.params == {"lr": "0.1", "late.x": "1"}
    assert run.artifacts == {"pictures/picture.png"}
    assert run.status == "SUCCEEDED"
    assert seen[0] == "StartRun"
    assert seen[-1] == "EndRun"
    assert recorded_run_id(tmp_path) == tracker.run_id == "run-1"


def test_recorded_points_can_be_read_while_the_journal_is_open(tmp_path: Path) -> None:
    sink = MemorySink()
    for steps in (range(1, 4), range(2, 6)):  # the second attempt repeats some
        tracker = open_tracker(tmp_path, sink)
        tracker.start_run(START)
        tracker.set_tags({"a": "b"})
        tracker.log_points(points("train/loss", steps))
        assert list(tracker.points()) == points("train/loss", range(1, steps.stop))
        assert tracker.close()


def test_an_outage_loses_and_doubles_nothing(tmp_path: Path) -> None:
    sink, switch = MemorySink(), Switch()
    tracker = open_tracker(tmp_path, Gate(sink, switch))
    tracker.start_run(START)
    for step in range(50):
        tracker.log_points(points("loss", range(step, step + 1)))
    assert switch.tried.wait(5)
    assert tracker.run_id is None
    assert not tracker.close(0.0)
    assert "down" in tracker.problem
    assert recorded_run_id(tmp_path) is None

    switch.down = False
    again = open_tracker(tmp_path, Gate(sink, switch))
    assert again.flush(5)
    assert again.run_id == "run-1"
    assert list(only_run(sink).points.values()) == points("loss", range(50))
    assert again.close(5)


def test_a_crash_between_applying_and_noting_makes_no_second_run(tmp_path: Path) -> None:
    sink = MemorySink()
    tracker = open_tracker(tmp_path, sink)
    tracker.start_run(START)
    tracker.log_points(points("loss", range(10)))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("1")
    tracker.log_model(LogModel(str(tmp_path / "model"), "model", "loader", "digits"))
    assert tracker.close(5)
    (tmp_path / "state.json").unlink()

    again = open_tracker(tmp_path, sink)
    assert again.close(5)
    assert list(only_run(sink).points.values()) == points("loss", range(10))
    assert len(sink.versions["digits"]) == 1
    assert recorded_run_id(tmp_path) == "run-1"


def test_a_resume_goes_on_with_the_same_run_and_drops_repeated_steps(tmp_path: Path) -> None:
    sink = MemorySink()
    first = open_tracker(tmp_path, sink)
    first.start_run(StartRun("digits", "digits-1", params={"workers": 2}))
    first.log_points(points("loss", range(10)))
    first.end_run("STOPPED")
    assert first.close(5)

    second = open_tracker(tmp_path, sink)
    assert second.run_id == "run-1"
    second.start_run(StartRun("digits", "digits-1", params={"workers": 4}, run_id="run-1"))
    assert second.flush(5)
    assert only_run(sink).status == "RUNNING"
    second.log_points([Point("loss", 99.0, step, 5000) for step in range(5, 10)])
    second.log_points(points("loss", range(10, 15)))
    assert second.close(5)
    assert list(only_run(sink).points.values()) == points("loss", range(15))
    assert only_run(sink).params == {"workers": "2"}
    assert only_run(sink).tags["orchestrator.changed.workers"] == "2 -> 4"


def test_a_resume_without_the_old_journal_asks_the_server_for_the_last_steps(tmp_path: Path) -> None:
    sink = MemorySink()
    first = open_tracker(tmp_path / "one", sink)
    first.start_run(START)
    first.log_points(points("loss", range(10)))
    assert first.close(5)

    second = open_tracker(tmp_path / "other-host", sink)
    second.start_run(StartRun("digits", "digits-1", run_id="run-1"))
    second.log_points([Point("loss", 99.0, step, 5000) for step in range(5, 10)])
    second.log_points(points("loss", range(10, 12)))
    assert second.close(5)
    assert list(only_run(sink).points.values()) == points("loss", range(12))


def test_one_bad_point_is_put_aside_and_the_rest_arrives(tmp_path: Path) -> None:
    sink = MemorySink()

    def refuse_step_13(op: Op) -> None:
        if isinstance(op, LogMetrics) and any(point.step == 13 for point in op.points):
            raise SinkRefused("unlucky")

    tracker = open_tracker(tmp_path, Gate(sink, refuse_step_13))
    tracker.start_run(START)
    tracker.log_points(points("loss", range(40)))
    tracker.end_run("SUCCEEDED")
    assert tracker.close(5)
    expected = [point for point in points("loss", range(40)) if point.step != 13]
    assert list(only_run(sink).points.values()) == expected
    assert only_run(sink).status == "SUCCEEDED"
    assert tracker.refused == ["LogMetrics: unlucky"]
    (line,) = (tmp_path / "refused.jsonl").read_text().splitlines()
    assert json.loads(line)["entry"]["points"][0][2] == 13


def test_a_run_that_is_refused_keeps_everything(tmp_path: Path) -> None:
    sink = MemorySink()
    refused = threading.Event()

    def refuse_start(op: Op) -> None:
        if isinstance(op, StartRun) and not refused.is_set():
            refused.set()
            raise SinkRefused("no such permission")

    tracker = open_tracker(tmp_path, Gate(sink, refuse_start))
    tracker.start_run(START)
    tracker.log_points(points("loss", range(3)))
    assert refused.wait(5)
    assert tracker.close(5)
    assert list(only_run(sink).points.values()) == points("loss", range(3))


def test_a_faulty_sink_does_not_end_the_thread(tmp_path: Path) -> None:
    sink = MemorySink()
    failed = threading.Event()

    def fail_once(op: Op) -> None:
        if not failed.is_set():
            failed.set()
            raise RuntimeError("a bug")

    tracker = open_tracker(tmp_path, Gate(sink, fail_once))
    tracker.start_run(START)
    assert failed.wait(5)
    assert tracker.close(5)
    assert only_run(sink).key


def test_points_are_shipped_in_few_calls_of_at_most_a_thousand(tmp_path: Path) -> None:
    sink, switch = MemorySink(), Switch()
    sizes: list[int] = []

    def look(op: Op) -> None:
        switch(op)
        if isinstance(op, LogMetrics):
            sizes.append(len(op.points))

    tracker = open_tracker(tmp_path, Gate(sink, look))
    tracker.start_run(START)
    for step in range(250):
        tracker.log_points([Point(key, 0.0, step, 0) for key in "abcdefghij"])
    assert switch.tried.wait(5)
    switch.down = False
    assert tracker.close(20)
    assert sum(sizes) == 2500
    assert len(sizes) <= 4
    assert max(sizes) <= 1000


def test_values_that_are_not_finite_become_nan_and_a_tag_names_the_first(tmp_path: Path) -> None:
    sink = MemorySink()
    tracker = open_tracker(tmp_path, sink)
    tracker.start_run(START)
    tracker.log_points(
        [Point("loss", 1.0, 0, 0), Point("loss", math.inf, 1, 0), Point("loss", -math.inf, 2, 0)]
    )
    assert tracker.close(5)
    again = open_tracker(tmp_path, sink)
    again.start_run(START)
    again.log_points([Point("loss", math.nan, 3, 0)])
    assert again.close(5)
    run = only_run(sink)
    assert [math.isnan(point.value) for point in run.points.values()] == [False, True, True, True]
    assert run.tags == {"orchestrator.non_finite.loss": "inf at step 1"}


def test_bad_keys_are_cleaned_before_they_spoil_a_batch(tmp_path: Path) -> None:
    sink = MemorySink()
    tracker = open_tracker(tmp_path, sink)
    tracker.start_run(START)
    tracker.log_points([Point("acc@5", 1.0, 0, 0), Point("/loss", 2.0, 0, 0)])
    assert tracker.close(5)
    assert [point.key for point in only_run(sink).points.values()] == ["acc_5", "loss"]


def test_a_torn_last_line_is_dropped_and_a_damaged_one_skipped(tmp_path: Path) -> None:
    sink, switch = MemorySink(), Switch()
    tracker = open_tracker(tmp_path, Gate(sink, switch))
    tracker.start_run(START)
    tracker.log_points(points("loss", range(2)))
    tracker.close(0.0)
    with (tmp_path / "journal.jsonl").open("a") as file:
        file.write('{"op":"Log\x00damage\n')
        file.write('{"op":"SetTags","tags":{"good":"yes"}}\n')
        file.write('{"op":"LogMetrics","points":[["loss",9.0,9')
    switch.down = False
    again = open_tracker(tmp_path, Gate(sink, switch))
    again.start_run(START)
    assert again.close(5)
    assert list(only_run(sink).points.values()) == points("loss", range(2))
    assert only_run(sink).tags == {"good": "yes"}
    assert len((tmp_path / "refused.jsonl").read_text().splitlines()) == 1


def test_a_damaged_state_ships_everything_again(tmp_path: Path) -> None:
    sink = MemorySink()
    tracker = open_tracker(tmp_path, sink)
    tracker.start_run(START)
    tracker.log_points(points("loss", range(4)))
    assert tracker.close(5)
    (tmp_path / "state.json").write_text("{")
    assert recover_journal(tmp_path, sink, 5)
    assert list(only_run(sink).points.values()) == points("loss", range(4))


def test_a_journal_has_one_writer(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path, MemorySink())
    with pytest.raises(JournalBusy):
        open_tracker(tmp_path, MemorySink())
    assert not recover_journal(tmp_path, MemorySink(), 1)
    assert tracker.close(5)
    assert recover_journal(tmp_path, MemorySink(), 5)


def test_recovering_ships_what_a_killed_process_left(tmp_path: Path) -> None:
    """The process is killed with SIGKILL right after `log_points` returned: that promise must hold."""
    program = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from orchestrator.records import Point\n"
        "from orchestrator.tracking import SinkUnavailable, StartRun, Tracker\n"
        "class Down:\n"
        "    def apply(self, op, state):\n"
        "        raise SinkUnavailable('down')\n"
        "tracker = Tracker.open(Path(sys.argv[1]), Down())\n"
        "tracker.start_run(StartRun('digits', 'digits-1'))\n"
        "tracker.log_points([Point('loss', step / 7, step, 1000 + step) for step in range(20)])\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    assert done.returncode == -9
    sink = MemorySink()
    assert recover_journal(tmp_path, sink, 5)
    assert list(only_run(sink).points.values()) == points("loss", range(20))


def test_recovering_nothing_is_done_at_once(tmp_path: Path) -> None:
    assert recover_journal(tmp_path / "nowhere", MemorySink(), 0)
    assert not (tmp_path / "nowhere").exists()


def test_a_full_disk_is_told_and_leaves_a_whole_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path)
    journal.append(SetTags({"a": "1"}))

    def no_room(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", no_room)
        with pytest.raises(TrackingError, match="make room"):
            journal.append(SetTags({"b": "2"}))
    journal.append(SetTags({"c": "3"}))
    assert list(journal.operations()) == [SetTags({"a": "1"}), SetTags({"c": "3"})]
    journal.close()


def test_logging_before_the_start_is_a_programming_error(tmp_path: Path) -> None:
    tracker = open_tracker(tmp_path, MemorySink())
    with pytest.raises(RuntimeError):
        tracker.log_points(points("loss", range(1)))
    assert tracker.close(5)


def test_threads_may_log_at_once(tmp_path: Path) -> None:
    sink = MemorySink()
    tracker = open_tracker(tmp_path, sink)
    tracker.start_run(START)

    def log(key: str) -> None:
        for step in range(20):
            tracker.log_points(points(key, range(step, step + 1)))

    threads = [threading.Thread(target=log, args=(key,)) for key in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tracker.close(20)
    for key in "abcd":
        found = [point for point in only_run(sink).points.values() if point.key == key]
        assert found == points(key, range(20))


@pytest.mark.parametrize(
    "op",
    [
        StartRun("e", "n", {"a": "b"}, {"c": "d"}, "text", "id", "key", 5),
        LogMetrics((Point("a", 1.5, 2, 3), Point("b", -0.0, 4, 5))),
        SetTags({"a": "b"}),
        LogParams({"a": "b"}),
        LogArtifact("/x", "y"),
        LogModel(
            "/m", "model", "loader", "name", ("/code",), ("torch",), {"inputs": "[]"}, "x.npy", {"k": 1}
        ),
        EndRun("FAILED", 7),
    ],
)
def test_operations_survive_json(op: Op) -> None:
    assert from_json(json.loads(json.dumps(to_json(op)))) == op


def test_halves_keep_everything() -> None:
    op = LogMetrics(tuple(points("a", range(5))))
    parts = halves(op)
    assert parts is not None
    first, second = parts
    assert isinstance(first, LogMetrics)
    assert isinstance(second, LogMetrics)
    assert first.points + second.points == op.points
    assert halves(LogMetrics(op.points[:1])) is None
    assert halves(SetTags({"a": "1", "b": "2"})) == (SetTags({"a": "1"}), SetTags({"b": "2"}))
    assert halves(EndRun("FAILED", 1)) is None


def test_back_off_grows_to_half_a_minute() -> None:
    assert [back_off_s(failures) for failures in (1, 2, 3, 6, 1000)] == [1.0, 2.0, 4.0, 30.0, 30.0]


def test_importing_the_package_loads_no_mlflow() -> None:
    program = (
        "import sys, orchestrator.tracking, orchestrator.tracking.mlflow_sink; print('mlflow' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("run_id", [None, "run-1"])  # the driver names it once it is known
def test_a_later_summary_replaces_the_figures_of_an_earlier_one(tmp_path: Path, run_id: str | None) -> None:
    """A finished run that is trained on has new test figures: MLflow shows the newest value of a step."""
    sink = MemorySink()
    for accuracy in (0.5, 0.75):
        tracker = Tracker.open(tmp_path, sink)
        tracker.start_run(StartRun("experiment", "run-1", run_id=run_id if accuracy > 0.5 else None))
        tracker.log_summary({"test/accuracy": accuracy})
        assert tracker.close()
        time.sleep(0.002)  # summaries are told apart by their millisecond
    (run,) = sink.runs.values()
    values = [point for point in run.points.values() if point.key == "test/accuracy"]
    assert [point.value for point in sorted(values, key=lambda point: point.timestamp_ms)] == [0.5, 0.75]


def test_shipping_takes_a_small_part_of_the_time(tmp_path: Path) -> None:
    """A server that is slow to take things, or a client that takes much CPU, must not be at work all the time."""

    class Slow(MemorySink):
        busy_s = 0.0

        def apply(self, op: Op, state: RunState) -> RunState:
            time.sleep(0.1)
            self.busy_s += 0.1
            return super().apply(op, state)

    sink = Slow()
    tracker = Tracker.open(tmp_path, sink, interval_s=0.01)
    tracker.start_run(StartRun("digits", "digits-1"))
    assert tracker.flush(20)
    before_s, began_s = sink.busy_s, time.monotonic()
    for step in range(1, 101):
        tracker.log_points([Point("train/loss", 0.5, step, 1)])
        time.sleep(0.02)
    share = (sink.busy_s - before_s) / (time.monotonic() - began_s)
    assert share < 0.3  # 0.1, or 0.9 where it never rests
    assert tracker.close(20)  # which does not wait for the rest
    (run,) = sink.runs.values()
    assert len(run.points) == 100
