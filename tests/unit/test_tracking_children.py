"""A run and its children over one journal and one thread: nothing lost, nothing twice, whoever dies meanwhile."""

from __future__ import annotations

import gc
import json
import random
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.records import Point
from orchestrator.tracking import (
    ChildTracker,
    EndRun,
    LogMetrics,
    LogParams,
    MemorySink,
    Op,
    RunState,
    SetTags,
    SinkRefused,
    SinkUnavailable,
    StartRun,
    Tracker,
)
from orchestrator.tracking.batches import batches
from orchestrator.tracking.journal import Entry, Journal
from orchestrator.tracking.memory import MemoryRun
from orchestrator.tracking.shipped import Shipped, load_shipped, save_shipped
from orchestrator.tracking.tracker import recover_journal

START = StartRun("digits", "digits-1")


class Sieve(MemorySink):
    """Lets `before` look at each call, and raise."""

    def __init__(self, before: Callable[[Op], None] = lambda op: None) -> None:
        super().__init__()
        self.before = before
        self.calls: list[tuple[Op, str | None]] = []

    def apply(self, op: Op, state: RunState) -> RunState:
        self.before(op)
        self.calls.append((op, state.run_id))
        return super().apply(op, state)


class Outage:
    """Lets no call through until it is over."""

    def __init__(self) -> None:
        self.over, self.tried = threading.Event(), threading.Event()

    def __call__(self, op: Op) -> None:
        if not self.over.is_set():
            self.tried.set()
            raise SinkUnavailable("down")


def open_tracker(folder: Path, sink: Any, **options: Any) -> Tracker:
    tracker = Tracker.open(folder, sink, **{"interval_s": 0.01, **options})
    tracker.start_run(START)
    return tracker


def child_of(tracker: Tracker, key: str, **changes: Any) -> ChildTracker:
    return tracker.child(key, StartRun(experiment="", run_name=key, **changes))


def points(steps: range, key: str = "val/loss") -> list[Point]:
    return [Point(key, step / 7, step, 1000 + step) for step in steps]


def run_of(sink: MemorySink, name: str) -> MemoryRun:
    (run,) = [run for run in sink.runs.values() if run.name == name]
    return run


def test_children_are_recorded_under_their_parent(tmp_path: Path) -> None:
    sink = Sieve()
    tracker = open_tracker(tmp_path, sink)
    first = child_of(tracker, "trial-001", params={"lr": 0.1}, tags={"a": "b"}, description="text")
    second = child_of(tracker, "trial-002")
    for epoch in range(1, 4):
        first.log_points(points(range(epoch, epoch + 1)))
        second.log_points(points(range(epoch, epoch + 1)))
        tracker.log_points(points(range(epoch, epoch + 1), "search/best"))
    second.set_tags({"orchestrator.trial_state": "PRUNED"})
    second.log_params({"late": 1})
    second.log_summary({"best/val_loss": 0.5})
    (tmp_path / "a.txt").write_text("x")
    second.log_artifact(tmp_path / "a.txt")
    first.end_run("SUCCEEDED")
    second.end_run("FAILED")
    tracker.end_run("SUCCEEDED")
    assert tracker.close(20)
    assert len(sink.runs) == 3
    one, two, parent = run_of(sink, "trial-001"), run_of(sink, "trial-002"), run_of(sink, "digits-1")
    assert list(one.points.values()) == points(range(1, 4))
    assert [point for point in two.points.values() if point.step] == points(range(1, 4))
    assert {point.key for point in parent.points.values()} == {"search/best"}
    assert one.params == {"lr": "0.1"}
    assert two.params == {"late": "1"}
    assert two.artifacts == {"a.txt"}
    assert {run.tags["mlflow.parentRunId"] for run in (one, two)} == {tracker.run_id}
    assert "mlflow.parentRunId" not in parent.tags
    assert {run.experiment for run in sink.runs.values()} == {"digits"}
    assert (one.status, two.status, parent.status) == ("SUCCEEDED", "FAILED", "SUCCEEDED")
    assert list(first.points()) == points(range(1, 4))
    assert [point.key for point in tracker.points()] == ["search/best"] * 3
    assert sorted(tracker.child_points("val/loss"), key=lambda pair: pair[0]) == [
        *(("trial-001", point) for point in points(range(1, 4))),
        *(("trial-002", point) for point in points(range(1, 4))),
    ]
    assert {sink.runs[str(child.run_id)].name for child in (first, second)} == {"trial-001", "trial-002"}


