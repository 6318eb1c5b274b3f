"""A sink that keeps runs in memory: for tests, and for runs without tracking.

It behaves as the MLflow sink does, replays included (the contract tests hold both to it).
Imports: the standard library, ops, conventions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrator.records import Point, Status
from orchestrator.tracking.conventions import CHANGED_TAG, DESCRIPTION_TAG, PARENT_TAG, folder_digest
from orchestrator.tracking.ops import (
    EndRun,
    LogArtifact,
    LogDataset,
    LogMetrics,
    LogModel,
    LogParams,
    Op,
    RunState,
    SetTags,
    SinkRefused,
    StartRun,
)


@dataclass
class MemoryRun:
    experiment: str
    name: str
    key: str
    status: Status = "RUNNING"
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    points: dict[tuple[str, int, int, str], Point] = field(default_factory=dict)
    """By key, step, time and value (as text, since NaN does not equal itself): a replay changes nothing."""
    artifacts: set[str] = field(default_factory=set)
    models: dict[str, LogModel] = field(default_factory=dict)
    """By the digest of their files."""
    datasets: dict[str, LogDataset] = field(default_factory=dict)
    """By their digest."""


class MemorySink:
    """Keeps runs by id in `runs`; `versions` has `<run id>/<digest>` of what was registered, by name."""

    def __init__(self) -> None:
        self.runs: dict[str, MemoryRun] = {}
        self.versions: dict[str, list[str]] = {}

    def apply(self, op: Op, state: RunState) -> RunState:
        if isinstance(op, StartRun):
            return self._start(op, state)
        run = self.runs.get(state.run_id or "")
        if run is None:
            raise SinkRefused(f"no run {state.run_id}")
        match op:
            case LogMetrics():
                for point in op.points:
                    run.points[point.key, point.step, point.timestamp_ms, repr(point.value)] = point
            case SetTags():
                run.tags.update(op.tags)
            case LogParams():
                _set_params(run, op.params)
            case LogArtifact():
                run.artifacts |= _names(op)
            case LogModel():
                return replace(state, model_uri=self._log_model(op, run, state.run_id or ""))
            case LogDataset():
                run.datasets[op.digest] = op
            case EndRun():
                run.status = op.status
        return state

    def _start(self, op: StartRun, state: RunState) -> RunState:
        known = [run_id for run_id, run in self.runs.items() if run.key == op.key]
        run_id = next((name for name in (state.run_id, op.run_id, *known) if name in self.runs), None)
        last_steps: dict[str, int] = dict(state.last_steps)
        if run_id is None:
            run_id = f"run-{len(self.runs) + 1}"
            # A child is where its parent is.
            experiment = (
                state.experiment_id if PARENT_TAG in op.tags and state.experiment_id else op.experiment
            )
            self.runs[run_id] = MemoryRun(experiment, op.run_name, op.key)
        elif op.run_id == run_id:
            for point in self.runs[run_id].points.values():
                last_steps[point.key] = max(point.step, last_steps.get(point.key, -1))
        run = self.runs[run_id]
        run.status = "RUNNING"
        run.tags.update(op.tags)
        if op.description:
            run.tags[DESCRIPTION_TAG] = op.description
        _set_params(run, op.params)
        return replace(state, run_id=run_id, experiment_id=run.experiment, last_steps=last_steps)

    def _log_model(self, op: LogModel, run: MemoryRun, run_id: str) -> str:
        try:
            digest = folder_digest(Path(op.model_dir))
        except OSError as error:
            raise SinkRefused(f"model {op.model_dir} cannot be read: {error}") from error
        run.models.setdefault(digest, op)
        name = op.registered_model_name
        if name is None:
            return f"models:/m-{digest}"
        versions = self.versions.setdefault(name, [])
        label = f"{run_id}/{digest}"
        if label not in versions:
            versions.append(label)
        return f"models:/{name}/{versions.index(label) + 1}"


def _set_params(run: MemoryRun, params: Mapping[str, str]) -> None:
    for name, value in params.items():
        old = run.params.setdefault(name, value)
        if old != value:
            run.tags[f"{CHANGED_TAG}.{name}"] = f"{old} -> {value}"


def _names(op: LogArtifact) -> set[str]:
    path = Path(op.local_path)
    prefix = f"{op.artifact_path}/" if op.artifact_path else ""
    if path.is_file():
        return {prefix + path.name}
    if path.is_dir():
        return {prefix + file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    raise SinkRefused(f"artifact {path} does not exist")
