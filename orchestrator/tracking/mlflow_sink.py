"""The MLflow sink. The only file of the project that imports mlflow, and only inside functions: loading it
takes more than a second, so that it happens in the shipper's thread.

Only `MlflowClient` is used: the fluent API keeps a run per process, and marks killed runs FINISHED.
Imports: mlflow, the standard library, the files beside this one.
"""

from __future__ import annotations

import fcntl
import functools
import json
import logging
import os
import re
import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from orchestrator.tracking.conventions import (
    CHANGED_TAG,
    DESCRIPTION_TAG,
    DIGEST_TAG,
    ENDED_TAG,
    RUN_KEY_TAG,
    folder_digest,
    without_credentials,
)
from orchestrator.tracking.example import input_example
from orchestrator.tracking.links import sqlite_file
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
    SinkUnavailable,
    StartRun,
)

_log = logging.getLogger(__name__)

_STATUS = {"RUNNING": "RUNNING", "SUCCEEDED": "FINISHED", "FAILED": "FAILED", "STOPPED": "KILLED"}
_FOR_GOOD = {
    "INVALID_PARAMETER_VALUE",
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "INVALID_STATE",
    "FEATURE_DISABLED",
    "NOT_IMPLEMENTED",
}
_TIMEOUT_S = 5
_UPLOAD_TIMEOUT_S = 300
_MODEL_METRICS = ("test/", "val/", "best/")


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
            return _start_run(client, op, state, self.tracking_uri)
        if state.run_id is None:
            raise SinkRefused("no run was started")
        match op:
            case LogMetrics():
                client.log_batch(state.run_id, metrics=_metrics(op))
            case SetTags():
                _set_tags(client, state.run_id, op.tags)
            case LogParams():
                _set_params(client, client.get_run(state.run_id), op.params)
            case LogArtifact():
                _upload(client, state.run_id, op)
            case LogModel():
                uri = _log_model(client, op, state.run_id, str(state.experiment_id))
                return replace(state, model_uri=uri)
            case LogDataset():
                _log_dataset(client, op, state.run_id)
            case EndRun():
                client.set_terminated(state.run_id, _STATUS[op.status], op.time_ms)
        return state


def connect(tracking_uri: str) -> Any:
    """An `MlflowClient` on the store; a new sqlite file gets its tables under a lock.

    Several processes that touch a fresh file at once break it, so that whoever opens one comes through here.
    Raises SinkUnavailable.
    """
    with calling(tracking_uri, uploading=False):
        from mlflow import MlflowClient

        registry_uri = os.environ.get("MLFLOW_REGISTRY_URI") or tracking_uri
        # Making the client already makes tables.
        with _alone(sqlite_file(tracking_uri)):
            _make_tables(sqlite_file(tracking_uri))
            client = MlflowClient(tracking_uri=tracking_uri, registry_uri=registry_uri)
    return client


def _make_tables(database: Path | None) -> None:
    """Make a new sqlite file with MLflow's tables, whole or not at all.

    That takes seconds, on a busy machine a minute; a process that ended meanwhile would leave some of the tables,
    which MLflow can neither use nor complete.
    """
    if database is None or (database.exists() and database.stat().st_size):
        return
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory(prefix=f".{database.name}-", dir=database.parent) as folder:
        fresh, copy = Path(folder) / "fresh.db", Path(folder) / "copy.db"
        uri = f"sqlite:///{fresh}"
        MlflowClient(tracking_uri=uri, registry_uri=uri).search_registered_models(max_results=1)
        # A copy: MLflow keeps its connections to the other one.
        with closing(sqlite3.connect(fresh)) as source, closing(sqlite3.connect(copy)) as target:
            source.backup(target)
        copy.replace(database)


@contextmanager
def _alone(database: Path | None) -> Iterator[None]:
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with (database.parent / f".{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def mark_dead(
    tracking_uri: str,
    run_id: str,
    status: Literal["FAILED", "KILLED"],
    reason: str,
    end_time_ms: int | None = None,
) -> bool:
    """End a run whose job is dead, with a tag that says why; False where it was not RUNNING any more.

    Ship what its journal still holds first (`recover_journal`). `end_time_ms` is its last sign of life.
    Raises SinkRefused (no such run) or SinkUnavailable.
    """
    with calling(tracking_uri, uploading=False):
        client = connect(tracking_uri)
        if client.get_run(run_id).info.status != "RUNNING":
            return False
        _set_tags(client, run_id, {ENDED_TAG: reason})
        client.set_terminated(run_id, status, end_time_ms)
    return True