def test_a_child_that_ended_can_be_told_more(tmp_path: Path) -> None:
    sink = Sieve()
    tracker = open_tracker(tmp_path, sink)
    child = child_of(tracker, "trial-001")
    child.end_run("SUCCEEDED")
    assert tracker.flush(20)
    child.log_points(points(range(1, 2)))
    tracker.tag_child("trial-001", {"orchestrator.best": "true"})
    assert tracker.close(20)
    again = open_tracker(tmp_path, sink)
    again.tag_child("trial-001", {"orchestrator.best": "false"})
    assert again.child_tags("orchestrator.best") == {"trial-001": "false"}
    assert again.flush(20)
    assert again.child_run_id("trial-001") == child.run_id
    assert again.close(20)
    run = run_of(sink, "trial-001")
    assert run.tags["orchestrator.best"] == "false"
    assert run.status == "SUCCEEDED"
    assert list(run.points.values()) == points(range(1, 2))


@pytest.mark.parametrize("ended", [False, True])
@pytest.mark.parametrize("lost", [(), ("state.json",), ("state.json", "children.jsonl"), ("children.jsonl",)])
def test_a_resumed_child_goes_on_with_its_run(tmp_path: Path, ended: bool, lost: tuple[str, ...]) -> None:
    sink = Sieve()
    tracker = open_tracker(tmp_path, sink)
    child = child_of(tracker, "trial-001", params={"lr": 0.1})
    child.log_points(points(range(1, 6)))
    if ended:
        child.end_run("FAILED")
    assert tracker.close(20)
    for name in lost:
        (tmp_path / name).unlink()
    again = open_tracker(tmp_path, sink)
    child = child_of(again, "trial-001", params={"lr": 0.1})
    child.log_points([Point("val/loss", 99.0, step, 5000) for step in range(3, 6)])
    child.log_points(points(range(6, 9)))
    assert again.flush(20)
    assert run_of(sink, "trial-001").status == "RUNNING"
    child.end_run("SUCCEEDED")
    assert again.close(20)
    assert len(sink.runs) == 2
    assert list(run_of(sink, "trial-001").points.values()) == points(range(1, 9))
    assert run_of(sink, "trial-001").status == "SUCCEEDED"


def test_without_the_old_journal_a_child_is_known_by_its_id(tmp_path: Path) -> None:
    sink = Sieve()
    tracker = open_tracker(tmp_path / "one", sink)
    child = child_of(tracker, "trial-001")
    child.log_points(points(range(1, 6)))
    assert tracker.close(20)
    again = Tracker.open(tmp_path / "other-host", sink, interval_s=0.01)
    again.start_run(StartRun("digits", "digits-1", run_id=tracker.run_id))
    other = child_of(again, "trial-001", run_id=child.run_id)
    other.log_points([Point("val/loss", 99.0, step, 5000) for step in range(3, 6)])
    other.log_points(points(range(6, 9)))
    assert again.close(20)
    assert len(sink.runs) == 2
    assert list(run_of(sink, "trial-001").points.values()) == points(range(1, 9))


def test_while_the_server_is_down_children_wait_for_their_parents_id(tmp_path: Path) -> None:
    outage = Outage()
    sink = Sieve(outage)
    tracker = open_tracker(tmp_path, sink)
    for number in range(20):
        child = child_of(tracker, f"trial-{number:03d}")
        child.log_points(points(range(1, 4)))
        child.end_run("SUCCEEDED")
    assert outage.tried.wait(20)
    assert child.run_id is None
    outage.over.set()
    assert tracker.close(20)
    children = [run for run in sink.runs.values() if run.name != "digits-1"]
    assert len(children) == 20
    assert {run.tags["mlflow.parentRunId"] for run in children} == {tracker.run_id}
    assert all(list(run.points.values()) == points(range(1, 4)) for run in children)


