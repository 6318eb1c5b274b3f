"""The tracker of a run and its children: everything that a driver records goes through here.

A call returns once its operation is on the local disk; a background thread ships it. So nothing here waits
for MLflow, and nothing is lost while MLflow is down. Imports: the standard library and the files beside this
one, but not mlflow.
"""

from __future__ import annotations

import logging
import re
import threading
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from orchestrator.errors import TrackingError
from orchestrator.records import Point, Status
from orchestrator.tracking.conventions import ENDED_TAG, MAX_TAG
from orchestrator.tracking.journal import Journal, JournalBusy
from orchestrator.tracking.ops import EndRun, LogMetrics, SetTags, Sink, StartRun
from orchestrator.tracking.recorder import Recorded, Recorder, now_ms
from orchestrator.tracking.shipped import load_shipped
from orchestrator.tracking.shipper import Shipper

_log = logging.getLogger(__name__)
_CHILD_KEY = re.compile(r"[\w.-]+")


class ChildTracker(Recorder):
    """Records one child of a run. `Tracker.child` makes it; it ends with `end_run`, or with its parent."""

    def __init__(
        self,
        journal: Journal,
        shipper: Shipper,
        child: str,
        recorded: Recorded,
        forget: Callable[[str], None],
    ) -> None:
        super().__init__(journal, shipper, child, recorded)
        self._forget = forget
        self._started = recorded.is_open
        self._left = recorded.is_open
        """It belonged to an earlier driver, and nobody has gone on with it yet."""

    def go_on(self, start: StartRun, key: str) -> None:
        self._start(start, key)
        self._left = False

    def end_run(self, status: Status) -> None:
        """End it. What comes after that (a late point, a tag) is recorded all the same."""
        super().end_run(status)
        self._forget(self._child)

    def end_with_parent(self, why: str) -> None:
        """End it as stopped: now, or when it was last heard of where it belonged to an earlier driver."""
        with self._lock:
            self._record(SetTags({ENDED_TAG: why}))
            self._record(EndRun("STOPPED", self._recorded.last_ms if self._left else now_ms()))
            self._recorded.is_open = False
        self._forget(self._child)


