"""Recording runs: a journal on local disk, shipped to MLflow in the background by one thread.

`Tracker` is the facade, for a run and its children; a `Sink` is where the operations end up: `MlflowSink` or
`MemorySink`. Importing this package loads no mlflow: only `mlflow_sink` imports it, inside its functions.
"""

from orchestrator.tracking.conventions import flatten_params, metric_key, source_tags
from orchestrator.tracking.links import resolve_tracking_uri, run_link, ui_base
from orchestrator.tracking.memory import MemorySink
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
    Sink,
    SinkRefused,
    SinkUnavailable,
    StartRun,
)
from orchestrator.tracking.tracker import ChildTracker, Tracker, recorded_run_id, recover_journal

__all__ = [
    "ChildTracker",
    "EndRun",
    "LogArtifact",
    "LogDataset",
    "LogMetrics",
    "LogModel",
    "LogParams",
    "MemorySink",
    "Op",
    "RunState",
    "SetTags",
    "Sink",
    "SinkRefused",
    "SinkUnavailable",
    "StartRun",
    "Tracker",
    "flatten_params",
    "metric_key",
    "recorded_run_id",
    "recover_journal",
    "resolve_tracking_uri",
    "run_link",
    "source_tags",
    "ui_base",
]