def test_the_server_may_fail_anywhere(tmp_path: Path) -> None:
    """After every call it may turn out that it was applied though it failed; and the driver begins anew at times."""
    chance = random.Random(0)
    sink = MemorySink()

    class Shaky:
        def apply(self, op: Op, state: RunState) -> RunState:
            if chance.random() < 0.2:
                raise SinkUnavailable("down")
            after = sink.apply(op, state)
            if chance.random() < 0.2:
                raise SinkUnavailable("it was applied, but nobody knows")
            return after

    done = dict.fromkeys([f"trial-{number:03d}" for number in range(6)], 0)
    while min(done.values()) < 12:
        tracker = Tracker.open(tmp_path, Shaky(), interval_s=0.001)
        tracker.start_run(START)
        for key in [key for key in done if chance.random() < 0.7]:
            child = child_of(tracker, key)
            begin = max(1, done[key] - 1)  # some epochs come twice
            done[key] = min(12, begin + chance.randrange(1, 6))
            child.log_points(points(range(begin, done[key] + 1)))
            if done[key] == 12:
                child.end_run("SUCCEEDED")
        tracker.close(0.05 * chance.random())
    tracker = Tracker.open(tmp_path, sink)
    tracker.start_run(START)
    tracker.end_run("SUCCEEDED")
    assert tracker.close(20)
    assert len(sink.runs) == 7
    for run in sink.runs.values():
        assert run.status == "SUCCEEDED"
        if run.name != "digits-1":
            assert sorted(run.points.values(), key=lambda point: point.step) == points(range(1, 13))


def test_recovering_ends_what_a_killed_driver_left_open(tmp_path: Path) -> None:
    program = """
        import os, signal, sys
        from pathlib import Path
        from orchestrator.records import Point
        from orchestrator.tracking import SinkUnavailable, StartRun, Tracker
        class Down:
            def apply(self, op, state):
                raise SinkUnavailable('down')
        tracker = Tracker.open(Path(sys.argv[1]), Down())
        tracker.start_run(StartRun('digits', 'digits-1'))
        for key in ('trial-001', 'trial-002'):
            child = tracker.child(key, StartRun('', key))
            child.log_points([Point('val/loss', step / 7, step, 1000 + step) for step in range(1, 5)])
        tracker.child('trial-001', StartRun('', 'trial-001')).end_run('SUCCEEDED')
        os.kill(os.getpid(), signal.SIGKILL)
    """
    lines = "\n".join(line[8:] for line in program.splitlines())
    done = subprocess.run([sys.executable, "-c", lines, str(tmp_path)], check=False)
    assert done.returncode == -9
    sink = MemorySink()
    assert recover_journal(tmp_path, sink, 20)
    assert [run_of(sink, f"trial-00{n}").status for n in (1, 2)] == ["SUCCEEDED", "STOPPED"]
    assert run_of(sink, "trial-002").tags["orchestrator.ended"] == "the driver died"
    assert list(run_of(sink, "trial-002").points.values()) == points(range(1, 5))
    size = (tmp_path / "journal.jsonl").stat().st_size
    assert recover_journal(tmp_path, sink, 20)
    assert (tmp_path / "journal.jsonl").stat().st_size == size
    # And a later driver may go on with it.
    tracker = open_tracker(tmp_path, sink)
    child_of(tracker, "trial-002").end_run("SUCCEEDED")
    assert tracker.close(20)
    assert run_of(sink, "trial-002").status == "SUCCEEDED"


def test_children_left_open_end_with_their_parent(tmp_path: Path) -> None:
    sink = MemorySink()
    tracker = open_tracker(tmp_path, sink)
    child_of(tracker, "trial-001")
    assert tracker.close(20)
    again = open_tracker(tmp_path, sink)
    child_of(again, "trial-002")
    again.end_run("SUCCEEDED")
    assert again.close(20)
    assert {run.name: run.status for run in sink.runs.values()} == {
        "digits-1": "SUCCEEDED",
        "trial-001": "STOPPED",
        "trial-002": "STOPPED",
    }


