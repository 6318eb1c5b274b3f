"""Checks of `orchestrator doctor` that need no heavy package. Each yields findings, and may hang or raise.

Imports: errors, storage, tracking.links, the standard library.
"""

from __future__ import annotations

import email.utils
import importlib.metadata
import os
import resource
import shutil
import sqlite3
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from orchestrator.errors import UsageError
from orchestrator.storage import Folder

Level = Literal["ok", "warn", "fail"]


@dataclass(frozen=True)
class Finding:
    """What one check found: `reason` says it, `mend` what to do about it."""

    check: str
    level: Level
    reason: str
    mend: str = ""


@dataclass(frozen=True)
class Places:
    """Where to look: `storage` a path or URI, `tracking_uri` absolute, `address` of a cluster or None."""

    storage: str
    tracking_uri: str
    address: str | None = None


Check = Callable[[Places], Iterator[Finding]]

TESTED = {
    "torch": "2.13.0",
    "torchvision": "0.28.0",
    "ray": "2.60.0",
    "mlflow": "3.17.2",
    "pyarrow": "25.0.1",
    "pydantic": "2.14.3",
}
"""The versions of constraints.txt that decide whether things work together."""
TESTED_PYTHONS = ((3, 11),)
_PINNED = ("ray", "mlflow")  # other minor versions are refused at installation, with reason
_ENOUGH_STORAGE_BYTES = 5 * 10**9
_ENOUGH_FILES = 4096
_CLOCK_SKEW_S = 5.0
_ANSWER_TIMEOUT_S = 5.0


def packages(_: Places) -> Iterator[Finding]:
    python = ".".join(map(str, sys.version_info[:3]))
    missing: list[str] = []
    wrong: list[str] = []
    other = [] if sys.version_info[:2] in TESTED_PYTHONS else [f"Python {python}"]
    for name, tested in TESTED.items():
        try:
            found = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            missing.append(name)
            continue
        if found.split(".")[:2] != tested.split(".")[:2]:
            (wrong if name in _PINNED else other).append(f"{name} {found} (tested: {tested})")
    mend = "install as the project does: pip install -c constraints.txt ray-orchestrator"
    if missing:
        yield Finding("packages", "fail", f"not installed: {', '.join(missing)}", mend)
    if wrong:
        yield Finding("packages", "fail", f"does not work with {', '.join(wrong)}", mend)
    if other:
        yield Finding("packages", "warn", f"not tested with {', '.join(other)}", mend)
    if not (missing or wrong or other):
        names = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in TESTED)
        yield Finding("packages", "ok", f"Python {python}, {names}")


def storage(places: Places) -> Iterator[Finding]:
    """Writes, renames and reads a file; a local folder that is not there yet is not made."""
    folder = _existing(Folder.at(places.storage))
    probe = f".doctor-{uuid.uuid4().hex[:8]}"
    try:
        folder.write_bytes(probe, b"written by orchestrator doctor")
        read = folder.read_bytes(probe)
    except OSError as error:
        yield Finding(
            "storage", "fail", f"{folder.uri} cannot be written: {error}", "choose another --storage"
        )
        return
    finally:
        folder.remove_file(probe)
    if read != b"written by orchestrator doctor":
        yield Finding("storage", "fail", f"{folder.uri} gives back other bytes than were written")
        return
    if not folder.is_local:
        yield Finding("storage", "ok", f"{folder.uri} can be written and read")
        return
    free_bytes = shutil.disk_usage(folder.local_path()).free
    reason = f"{places.storage} can be written, {free_bytes / 1e9:,.1f} GB free"
    if free_bytes < _ENOUGH_STORAGE_BYTES:
        yield Finding("storage", "warn", reason, "make room: checkpoints and prepared data lie there")
    else:
        yield Finding("storage", "ok", reason)


def tracking(places: Places) -> Iterator[Finding]:
    from orchestrator.tracking.conventions import without_credentials
    from orchestrator.tracking.links import sqlite_file

    uri = without_credentials(places.tracking_uri)
    file = sqlite_file(places.tracking_uri)
    if file is None:
        try:
            with urllib.request.urlopen(f"{places.tracking_uri}/health", timeout=_ANSWER_TIMEOUT_S):
                yield Finding("tracking", "ok", f"the MLflow server at {uri} answers")
        except (OSError, ValueError) as error:  # also every URLError
            mend = "start it, or look at MLFLOW_TRACKING_URI; a run goes on meanwhile and sends its records later"
            yield Finding("tracking", "fail", f"the MLflow server at {uri} does not answer: {error}", mend)
        return
    if not file.exists():
        folder = _existing(Folder.at(file.parent)).local_path()
        if os.access(folder, os.W_OK):
            yield Finding("tracking", "ok", f"{file} will be made by the first run")
        else:
            yield Finding("tracking", "fail", f"{folder} cannot be written", "choose another --tracking-uri")
        return
    try:
        connection = sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=_ANSWER_TIMEOUT_S)
        try:
            connection.execute("BEGIN IMMEDIATE")  # waits for whoever writes, and fails on a read-only file
            (runs,) = connection.execute("SELECT count(*) FROM runs").fetchone()
            connection.execute("ROLLBACK")
        finally:
            connection.close()
    except sqlite3.Error as error:
        mend = "move the file away and a new one is made, or name another with --tracking-uri"
        yield Finding("tracking", "fail", f"{file} cannot be used: {error}", mend)
        return
    yield Finding("tracking", "ok", f"{file} opens, {runs:,} runs")


