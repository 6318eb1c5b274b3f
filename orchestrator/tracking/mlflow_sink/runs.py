"""Runs of the MLflow store: made or found again, their tags and params, and the end of those whose job is dead.

Imports: mlflow (inside functions), the standard library, the files beside this one and beside this folder.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from orchestrator.tracking.conventions import (
    CHANGED_TAG,
    DESCRIPTION_TAG,
    ENDED_TAG,
    PARENT_TAG,
    RUN_KEY_TAG,
)
from orchestrator.tracking.links import sqlite_file
from orchestrator.tracking.mlflow_sink.store import calling, connect
from orchestrator.tracking.ops import RunState, StartRun


def start_run(client: Any, op: StartRun, state: RunState, tracking_uri: str) -> RunState:
    run = _active_run(client, state.run_id) or _active_run(client, op.run_id)
    if run is not None:
        experiment_id = run.info.experiment_id
    elif PARENT_TAG in op.tags and state.experiment_id is not None:
        experiment_id = state.experiment_id  # the UI shows a child under a parent of the same experiment only
    else:
        experiment_id = _experiment_id(client, op.experiment, tracking_uri)
    tags = {**op.tags, RUN_KEY_TAG: op.key}
    if op.description:
        tags[DESCRIPTION_TAG] = op.description
    if run is None:
        found = client.search_runs([experiment_id], f"tags.`{RUN_KEY_TAG}` = '{op.key}'", max_results=1)
        run = found[0] if found else None
    if run is None:
        # The key goes into the same call, so that no crash can leave a run that a replay would not find.
        run = client.create_run(experiment_id, start_time=op.time_ms, tags=tags, run_name=op.run_name)
    else:
        client.update_run(run.info.run_id, status="RUNNING")
        set_tags(client, run.info.run_id, tags)
    set_params(client, run, op.params)
    last_steps = dict(state.last_steps)
    if op.run_id == run.info.run_id:
        last_steps.update((metric.key, metric.step) for metric in run.data._metric_objs)
    return replace(state, run_id=run.info.run_id, experiment_id=experiment_id, last_steps=last_steps)


def _active_run(client: Any, run_id: str | None) -> Any:
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run if run.info.lifecycle_stage == "active" else None


def _experiment_id(client: Any, name: str, tracking_uri: str) -> str:
    """The experiment's id; it is made where it is missing, and restored where somebody deleted it."""
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        file = sqlite_file(tracking_uri)
        folder = file.parent / "mlartifacts" / re.sub(r"[^\w.-]", "_", name) if file else None
        try:
            # The kind makes the UI open its view for training, not the one for language-model traces.
            return str(
                client.create_experiment(
                    name,
                    artifact_location=folder.as_uri() if folder else None,
                    tags={"mlflow.experimentKind": "custom_model_development"},
                )
            )
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            experiment = client.get_experiment_by_name(name)
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
    return str(experiment.experiment_id)


def set_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    client.log_batch(run_id, tags=_tags(tags))


def _tags(tags: Mapping[str, str]) -> list[Any]:
    from mlflow.entities import RunTag

    return [RunTag(name, value) for name, value in tags.items()]


def set_params(client: Any, run: Any, params: Mapping[str, str]) -> None:
    """Params can never change: what a resumed attempt changed becomes a tag."""
    from mlflow.entities import Param

    old = run.data.params
    new = [Param(name, value) for name, value in params.items() if name not in old]
    changed = {name: value for name, value in params.items() if old.get(name, value) != value}
    tags = {f"{CHANGED_TAG}.{name}": f"{old[name]} -> {value}" for name, value in changed.items()}
    if new or tags:
        client.log_batch(run.info.run_id, params=new, tags=_tags(tags))


def mark_dead(
    tracking_uri: str,
    run_id: str,
    status: Literal["FAILED", "KILLED"],
    reason: str,
    end_time_ms: int | None = None,
) -> bool:
    """End a run whose job is dead, with a tag that says why; False where it was not RUNNING any more.

    Its children that are still RUNNING are ended before it, as KILLED.

    Ship what its journal still holds first (`recover_journal`). `end_time_ms` is its last sign of life.
    Raises SinkRefused (no such run) or SinkUnavailable.
    """
    with calling(tracking_uri, uploading=False):
        client = connect(tracking_uri)
        run = client.get_run(run_id)
        for child in _running_children(client, run):
            set_tags(client, child, {ENDED_TAG: reason})
            client.set_terminated(child, "KILLED", end_time_ms)
        if run.info.status != "RUNNING":
            return False
        set_tags(client, run_id, {ENDED_TAG: reason})
        client.set_terminated(run_id, status, end_time_ms)
    return True


def _running_children(client: Any, run: Any) -> list[str]:
    """The ids of all children of a run that are RUNNING."""
    found: list[str] = []
    wanted = f"tags.`{PARENT_TAG}` = '{run.info.run_id}' AND attributes.status = 'RUNNING'"
    page: str | None = None
    while True:
        page_of_runs = client.search_runs([run.info.experiment_id], wanted, page_token=page)
        found += [child.info.run_id for child in page_of_runs]
        page = page_of_runs.token
        if not page:
            return found