def test_a_child_that_is_refused_does_not_keep_the_others_back(tmp_path: Path) -> None:
    def before(op: Op) -> None:
        if isinstance(op, StartRun) and op.run_name == "trial-001":
            raise SinkRefused("a bad tag")

    sink = Sieve(before)
    tracker = open_tracker(tmp_path, sink)
    for key in ("trial-001", "trial-002"):
        child = child_of(tracker, key)
        child.log_points(points(range(1, 3)))
        child.end_run("SUCCEEDED")
    assert tracker.close(20)
    assert list(run_of(sink, "trial-002").points.values()) == points(range(1, 3))
    assert tracker.refused[0] == "StartRun of trial-001: a bad tag"
    lines = [json.loads(line) for line in (tmp_path / "refused.jsonl").read_text().splitlines()]
    assert {line["child"] for line in lines} == {"trial-001"}
    assert "EndRun" in {line["entry"]["op"] for line in lines}


def test_a_journal_of_an_earlier_version_goes_on(tmp_path: Path) -> None:
    """Its lines have no child, and its state.json knows of none."""
    sink = MemorySink()
    state = sink.apply(StartRun("digits", "digits-1", key="digits-1.k", time_ms=5), RunState())
    lines = [
        '{"op":"StartRun","experiment":"digits","run_name":"digits-1","tags":{},"params":{},"description":"",'
        '"run_id":null,"key":"digits-1.k","time_ms":5}',
        '{"op":"LogMetrics","points":[["val/loss",0.5,1,1001]]}',
    ]
    (tmp_path / "journal.jsonl").write_text("".join(f"{line}\n" for line in lines))
    run = {"run_id": state.run_id, "experiment_id": "digits", "model_uri": None, "last_steps": {}}
    (tmp_path / "state.json").write_text(json.dumps({"run": run, "offset": len(lines[0]) + 1}))
    tracker = open_tracker(tmp_path, sink)
    tracker.log_points([Point("val/loss", 0.5, 1, 5000), Point("val/loss", 0.25, 2, 5000)])
    child_of(tracker, "trial-001").end_run("SUCCEEDED")
    assert tracker.close(20)
    assert {run.key for run in sink.runs.values()} == {"digits-1.k", "digits-1.k/trial-001"}
    assert [point.step for point in run_of(sink, "digits-1").points.values()] == [1, 2]


def test_ten_thousand_reports_are_few_calls(tmp_path: Path) -> None:
    outage = Outage()
    sink = Sieve(outage)
    tracker = open_tracker(tmp_path, sink)
    children = [child_of(tracker, f"trial-{number:03d}") for number in range(100)]
    for step in range(1, 11):
        for child in children:  # the worst case: each one's reports lie far apart
            child.log_points(points(range(step, step + 1)))
            child.set_tags({f"tag-{step}": "x"} if step == 10 else {"orchestrator.newest": str(step)})
    assert outage.tried.wait(20)
    outage.over.set()
    assert tracker.close(60)
    assert all(len(run.points) == 10 for run in sink.runs.values() if run.name != "digits-1")
    assert len(sink.calls) < 100 * 22


def test_a_child_that_ended_leaves_nothing_but_its_name(tmp_path: Path) -> None:
    sink = MemorySink()
    tracker = open_tracker(tmp_path, sink)
    for number in range(50):
        child = child_of(tracker, f"trial-{number:03d}")
        child.log_points([Point(f"metric-{n}", 0.5, 1, 1) for n in range(20)])
        child.end_run("SUCCEEDED")
    running = child_of(tracker, "trial-050")
    assert tracker.flush(30)
    del child
    gc.collect()
    assert [thing for thing in gc.get_objects() if type(thing) is ChildTracker] == [running]
    state = json.loads((tmp_path / "state.json").read_text())
    assert list(state["children"]) == ["trial-050"]
    assert len((tmp_path / "state.json").read_text()) < 500
    assert len((tmp_path / "children.jsonl").read_text().split()) == 2 * 51
    assert tracker.close(20)


@pytest.mark.parametrize("key", ["", "a b", "it's", "a/b"])
def test_a_key_that_cannot_be_searched_for_is_a_programming_error(tmp_path: Path, key: str) -> None:
    tracker = open_tracker(tmp_path, MemorySink())
    with pytest.raises(ValueError, match="letters"):
        child_of(tracker, key)
    assert tracker.close(20)