def download_artifacts(tracking_uri: str, location: str, path: str, folder: Path) -> Path:
    """Copy a file or folder of an artifact location into a local folder that exists; returns the copy.

    Only inside `calling`.
    """
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    repository = get_artifact_repository(location, tracking_uri=tracking_uri)
    try:
        return Path(repository.download_artifacts(path, str(folder)))
    finally:
        repository.thread_pool.shutdown()


@contextmanager
def calling(tracking_uri: str, *, uploading: bool) -> Iterator[None]:
    """Around our calls of MLflow: settings of our own, and every error as SinkRefused or SinkUnavailable.

    The rest of the process keeps its settings. MLflow's default of 7 retries blocks for four minutes where a
    server is gone.
    """
    with _settings(
        MLFLOW_HTTP_REQUEST_MAX_RETRIES=0,
        MLFLOW_HTTP_REQUEST_TIMEOUT=_UPLOAD_TIMEOUT_S if uploading else _TIMEOUT_S,
        MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT=True,
        MLFLOW_UV_AUTO_DETECT=False,
    ):
        try:
            yield
        except (SinkRefused, SinkUnavailable):
            raise
        except Exception as error:
            raise _translate(error, tracking_uri, uploading=uploading) from error


@contextmanager
def _settings(**values: object) -> Iterator[None]:
    """Let MLflow read these values for its environment variables.

    Not by the environment itself: to change that while Ray's threads read it (`getenv`) can end the process.
    """
    _load()
    from mlflow import environment_variables

    variables = {getattr(environment_variables, name): value for name, value in values.items()}
    before = {variable: vars(variable).get("get") for variable in variables}
    for variable, value in variables.items():
        variable.get = lambda value=value: value
    try:
        yield
    finally:
        for variable, own in before.items():
            if own is None:
                vars(variable).pop("get", None)
            else:
                variable.get = own


