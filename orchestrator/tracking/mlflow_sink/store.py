"""Opening an MLflow store, and calling it: settings of our own, and errors in our words.

Imports: mlflow and requests (inside functions), the standard library, the files beside this folder.
"""

from __future__ import annotations

import fcntl
import functools
import logging
import os
import sqlite3
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from orchestrator.tracking.conventions import without_credentials
from orchestrator.tracking.links import sqlite_file
from orchestrator.tracking.ops import SinkRefused, SinkUnavailable

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
