"""Models of the MLflow store: logged, registered, downloaded.

Imports: mlflow (inside functions), the standard library, the files beside this folder.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from orchestrator.tracking.conventions import DESCRIPTION_TAG, DIGEST_TAG, folder_digest
from orchestrator.tracking.example import input_example
from orchestrator.tracking.ops import LogModel

_MODEL_METRICS = ("test/", "val/", "best/")


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


def log_model(client: Any, op: LogModel, run_id: str, experiment_id: str) -> str:
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
