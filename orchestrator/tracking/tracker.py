"""The tracker of a run: everything that a driver records goes through here.

A call returns once its operation is on the local disk; a background thread ships it. So nothing here waits
for MLflow, and nothing is lost while MLflow is down. Imports: the standard library and the files beside this
one, but not mlflow.
"""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.errors import TrackingError
from orchestrator.records import Point, Status
from orchestrator.tracking.conventions import (
    DESCRIPTION_TAG,
    MAX_KEY,
    MAX_TAG,
    NON_FINITE_TAG,
    flatten_params,
    metric_key,
)
from orchestrator.tracking.journal import Journal, JournalBusy, load_state
from orchestrator.tracking.ops import (
    EndRun,
    LogArtifact,
    LogDataset,
    LogMetrics,
    LogModel,
    LogParams,
    Op,
    SetTags,
    Sink,
    StartRun,
)
from orchestrator.tracking.shipper import Shipper

_log = logging.getLogger(__name__)
_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)


class Tracker:
    """Records one run. Open it with `Tracker.open`, start the run, and close it in the end.

    All methods may be called by any thread; none but `wait_for_run`, `flush` and `close` waits for the sink.
    """

    def __init__(self, journal: Journal, shipper: Shipper) -> None:
        self._journal = journal
        self._shipper = shipper
        self._lock = threading.Lock()
        self._last_steps: dict[str, int] = {}
        self._keys: dict[str, str] = {}
        self._non_finite: set[str] = set()
        self._key = ""
        self._started = False
        for op in journal.operations():
            if isinstance(op, StartRun):
                self._key = op.key
            elif isinstance(op, LogMetrics):
                self._last_steps.update((point.key, point.step) for point in op.points)
            elif isinstance(op, SetTags):
                self._non_finite.update(
                    name.removeprefix(f"{NON_FINITE_TAG}.")
                    for name in op.tags
                    if name.startswith(NON_FINITE_TAG)
                )

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
    def run_id(self) -> str | None:
        """The MLflow run's id; None until the server answered."""
        return self._shipper.state.run_id

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
        with self._lock:
            self._key = self._key or f"{start.run_name}.{uuid.uuid4().hex[:16]}"
            tags = {str(name): str(value)[:MAX_TAG] for name, value in start.tags.items()}
            self._record(
                replace(
                    start, tags=tags, params=flatten_params(start.params), key=self._key, time_ms=_now_ms()
                )
            )
            self._started = True

    def log_points(self, points: Iterable[Point]) -> None:
        """Record metric points: on disk when this returns, and so safe to acknowledge.

        A point is left out where its step is not above the last recorded one of its key: a resumed run
        repeats steps. Keys are cleaned to what MLflow takes. An infinite value is recorded as NaN, since
        MLflow would draw ±1.8e308; a tag tells which metric was not finite, and where first.
        Raises TrackingError where they cannot be written now, without waiting: whoever holds them sends them again.
        """
        tags: dict[str, str] = {}
        with self._lock:
            self._check_started()
            last_steps = dict(self._last_steps)
            kept: list[Point] = []
            for point in points:
                key = self._clean(point.key)
                if point.step <= last_steps.get(key, -1):
                    continue
                last_steps[key] = point.step
                value = float(point.value)
                if not math.isfinite(value):
                    if key not in self._non_finite:
                        name = f"{NON_FINITE_TAG}.{key}"[:MAX_KEY]
                        tags.setdefault(name, f"{value} at step {point.step}")
                    value = math.nan
                kept.append(Point(key, value, point.step, point.timestamp_ms))
            # The tags first: points that could not be written come again, but those that were do not.
            if tags:
                self._journal.append(SetTags(tags))
                self._non_finite.update(point.key for point in kept if math.isnan(point.value))
            if kept:
                self._journal.append(LogMetrics(tuple(kept)))
                self._last_steps = last_steps

    def points(self) -> Iterator[Point]:
        """All points recorded so far, in order, those of earlier attempts included."""
        for op in self._journal.operations():
            if isinstance(op, LogMetrics):
                yield from op.points

    def log_summary(self, metrics: Mapping[str, float]) -> None:
        """Record figures of the run as a whole; a later summary of the same run replaces them.

        They stand at step 0, since the UI draws a bar for a single value there, which compares runs.
        """
        now_ms = _now_ms()
        points = tuple(
            Point(self._clean(key), float(value) if math.isfinite(value) else math.nan, 0, now_ms)
            for key, value in metrics.items()
        )
        with self._lock:
            self._check_started()
            if points:
                self._record(LogMetrics(points))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        with self._lock:
            self._check_started()
            self._record(SetTags({name: str(value)[:MAX_TAG] for name, value in tags.items()}))

    def set_description(self, markdown: str) -> None:
        """The text that the UI shows above the run."""
        self.set_tags({DESCRIPTION_TAG: markdown})

    def log_params(self, params: Mapping[str, Any]) -> None:
        with self._lock:
            self._check_started()
            self._record(LogParams(flatten_params(params)))

    def log_artifact(self, path: Path, artifact_path: str = "") -> None:
        """Upload a file or a folder's content; it must stay in place until it was shipped."""
        with self._lock:
            self._check_started()
            self._record(LogArtifact(str(path.resolve()), artifact_path))

    def log_model(self, model: LogModel) -> None:
        """Log and register a model; its folder must stay in place until it was shipped."""
        paths = tuple(str(Path(path).resolve()) for path in model.code_paths)
        with self._lock:
            self._check_started()
            self._record(replace(model, model_dir=str(Path(model.model_dir).resolve()), code_paths=paths))

    def log_dataset(self, dataset: LogDataset) -> None:
        """Record what data the run used."""
        with self._lock:
            self._check_started()
            self._record(dataset)

    def end_run(self, status: Status) -> None:
        with self._lock:
            self._check_started()
            self._record(EndRun(status, _now_ms()))

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

    def _record(self, op: Op) -> None:
        """Append what is said once only; a full disk, or one that is gone, gets a little time to come back."""
        for pause_s in _PAUSES_S:
            try:
                self._journal.append(op)
                return
            except TrackingError as error:
                if self._journal.closed:
                    raise
                _log.warning("%s; trying again in %g s", error.reason, pause_s)
                time.sleep(pause_s)
        self._journal.append(op)

    def _check_started(self) -> None:
        if not self._started:
            raise RuntimeError("start_run comes first")

    def _clean(self, key: str) -> str:
        if key not in self._keys:
            self._keys[key] = metric_key(key)
            if self._keys[key] != key:
                _log.warning(
                    "metric '%s' is recorded as '%s': MLflow refuses that name", key, self._keys[key]
                )
        return self._keys[key]


def recover_journal(journal_folder: Path, sink: Sink, timeout_s: float) -> bool:
    """Ship what a dead process left in a journal; True where nothing is left.

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
    return tracker.close(timeout_s)


def recorded_run_id(journal_folder: Path) -> str | None:
    """The MLflow run that a journal belongs to, also of a dead process; None where it never came to be."""
    return load_state(journal_folder)[0].run_id


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