def test_threads_may_record_many_children_at_once(tmp_path: Path) -> None:
    sink = MemorySink()
    tracker = open_tracker(tmp_path, sink)

    def work(number: int) -> None:
        child = child_of(tracker, f"trial-{number}")
        for step in range(1, 21):
            child.log_points(points(range(step, step + 1)))
        child.end_run("SUCCEEDED")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert tracker.close(20)
    assert all(
        list(run.points.values()) == points(range(1, 21)) and run.status == "SUCCEEDED"
        for run in sink.runs.values()
        if run.name != "digits-1"
    )


# What they are made of.


def entries(*ops: tuple[str, Op | None]) -> list[Entry]:
    return [Entry(op, child, 10 * index, 10 * index + 10) for index, (child, op) in enumerate(ops)]


def metrics(step: int) -> LogMetrics:
    return LogMetrics((Point("loss", 0.5, step, 0),))


def test_batches_keep_the_order_of_each_run_and_the_offsets_in_order() -> None:
    made = batches(
        entries(
            ("", metrics(1)),
            ("a", metrics(1)),
            ("b", metrics(1)),
            ("a", metrics(2)),
            ("b", SetTags({"x": "1"})),
            ("b", SetTags({"x": "2", "y": "1"})),
            ("b", metrics(2)),
            ("", metrics(2)),
            ("", None),
            ("a", EndRun("FAILED", 1)),
            ("a", metrics(3)),
            ("b", LogParams({"p": "1"})),
            ("b", LogParams({"p": "2"})),
        )
    )
    assert [(batch.child, batch.start, batch.op) for batch in made] == [
        ("", 0, LogMetrics((*metrics(1).points, *metrics(2).points))),
        ("a", 10, LogMetrics((*metrics(1).points, *metrics(2).points))),
        ("b", 20, LogMetrics((*metrics(1).points, *metrics(2).points))),  # tags have no say in metrics
        ("b", 40, SetTags({"x": "2", "y": "1"})),
        ("", 80, None),
        ("a", 90, EndRun("FAILED", 1)),
        ("a", 100, metrics(3)),
        ("b", 110, LogParams({"p": "1"})),
        ("b", 120, LogParams({"p": "2"})),
    ]


def test_batches_stay_within_what_the_server_takes() -> None:
    made = batches(entries(*[("a", metrics(step)) for step in range(2500)]))
    assert [len(batch.op.points) for batch in made if isinstance(batch.op, LogMetrics)] == [1000, 1000, 500]
    made = batches(entries(*[("a", SetTags({f"tag-{n}": "x"})) for n in range(250)]))
    assert [len(batch.op.tags) for batch in made if isinstance(batch.op, SetTags)] == [100, 100, 50]


def test_a_line_cut_by_a_crash_spoils_no_other(tmp_path: Path) -> None:
    shipped = Shipped(RunState("run-1"), 7)
    for child, run_id in (("a", "run-2"), ("b", "run-3")):
        shipped.applied(StartRun("", child), child, RunState(run_id))
    save_shipped(tmp_path, shipped, durable=True)
    with (tmp_path / "children.jsonl").open("a") as file:
        file.write('\n["c", "ru')
    again = load_shipped(tmp_path)
    assert (again.offset, again.run_ids) == (7, {"a": "run-2", "b": "run-3"})
    again.applied(StartRun("", "c"), "c", RunState("run-4"))
    again.applied(EndRun("FAILED", 1), "a", RunState("run-2"))
    save_shipped(tmp_path, again, durable=False)
    last = load_shipped(tmp_path)
    assert last.run_ids == {"a": "run-2", "b": "run-3", "c": "run-4"}
    assert set(last.live) == {"b", "c"}


def test_the_journal_tells_the_children_apart(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    for child in ("", "a", "ab", "a"):
        journal.append(SetTags({"of": child}), child)
    assert list(journal.operations()) == [SetTags({"of": ""})]
    assert list(journal.operations("a")) == [SetTags({"of": "a"})] * 2
    assert [entry.child for entry in journal.entries()] == ["", "a", "ab", "a"]
    journal.close()
