"""Applies operations to an MLflow store. Imports: mlflow (inside functions), the files beside this one and beside
this folder."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from orchestrator.tracking.mlflow_sink.models import log_model
from orchestrator.tracking.mlflow_sink.runs import set_params, set_tags, start_run
from orchestrator.tracking.mlflow_sink.store import calling, connect
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

_STATUS = {"RUNNING": "RUNNING", "SUCCEEDED": "FINISHED", "FAILED": "FAILED", "STOPPED": "KILLED"}


class MlflowSink:
    """Applies operations to an MLflow store: a `sqlite:///` file or an `http(s)://` server.

    Making it does nothing; the first operation imports mlflow and connects.
    """

    def __init__(self, tracking_uri: str) -> None:
        self.tracking_uri = tracking_uri
        self._client: Any = None

    def apply(self, op: Op, state: RunState) -> RunState:
        with calling(self.tracking_uri, uploading=isinstance(op, LogArtifact | LogModel)):
            if self._client is None:
                self._client = connect(self.tracking_uri)
            return self._apply(op, state)

    def _apply(self, op: Op, state: RunState) -> RunState:
        client = self._client
        if isinstance(op, StartRun):
            return start_run(client, op, state, self.tracking_uri)
        if state.run_id is None:
            raise SinkRefused("no run was started")
        match op:
            case LogMetrics():
                client.log_batch(state.run_id, metrics=_metrics(op))
            case SetTags():
                set_tags(client, state.run_id, op.tags)
            case LogParams():
                set_params(client, client.get_run(state.run_id), op.params)
            case LogArtifact():
                _upload(client, state.run_id, op)
            case LogModel():
                uri = log_model(client, op, state.run_id, str(state.experiment_id))
                return replace(state, model_uri=uri)
            case LogDataset():
                _log_dataset(client, op, state.run_id)
            case EndRun():
                client.set_terminated(state.run_id, _STATUS[op.status], op.time_ms)
        return state


def _metrics(op: LogMetrics) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(point.key, point.value, point.timestamp_ms, point.step) for point in op.points]


def _upload(client: Any, run_id: str, op: LogArtifact) -> None:
    path = Path(op.local_path)
    target = op.artifact_path or None
    if path.is_dir():
        client.log_artifacts(run_id, op.local_path, target)
    elif path.is_file():
        client.log_artifact(run_id, op.local_path, target)
    else:
        raise SinkRefused(f"artifact {path} does not exist")


def _log_dataset(client: Any, op: LogDataset, run_id: str) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=op.name,
        digest=op.digest,
        source_type=op.source_type,
        source=json.dumps(op.source),
        profile=json.dumps(op.profile),
    )
    client.log_inputs(run_id, [DatasetInput(dataset, [InputTag("mlflow.data.context", op.context)])])
