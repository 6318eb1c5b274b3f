"""`orchestrator ui`: the MLflow UI on this project's tracking store.

The server runs in a process group of its own, since MLflow's workers outlive a parent that is killed alone.
Imports: typer; tracking inside functions.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from types import FrameType
from typing import Annotated, NoReturn

import typer

from orchestrator.cli.options import StorageOption, open_storage
from orchestrator.errors import TrackingError, UsageError

_TRAINING_VIEW = "/#/experiments?workflowType=machine_learning"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_LOCAL_HOSTS = ("localhost", "localhost:*", "127.0.0.1", "127.0.0.1:*")
_START_TIMEOUT_S = 120
_END_TIMEOUT_S = 10


def ui(
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of the UI.")] = 5000,
    host: Annotated[
        str, typer.Option("--host", help="Interface to listen on; 0.0.0.0 for other machines too.")
    ] = "127.0.0.1",
    storage: StorageOption = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(
            "--tracking-uri",
            help="The store: sqlite:///FILE or a server. By default MLFLOW_TRACKING_URI, else mlflow.db "
            "beside the storage.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Open the MLflow UI on this project's runs, until Ctrl-C.

    Example: orchestrator ui --port 5001
    """
    from orchestrator.runners.books import close_books
    from orchestrator.tracking.links import resolve_tracking_uri, ui_base

    folder = open_storage(storage)
    uri = resolve_tracking_uri(tracking_uri, folder.uri)
    for line in close_books(folder, now_s=time.time()):
        typer.echo(line, err=True)
    if uri.startswith(("http://", "https://")):
        typer.echo(f"the runs are on a server of their own: {ui_base(uri)}{_TRAINING_VIEW}")
        return
    _check_free(host, port)
    _make_store(uri)
    _serve(uri, host, port)


def server_command(tracking_uri: str, host: str, port: int) -> list[str]:
    """MLflow's server with one worker, and open to no more names than the host asks for.

    Artifacts of experiments that are made in the UI lie where our own do, so that both ways of writing agree.
    """
    from orchestrator.tracking.links import sqlite_file

    file = sqlite_file(tracking_uri)
    root = ["--default-artifact-root", (file.parent / "mlartifacts").as_uri()] if file else []
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--no-serve-artifacts"),
        *("--host", host, "--port", str(port), "--backend-store-uri", tracking_uri, *root),
    ]
    if host in _LOOPBACK:
        return command
    names = sorted({socket.gethostname(), socket.getfqdn(), _own_address(), host} - {"0.0.0.0", "::"})
    hosts = [*_LOCAL_HOSTS, *(f"{name}:{port}" for name in names)]
    origins = [f"http://{name}:{port}" for name in names]
    return [*command, "--allowed-hosts", ",".join(hosts), "--cors-allowed-origins", ",".join(origins)]


def _serve(uri: str, host: str, port: int) -> NoReturn:
    """Run the server until a signal comes. Raises TrackingError where it ends by itself."""
    environment = {
        **os.environ,
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host
    base = f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
    with tempfile.TemporaryFile("w+") as log, _signals_as_exit():
        process = subprocess.Popen(
            server_command(uri, host, port), env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            typer.echo(f"starting MLflow on {uri} …", err=True)
            if _comes_up(process, base):
                typer.echo(f"{base}{_TRAINING_VIEW}")
                typer.echo("Ctrl-C ends it", err=True)
                process.wait()
        finally:
            _end_group(process)
        log.seek(0)
        raise TrackingError(
            f"the MLflow server has ended with code {process.returncode}: {log.read()[-2000:]}"
        )


def _comes_up(process: subprocess.Popen[bytes], base: str) -> bool:
    """Wait until the server answers; False where it has ended instead."""
    import urllib.request  # it takes as long to import as all of this file

    deadline = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None:
        with (
            contextlib.suppress(OSError),
            urllib.request.urlopen(f"{base}/health", timeout=2),
        ):
            return True
        if time.monotonic() > deadline:
            raise TrackingError(f"the MLflow server does not answer within {_START_TIMEOUT_S} s")
        time.sleep(0.2)
    return False


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Ask the server and its workers to end, and make them where they do not."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=_END_TIMEOUT_S)


@contextlib.contextmanager
def _signals_as_exit() -> Iterator[None]:
    """SIGINT and SIGTERM leave the block as typer.Exit with the code that shells expect."""

    def leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature that Python calls
        for other in before:
            signal.signal(other, signal.SIG_IGN)  # a second one must not break the clearing up
        raise typer.Exit(128 + number)

    before = {
        number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _make_store(uri: str) -> None:
    """Give a new sqlite file its tables first: MLflow's processes break it when they do it all at once."""
    from orchestrator.tracking.links import sqlite_file

    file = sqlite_file(uri)
    if file is not None and not file.exists():
        from orchestrator.tracking.mlflow_sink import connect

        typer.echo(f"no runs are recorded in {file} yet", err=True)
        connect(uri)


def _check_free(host: str, port: int) -> None:
    if _is_free(host, port):
        return
    free = next((other for other in range(port + 1, min(port + 200, 65536)) if _is_free(host, other)), None)
    hint = (
        f"another server has it; take the next free one: --port {free}" if free else "choose another --port"
    )
    raise UsageError(f"port {port} of {host} is in use", hint)


def _is_free(host: str, port: int) -> bool:
    """Whether the port can be had. Raises UsageError for a host that is not this machine's."""
    import errno

    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            return False
        raise UsageError(f"cannot listen on {host}: {error}", "use 127.0.0.1, or 0.0.0.0 for all") from error
    return True


def _own_address() -> str:
    """The address under which other machines see this one; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