def auth(_: Places) -> Iterator[Finding]:
    mode = os.environ.get("RAY_AUTH_MODE")
    token_file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if mode not in (None, "disabled", "token"):
        yield Finding("auth", "fail", f"RAY_AUTH_MODE is '{mode}'", "set it to disabled or token")
    elif mode == "token" and not os.environ.get("RAY_AUTH_TOKEN") and not token_file.is_file():
        yield Finding(
            "auth",
            "fail",
            f"RAY_AUTH_MODE is token, and there is none in RAY_AUTH_TOKEN or {token_file}",
            "copy the cluster's token there, or make one with `ray get-auth-token --generate`",
        )
    elif mode is None and token_file.is_file():
        yield Finding(
            "auth",
            "warn",
            f"{token_file} exists and RAY_AUTH_MODE is not set: a head started here asks for tokens, and workers "
            "that join it send none",
            "set RAY_AUTH_MODE to disabled or token on every machine",
        )
    else:
        yield Finding(
            "auth", "ok", f"RAY_AUTH_MODE is {mode}" if mode else "RAY_AUTH_MODE is not set, no token"
        )


def shared_memory(_: Places) -> Iterator[Finding]:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        yield Finding("shared memory", "ok", "no /dev/shm on this system; Ray uses files")
        return
    total_bytes, memory_bytes = shutil.disk_usage(folder).total, memory_total_bytes()
    wanted_bytes = min(0.3 * memory_bytes, 200e9)  # what Ray takes for its object store by itself
    reason = f"/dev/shm has {total_bytes / 1e9:,.1f} GB"
    if total_bytes < wanted_bytes:
        mend = (
            f"start the container with --shm-size={wanted_bytes / 1e9:.0f}g, else Ray keeps objects on disk"
        )
        yield Finding("shared memory", "warn", f"{reason}, Ray wants {wanted_bytes / 1e9:,.1f} GB", mend)
    else:
        yield Finding("shared memory", "ok", reason)


def open_files(_: Places) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    unlimited = resource.RLIM_INFINITY
    reason = f"limit {'none' if soft == unlimited else f'{soft:,}'}"
    if soft != unlimited and soft < _ENOUGH_FILES:
        most = 65536 if hard == unlimited else min(65536, hard)
        yield Finding("open files", "warn", reason, f"raise it before Ray starts: ulimit -n {most}")
    else:
        yield Finding("open files", "ok", reason)


def clock(places: Places) -> Iterator[Finding]:
    """This machine's clock against those of the storage, the tracking server and the cluster's head."""
    skews_s = {}
    folder = _existing(Folder.at(places.storage))
    if folder.is_local:
        probe = folder.local_path() / f".doctor-{uuid.uuid4().hex[:8]}"
        try:
            probe.touch()
            skews_s["storage"] = probe.stat().st_mtime - time.time()
        except OSError:
            pass  # the storage's own check tells
        finally:
            probe.unlink(missing_ok=True)
    for name, url in (("tracking server", places.tracking_uri), ("cluster", places.address or "")):
        if url.startswith(("http://", "https://")) and (there_s := _server_time_s(url)) is not None:
            skews_s[name] = there_s - time.time()
    wrong = {name: skew_s for name, skew_s in skews_s.items() if abs(skew_s) > _CLOCK_SKEW_S}
    if wrong:
        apart = ", ".join(f"{name} {skew_s:+.0f} s" for name, skew_s in wrong.items())
        mend = "let NTP (chrony, systemd-timesyncd) set the clock of both machines"
        yield Finding("clock", "warn", f"this machine's clock is not the others': {apart}", mend)
    else:
        agrees = f"agrees with {', '.join(skews_s)}" if skews_s else "nothing to compare with"
        yield Finding("clock", "ok", f"{time.strftime('%Y-%m-%d %H:%M:%S %Z')}, {agrees}")


def memory_total_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _existing(folder: Folder) -> Folder:
    """The folder, or the nearest one above that exists; a remote folder stays as it is.

    Raises UsageError where a file stands in the way.
    """
    if not folder.is_local:
        return folder
    path = folder.local_path()
    nearest = next(here for here in (path, *path.parents) if here.exists())
    if not nearest.is_dir():
        raise UsageError(f"{nearest} is a file, not a folder", "choose another place")
    return Folder.at(nearest)


def _server_time_s(url: str) -> float | None:
    """The server's clock, exact to a second; None where it does not tell."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/", timeout=_ANSWER_TIMEOUT_S) as answer:
            date = email.utils.parsedate_to_datetime(answer.headers["Date"])
    except (OSError, ValueError, TypeError):
        return None
    return date.timestamp()