class Tracker(Recorder):
    """Records one run. Open it with `Tracker.open`, start the run, and close it in the end.

    All methods may be called by any thread; none but `wait_for_run`, `flush` and `close` waits for the sink.
    Children share its journal and its thread; of those that have ended, it keeps nothing but the names.
    """

    def __init__(self, journal: Journal, shipper: Shipper) -> None:
        found: defaultdict[str, Recorded] = defaultdict(Recorded)
        for entry in journal.entries():
            if entry.op is not None:
                found[entry.child].add(entry.op)
        super().__init__(journal, shipper, "", found.pop("", Recorded()))
        self._experiment = ""
        self._family = threading.RLock()
        self._children = {
            child: ChildTracker(journal, shipper, child, recorded, self._forget)
            for child, recorded in found.items()
            if recorded.is_open
        }
        self._ended = set(found) - set(self._children)

    @classmethod
    def open(cls, journal_folder: Path, sink: Sink, *, interval_s: float = 2.0) -> Tracker:
        """Open a run's journal, and ship what an earlier process left in it; then every `interval_s` seconds.

        Raises JournalBusy where another process has it open, TrackingError where it cannot be written.
        """
        journal = Journal(journal_folder)
        tracker = cls(journal, Shipper(journal, sink, interval_s))
        tracker._shipper.start()
        return tracker

    @property
    def experiment_id(self) -> str | None:
        return self._shipper.state.experiment_id

    @property
    def model_uri(self) -> str | None:
        """What MLflow's `load_model` takes for the model logged last; None until it was shipped."""
        return self._shipper.state.model_uri

    @property
    def problem(self) -> str:
        """Why shipping is behind at this moment; empty where it is not."""
        error = self._shipper.last_error
        return str(error) if error is not None else ""

    @property
    def refused(self) -> list[str]:
        """What the server refused for good in this process, one line each."""
        return list(self._shipper.refused)

    def start_run(self, start: StartRun) -> None:
        """Make the MLflow run, or set the same one RUNNING again after a resume.

        `params` may be nested: they are flattened. A journal keeps its run whatever `start` says.
        """
        with self._family:
            self._experiment = start.experiment
            self._start(start, self._recorded.key or f"{start.run_name}.{uuid.uuid4().hex[:16]}")

    def child(self, key: str, start: StartRun) -> ChildTracker:
        """Make a child of the run, or set the one that has this key RUNNING again; it goes on with its MLflow run.

        `key` is of letters, digits and `_.-`. The child is made in the experiment of its parent, whatever `start`
        says. Without the journal in which it began, `start.run_id` tells which run of the server to go on with.
        """
        if not _CHILD_KEY.fullmatch(key):
            raise ValueError(
                f"'{key}' cannot be the key of a child: it may have letters, digits and _.- only"
            )
        self._check_started()
        with self._family:
            child = self._children.get(key)
            if child is None:
                recorded = Recorded()
                if key in self._ended:
                    for op in self._journal.operations(key):
                        recorded.add(op)
                child = self._children[key] = ChildTracker(
                    self._journal, self._shipper, key, recorded, self._forget
                )
        child.go_on(replace(start, experiment=self._experiment), f"{self._recorded.key}/{key}")
        return child

    def tag_child(self, key: str, tags: Mapping[str, str]) -> None:
        """Set tags of a child, also of one that has ended, which stays so."""
        op = SetTags({name: str(value)[:MAX_TAG] for name, value in tags.items()})
        with self._lock:
            self._check_started()
            self._record(op, key)

    def open_children(self) -> dict[str, ChildTracker]:
        """The children that have not ended, by key, those that an earlier driver left open among them."""
        with self._family:
            return dict(self._children)

    def child_run_id(self, key: str) -> str | None:
        """The id of a child's MLflow run, also of one that has ended; None until the server answered."""
        return self._shipper.run_id_of(key)

    def child_tags(self, name: str) -> dict[str, str]:
        """The newest value of a tag by child, of those that were ever given it. Reads the whole journal."""
        found = {}
        for entry in self._journal.entries(name):
            if entry.child and isinstance(entry.op, SetTags) and name in entry.op.tags:
                found[entry.child] = entry.op.tags[name]
        return found

    def child_points(self, key: str) -> Iterator[tuple[str, Point]]:
        """All points of a metric that children recorded so far, in order, each with its child's key. Reads the whole
        journal."""
        for entry in self._journal.entries(key):
            if entry.child and isinstance(entry.op, LogMetrics):
                yield from ((entry.child, point) for point in entry.op.points if point.key == key)

    def end_run(self, status: Status) -> None:
        """End the run; children that have not ended are ended with it, as stopped."""
        self.end_children("its parent ended")
        super().end_run(status)

    def end_children(self, why: str) -> None:
        """End all children that have not ended, as stopped, with a tag that says why."""
        with self._family:
            left = list(self._children.values())
        for child in left:
            child.end_with_parent(why)

    def wait_for_run(self, timeout_s: float) -> str | None:
        """The MLflow run's id, once the server answered within the time."""
        self._shipper.wait_until(lambda: self.run_id is not None, timeout_s)
        return self.run_id

    def flush(self, timeout_s: float) -> bool:
        """Wait until everything recorded so far was shipped; False where time ran out first."""
        return self._shipper.wait_until(self._shipper.done, timeout_s)

    def close(self, timeout_s: float = 30.0) -> bool:
        """Ship the rest and end. True: all shipped; False: the rest stays in the journal for next time."""
        return self._shipper.close(timeout_s)

    def _forget(self, key: str) -> None:
        with self._family:
            self._children.pop(key, None)
            self._ended.add(key)


def recover_journal(journal_folder: Path, sink: Sink, timeout_s: float) -> bool:
    """Ship what a dead process left in a journal, after children that it left open were ended; True where nothing
    is left.

    False, without an error, where time ran out, or where another process holds the journal.
    """
    if not (journal_folder / "journal.jsonl").exists():
        return True
    try:
        tracker = Tracker.open(journal_folder, sink)
    except JournalBusy:
        return False
    except TrackingError as error:
        _log.warning("%s", error)
        return False
    try:
        tracker.end_children("the driver died")
    except TrackingError as error:
        _log.warning("%s", error)
    return tracker.close(timeout_s)


def recorded_run_id(journal_folder: Path) -> str | None:
    """The MLflow run that a journal belongs to, also of a dead process; None where it never came to be."""
    return load_shipped(journal_folder).run.run_id