@functools.cache
def _load() -> None:
    """Import mlflow, quiet and without telemetry, unless the environment wants it otherwise."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    fresh = "mlflow" not in sys.modules
    import mlflow  # noqa: F401

    if fresh:
        logging.getLogger("mlflow").setLevel(os.environ.get("MLFLOW_LOGGING_LEVEL", "WARNING"))


def _translate(error: Exception, tracking_uri: str, *, uploading: bool) -> SinkRefused | SinkUnavailable:
    from mlflow.exceptions import MlflowException, RestException
    from requests import HTTPError, RequestException

    reason = f"{type(error).__name__}: {error}"
    if sqlite_file(tracking_uri) is not None and "already exists" in reason and "CREATE TABLE" in reason:
        reason = "a process that ended while it made this database left it half made; if it holds no runs, remove it"
    if isinstance(error, HTTPError) and error.response is not None:
        code = error.response.status_code
        for_good = 400 <= code < 500 and code not in (401, 403, 404, 408, 425, 429)
    elif isinstance(error, MlflowException):
        local = sqlite_file(tracking_uri) is not None
        for_good = error.error_code in _FOR_GOOD
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            # A proxy whose server is away answers 404 too, though not in MLflow's words.
            for_good = local or isinstance(error, RestException)
        elif error.error_code == "INTERNAL_ERROR":
            # With no server in between, it is the data's fault (say, a step beyond 64 bits), not an outage.
            for_good = local
    else:
        bad_files = FileNotFoundError | NotADirectoryError | ValueError | TypeError | KeyError
        for_good = uploading and isinstance(error, bad_files) and not isinstance(error, RequestException)
    if for_good:
        return SinkRefused(reason)
    return SinkUnavailable(f"MLflow at {without_credentials(tracking_uri)}: {reason}")


def _start_run(client: Any, op: StartRun, state: RunState, tracking_uri: str) -> RunState:
    run = _active_run(client, state.run_id) or _active_run(client, op.run_id)
    experiment_id = run.info.experiment_id if run else _experiment_id(client, op.experiment, tracking_uri)
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
        _set_tags(client, run.info.run_id, tags)
    _set_params(client, run, op.params)
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


def _metrics(op: LogMetrics) -> list[Any]:
    from mlflow.entities import Metric

    return [Metric(point.key, point.value, point.timestamp_ms, point.step) for point in op.points]


def _set_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def _set_params(client: Any, run: Any, params: Mapping[str, str]) -> None:
    """Params can never change: what a resumed attempt changed becomes a tag."""
    from mlflow.entities import Param

    old = run.data.params
    new = [Param(name, value) for name, value in params.items() if name not in old]
    client.log_batch(run.info.run_id, params=new)
    changed = {name: value for name, value in params.items() if old.get(name, value) != value}
    tags = {f"{CHANGED_TAG}.{name}": f"{old[name]} -> {value}" for name, value in changed.items()}
    _set_tags(client, run.info.run_id, tags)


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


def _log_model(client: Any, op: LogModel, run_id: str, experiment_id: str) -> str:
    """Log the model and register it; every step looks first whether an earlier try got that far.

    Returns the URI by which it is loaded."""
    from mlflow.entities import LoggedModelOutput, Metric
    from mlflow.entities.logged_model_status import LoggedModelStatus

    digest = folder_digest(Path(op.model_dir))
    run = client.get_run(run_id)
    known = client.search_logged_models(
        [experiment_id], f"source_run_id = '{run_id}' AND tags.`{DIGEST_TAG}` = '{digest}'", max_results=1
    )
    if known:
        model = known[0]
    else:
        tags = {DIGEST_TAG: digest}
        model = client.create_logged_model(experiment_id, op.name, run_id, tags, run.data.params, "pyfunc")
    if model.status != LoggedModelStatus.READY:
        with tempfile.TemporaryDirectory(prefix="orchestrator-model-") as temporary:
            folder = Path(temporary) / "model"
            _save_pyfunc(op, folder, run_id, model)
            client.log_model_artifacts(model.model_id, str(folder))
        model = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    outputs = run.outputs.model_outputs if run.outputs else []
    if model.model_id not in {output.model_id for output in outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    figures = [
        Metric(metric.key, metric.value, metric.timestamp, metric.step, model_id=model.model_id)
        for metric in run.data._metric_objs
        if metric.key.startswith(_MODEL_METRICS)
    ]
    client.log_batch(run_id, metrics=figures)
    if not op.registered_model_name:
        return f"models:/{model.model_id}"
    version = _register(client, op.registered_model_name, run, model)
    return f"models:/{op.registered_model_name}/{version}"


def _save_pyfunc(op: LogModel, folder: Path, run_id: str, model: Any) -> None:
    import mlflow.pyfunc
    from mlflow.models import Model, ModelSignature

    mlflow.pyfunc.save_model(
        path=str(folder),
        loader_module=op.loader_module,
        data_path=op.model_dir,
        code_paths=list(op.code_paths) or None,
        pip_requirements=list(op.pip_requirements),
        signature=ModelSignature.from_dict(op.signature) if op.signature else None,
        input_example=input_example(op),
        mlflow_model=Model(
            artifact_path=model.artifact_location,
            run_id=run_id,
            model_uuid=model.model_id,
            model_id=model.model_id,
            metadata=dict(op.metadata) or None,
        ),
    )


def _register(client: Any, name: str, run: Any, model: Any) -> str:
    """Register the model under the name, once, described as its run is; returns the version's number."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    made = client.search_model_versions(f"name = '{name}' AND run_id = '{run.info.run_id}'")
    version = next((version for version in made if version.source == model.artifact_location), None)
    if version is None:
        version = client.create_model_version(
            name,
            model.artifact_location,
            run.info.run_id,
            description=run.data.tags.get(DESCRIPTION_TAG),
            await_creation_for=0,
            model_id=model.model_id,
        )
    # A server notes the version on the logged model by itself; else the UI would show it as unregistered.
    notes = json.loads(client.get_logged_model(model.model_id).tags.get("mlflow.modelVersions", "[]"))
    if name not in {note["name"] for note in notes}:
        notes.append({"name": name, "version": str(version.version)})
        client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": json.dumps(notes)})
    return str(version.version)
