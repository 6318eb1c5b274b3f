"""What can be recorded of one run: its metrics, tags, params, artifacts, models, and how it ended.

Imports: the standard library and the files beside this one, but not mlflow.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
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
from orchestrator.tracking.journal import Journal
from orchestrator.tracking.ops import (
    EndRun,
    LogArtifact,
    LogDataset,
    LogMetrics,
    LogModel,
    LogParams,
    Op,
    SetTags,
    StartRun,
)
from orchestrator.tracking.shipper import Shipper

_log = logging.getLogger(__name__)
_PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass
class Recorded:
    """What a journal holds of one run: its key, the last step of each metric, which of them were not finite, whether
    it began and has not ended since, and when it was last heard of."""

    key: str = ""
    last_steps: dict[str, int] = field(default_factory=dict)
    non_finite: set[str] = field(default_factory=set)
    is_open: bool = False
    last_ms: int = 0

    def add(self, op: Op) -> None:
        match op:
            case StartRun():
                self.key, self.is_open, self.last_ms = op.key, True, max(self.last_ms, op.time_ms)
            case LogMetrics():
                self.last_steps.update((point.key, point.step) for point in op.points)
                self.last_ms = max([self.last_ms, *(point.timestamp_ms for point in op.points)])
            case SetTags():
                self.non_finite.update(
                    name.removeprefix(f"{NON_FINITE_TAG}.")
                    for name in op.tags
                    if name.startswith(NON_FINITE_TAG)
                )
            case EndRun():
                self.is_open, self.last_ms = False, op.time_ms


class Recorder:
    """Records one run: that of a journal (`child` is ''), or one of its children. Thread-safe; waits for no sink."""

    def __init__(self, journal: Journal, shipper: Shipper, child: str, recorded: Recorded) -> None:
        self._journal = journal
        self._shipper = shipper
        self._child = child
        self._lock = threading.Lock()
        self._recorded = recorded
        self._keys: dict[str, str] = {}
        self._started = False

    @property
    def run_id(self) -> str | None:
        """The MLflow run's id; None until the server answered."""
        return self._shipper.run_id_of(self._child)

    @property
    def is_open(self) -> bool:
        """Whether the run began, by what is recorded, and has not ended since."""
        return self._recorded.is_open

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
            last_steps = dict(self._recorded.last_steps)
            kept: list[Point] = []
            for point in points:
                key = self._clean(point.key)
                if point.step <= last_steps.get(key, -1):
                    continue
                last_steps[key] = point.step
                value = float(point.value)
                if not math.isfinite(value):
                    if key not in self._recorded.non_finite:
                        name = f"{NON_FINITE_TAG}.{key}"[:MAX_KEY]
                        tags.setdefault(name, f"{value} at step {point.step}")
                    value = math.nan
                kept.append(Point(key, value, point.step, point.timestamp_ms))
            # The tags first: points that could not be written come again, but those that were do not.
            if tags:
                self._journal.append(SetTags(tags), self._child)
                self._recorded.non_finite.update(point.key for point in kept if math.isnan(point.value))
            if kept:
                self._journal.append(LogMetrics(tuple(kept)), self._child)
                self._recorded.last_steps = last_steps

    def points(self) -> Iterator[Point]:
        """All points recorded so far, in order, those of earlier attempts included."""
        for op in self._journal.operations(self._child):
            if isinstance(op, LogMetrics):
                yield from op.points

    def log_summary(self, metrics: Mapping[str, float]) -> None:
        """Record figures of the run as a whole; a later summary of the same run replaces them.

        They stand at step 0, since the UI draws a bar for a single value there, which compares runs.
        """
        time_ms = now_ms()
        points = tuple(
            Point(self._clean(key), float(value) if math.isfinite(value) else math.nan, 0, time_ms)
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
            self._record(EndRun(status, now_ms()))
            self._recorded.is_open = False

    def _start(self, start: StartRun, key: str) -> None:
        with self._lock:
            tags = {str(name): str(value)[:MAX_TAG] for name, value in start.tags.items()}
            op = replace(start, tags=tags, params=flatten_params(start.params), key=key, time_ms=now_ms())
            self._record(op)
            self._started = True
            self._recorded.key, self._recorded.is_open = key, True

    def _record(self, op: Op, child: str | None = None) -> None:
        """Append what is said once only; a full disk, or one that is gone, gets a little time to come back."""
        whose = self._child if child is None else child
        for pause_s in _PAUSES_S:
            try:
                self._journal.append(op, whose)
                return
            except TrackingError as error:
                if self._journal.closed:
                    raise
                _log.warning("%s; trying again in %g s", error.reason, pause_s)
                time.sleep(pause_s)
        self._journal.append(op, whose)

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


def now_ms() -> int:
    return time.time_ns() // 1_000_000
