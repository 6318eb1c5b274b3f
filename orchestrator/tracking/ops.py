"""The operations that a run records, and the protocol of the sink that applies them.

Every operation is plain data and survives a trip through JSON. Imports: the standard library and records.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from orchestrator.errors import TrackingError
from orchestrator.records import Point, Status


@dataclass(frozen=True, slots=True)
class StartRun:
    """Make a run, or go on with the one made before.

    `run_id` names a run of the server to go on with, where it is known from elsewhere. `key` and `time_ms`
    are filled in by the tracker: the key tells this run from every other, so that a replay finds it again.
    """

    experiment: str
    run_name: str
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    description: str = ""
    run_id: str | None = None
    key: str = ""
    time_ms: int = 0


@dataclass(frozen=True, slots=True)
class LogMetrics:
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class SetTags:
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class LogParams:
    params: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class LogArtifact:
    """Upload a file, or all that is in a folder, into `artifact_path` of the run's artifacts ('' = top)."""

    local_path: str
    artifact_path: str = ""


@dataclass(frozen=True, slots=True)
class LogModel:
    """Log a model folder as a pyfunc model, and register it where a name is given.

    `signature` is MLflow's `ModelSignature.to_dict()` form. `input_example` is a file inside `model_dir`:
    `.npy` holds an array, `.json` a list of row objects (binary columns as base64 text).
    """

    model_dir: str
    name: str
    loader_module: str
    registered_model_name: str | None = None
    code_paths: tuple[str, ...] = ()
    pip_requirements: tuple[str, ...] = ()
    signature: Mapping[str, Any] | None = None
    input_example: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class LogDataset:
    """Say what data the run used: MLflow lists it under Datasets. `digest` (at most 36 characters) tells its content,
    `source` where it came from, `profile` its figures; all but the name and the digest is JSON."""

    name: str
    digest: str
    source_type: str
    source: Mapping[str, Any]
    profile: Mapping[str, Any] = field(default_factory=dict)
    context: str = "training"


@dataclass(frozen=True, slots=True)
class EndRun:
    status: Status
    time_ms: int


Op = StartRun | LogMetrics | SetTags | LogParams | LogArtifact | LogModel | LogDataset | EndRun

_KINDS: dict[str, type[Op]] = {
    kind.__name__: kind
    for kind in (StartRun, LogMetrics, SetTags, LogParams, LogArtifact, LogModel, LogDataset, EndRun)
}


@dataclass(frozen=True)
class RunState:
    """What the shipper keeps of the run between operations.

    `model_uri` is what MLflow's `load_model` takes for the newest logged model: a registered version, else
    the logged model itself. `last_steps` holds, for a run that was started elsewhere, the last step that the
    server has of each metric: older points are not sent again.
    """

    run_id: str | None = None
    experiment_id: str | None = None
    model_uri: str | None = None
    last_steps: Mapping[str, int] = field(default_factory=dict)


class SinkUnavailable(TrackingError):
    """The sink cannot be reached now: the same operation is tried again later."""


class SinkRefused(TrackingError):
    """The sink will never take this operation: it is put aside, and the rest goes on."""


class Sink(Protocol):
    """Where operations end up. One thread calls it, in the order of the journal."""

    def apply(self, op: Op, state: RunState) -> RunState:
        """Apply one operation, and return the state after it.

        Applying an operation twice must leave what applying it once leaves: a crash may fall between applying
        and noting it. Raises SinkUnavailable or SinkRefused.
        """
        ...


def to_json(op: Op) -> dict[str, Any]:
    """The operation as a JSON object; points as short lists, since there are many of them."""
    if isinstance(op, LogMetrics):
        rows = [[point.key, point.value, point.step, point.timestamp_ms] for point in op.points]
        return {"op": "LogMetrics", "points": rows}
    return {"op": type(op).__name__, **asdict(op)}


def from_json(value: Mapping[str, Any]) -> Op:
    """The operation that `to_json` wrote; raises KeyError or TypeError for anything else."""
    fields = dict(value)
    kind = _KINDS[fields.pop("op")]
    if kind is LogMetrics:
        return LogMetrics(tuple(Point(*row) for row in fields["points"]))
    if kind is LogModel:
        fields["code_paths"] = tuple(fields["code_paths"])
        fields["pip_requirements"] = tuple(fields["pip_requirements"])
    return kind(**fields)


def halves(op: Op) -> tuple[Op, Op] | None:
    """The operation cut into two that mean the same together; None where it cannot be cut."""
    if isinstance(op, LogMetrics) and len(op.points) > 1:
        middle = len(op.points) // 2
        return LogMetrics(op.points[:middle]), LogMetrics(op.points[middle:])
    if isinstance(op, SetTags) and len(op.tags) > 1:
        first, second = _cut(op.tags)
        return SetTags(first), SetTags(second)
    if isinstance(op, LogParams) and len(op.params) > 1:
        first, second = _cut(op.params)
        return LogParams(first), LogParams(second)
    return None


def _cut(items: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    pairs = list(items.items())
    middle = len(pairs) // 2
    return dict(pairs[:middle]), dict(pairs[middle:])
