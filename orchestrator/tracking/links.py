"""Where runs are recorded, and the address under which the UI shows them.

Imports: the standard library, errors, conventions. No mlflow.
"""

from __future__ import annotations

import os
from pathlib import Path
from urllib.parse import quote

from orchestrator.errors import UsageError
from orchestrator.tracking.conventions import without_credentials

_SQLITE = "sqlite:///"


def resolve_tracking_uri(spec_uri: str | None, storage_uri: str) -> str:
    """The absolute tracking URI of a run: the spec's, else `MLFLOW_TRACKING_URI`, else `mlflow.db` (sqlite)
    beside the local storage folder.

    Raises UsageError for a store that MLflow cannot use, and for remote storage without a tracking URI.
    """
    uri = spec_uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if uri:
        return _absolute(uri)
    storage = storage_uri.removeprefix("file://")
    if "://" in storage:
        raise UsageError(
            f"storage {storage_uri} is remote, and no MLflow tracking URI is set",
            "set mlflow.tracking_uri in the spec, or MLFLOW_TRACKING_URI, to your MLflow server",
        )
    return f"{_SQLITE}{Path(storage).expanduser().resolve().parent / 'mlflow.db'}"


def sqlite_file(tracking_uri: str) -> Path | None:
    """The database file of an absolute sqlite URI; None for a server."""
    return Path(tracking_uri.removeprefix(_SQLITE)) if tracking_uri.startswith(_SQLITE) else None


def ui_base(tracking_uri: str, port: int = 5000) -> str:
    """Where the UI answers: the server itself, or `orchestrator ui` for a local store."""
    if tracking_uri.startswith(("http://", "https://")):
        return without_credentials(tracking_uri).rstrip("/")
    return f"http://127.0.0.1:{port}"


def run_link(base: str, experiment_id: str, run_id: str) -> str:
    """The page of a run. Without the workflow type, MLflow 3 may open its view for language-model traces."""
    page = f"/#/experiments/{quote(experiment_id)}/runs/{quote(run_id)}"
    return f"{base.rstrip('/')}{page}?workflowType=machine_learning"


def _absolute(uri: str) -> str:
    if uri.startswith(("http://", "https://", "databricks")):
        return uri.rstrip("/")
    if uri.startswith(_SQLITE):
        path = uri.removeprefix(_SQLITE)
        if not path or path.startswith(":memory:"):
            raise UsageError(f"tracking URI {uri} names no file", "write sqlite:///mlflow.db")
        return f"{_SQLITE}{Path(path).expanduser().resolve()}"
    if "://" in uri and not uri.startswith("file:"):
        raise UsageError(
            f"tracking URI {without_credentials(uri)} is neither sqlite nor a server",
            "start `mlflow server --backend-store-uri …` on that database, and name its http address",
        )
    raise UsageError(
        f"tracking URI {uri} is a folder, and MLflow 3 no longer records into folders",
        f"write sqlite:///{uri.removeprefix('file://').rstrip('/')}/mlflow.db, or a server's http address",
    )
