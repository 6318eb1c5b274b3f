"""Models that were logged before: found by their URI, and downloaded. Imports: the standard library, `mlflow_sink`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.tracking.conventions import without_credentials
from orchestrator.tracking.mlflow_sink import calling, connect, download_artifacts
from orchestrator.tracking.ops import SinkRefused

_BUNDLES = "data"  # where mlflow.pyfunc keeps what it was given
_FORMS = (
    (re.compile(r"models:/(?P<name>[^/@]+)@(?P<alias>[^/@]+)"), "alias"),
    (re.compile(r"models:/(?P<name>[^/@]+)/(?P<version>\d+)"), "version"),
    (re.compile(r"models:/(?P<model_id>m-[^/@]+)"), "logged model"),
    (re.compile(r"runs:/(?P<run_id>[^/]+)(?:/(?P<model>[^/]+))?"), "run"),
)


def is_model_uri(uri: str) -> bool:
    return uri.startswith(("models:/", "runs:/"))


def download_model(tracking_uri: str, uri: str, folder: Path) -> Path:
    """Download what a logged model was made of into a local folder; returns the folder with its files in it.

    `uri` is `models:/<name>@<alias>`, `models:/<name>/<version>`, `models:/<model id>`, or `runs:/<run id>` with
    the newest model of that run (`runs:/<run id>/<model name>` where it has several names).
    Raises UsageError where there is no such model, SinkUnavailable where MLflow cannot be reached.
    """
    parsed = next(((match, kind) for form, kind in _FORMS if (match := form.fullmatch(uri))), None)
    if parsed is None:
        raise UsageError(
            f"'{uri}' names no model",
            "write models:/<name>@<alias>, models:/<name>/<version> or runs:/<run id>",
        )
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with calling(tracking_uri, uploading=True):
            client = connect(tracking_uri)
            location = _location(client, parsed[0].groupdict())
            return download_artifacts(tracking_uri, location, _BUNDLES, folder)
    except SinkRefused as error:
        raise UsageError(
            f"MLflow at {without_credentials(tracking_uri)} has no model '{uri}': {error.reason}",
            f"correct the {parsed[1]}, or name another store (mlflow.tracking_uri)",
        ) from error


def _location(client: Any, names: dict[str, str | None]) -> str:
    """Where the artifacts of the model lie. Raises SinkRefused for a run without a model."""
    if names.get("model_id"):
        return str(client.get_logged_model(names["model_id"]).artifact_location)
    if names.get("run_id"):
        run = client.get_run(names["run_id"])
        outputs = run.outputs.model_outputs if run.outputs else []
        models = [client.get_logged_model(output.model_id) for output in outputs]
        wanted = names.get("model")
        models = [model for model in models if wanted in (None, model.name)]
        if not models:
            raise SinkRefused(f"run {names['run_id']} has no model" + (f" '{wanted}'" if wanted else ""))
        return str(max(models, key=lambda model: model.creation_timestamp).artifact_location)
    version = names.get("version")
    if version is None:
        version = client.get_model_version_by_alias(names["name"], names["alias"]).version
    return str(client.get_model_version_download_uri(names["name"], version))
