"""Names and limits that MLflow and its UI expect: metric keys, flat params, source tags.

Imports: the standard library.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

RUN_KEY_TAG = "orchestrator.run"
"""Tag that tells one run of ours from every other run, whatever its name."""
ENDED_TAG = "orchestrator.ended"
"""Tag that says why a run was ended by somebody else than its own driver."""
NON_FINITE_TAG = "orchestrator.non_finite"
"""Prefix of the tags that name metrics which became infinite or not a number."""
CHANGED_TAG = "orchestrator.changed"
"""Prefix of the tags that name params which a resumed attempt changed (params themselves are immutable)."""
DIGEST_TAG = "orchestrator.digest"
"""Tag of a logged model: the hash of its files, by which a replay finds it."""
DESCRIPTION_TAG = "mlflow.note.content"
PARENT_TAG = "mlflow.parentRunId"
"""Tag that hangs a run under another one in the UI."""

MAX_KEY = 250
MAX_PARAM = 6000
MAX_TAG = 8000


def metric_key(key: str) -> str:
    """The nearest key that MLflow takes: letters, digits and `_-. :/`, no empty, `.` or `..` part, up to 250.

    One bad key makes MLflow refuse the whole batch that it is in.
    """
    cleaned = re.sub(r"[^/\w.\- :]", "_", key)[:MAX_KEY]
    parts = ["_" if part == ".." else part for part in cleaned.split("/") if part not in ("", ".")]
    cleaned = "/".join(parts) or "_"
    return f"__{cleaned[2:]}" if cleaned.startswith("..") else cleaned


def flatten_params(values: Mapping[str, Any], limit: int = 80) -> dict[str, str]:
    """Nested values as at most about `limit` params with dotted names.

    The deepest levels are kept as JSON text where there would be more. Values longer than MLflow's 6,000
    characters are cut. `None` is left out.
    """
    told = _told(values)
    depth = _depth(told)
    flat = _flatten(told, depth)
    while len(flat) > limit and depth > 1:
        depth -= 1
        flat = _flatten(told, depth)
    return {metric_key(name): _text(value) for name, value in flat.items()}


def _told(value: Any) -> Any:
    """The value without the `None`s in its mappings."""
    if isinstance(value, Mapping):
        return {name: _told(item) for name, item in value.items() if item is not None}
    return [_told(item) for item in value] if isinstance(value, list | tuple) else value


def _flatten(values: Mapping[str, Any], depth: int, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value and depth > 1:
            flat.update(_flatten(value, depth - 1, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _depth(values: object) -> int:
    if not isinstance(values, Mapping) or not values:
        return 0
    return 1 + max(_depth(value) for value in values.values())


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= MAX_PARAM else text[: MAX_PARAM - 1] + "…"


def source_tags(source_name: str, folder: Path, *, job: bool = False) -> dict[str, str]:
    """The tags that MLflow's fluent API would set and its client does not: who, from what, at which commit.

    `source_name` is what was run (the spec's path); `folder` is where to ask git. Outside a repository the
    git tags are missing. Credentials in the repository's address are left out.
    """
    tags = {
        "mlflow.user": _user(),
        "mlflow.source.name": source_name,
        "mlflow.source.type": "JOB" if job else "LOCAL",
    }
    commit = _git(folder, "rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit
        branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD")
        if branch and branch != "HEAD":
            tags["mlflow.source.git.branch"] = branch
        address = _git(folder, "config", "--get", "remote.origin.url")
        if address:
            tags["mlflow.source.git.repoURL"] = without_credentials(address)
    return tags


def without_credentials(address: str) -> str:
    """A URL without its user name and password."""
    parts = urlsplit(address)
    if not parts.scheme or "@" not in parts.netloc:
        return address
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run under a number that has no name
        return "unknown"


def _git(folder: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def folder_digest(folder: Path) -> str:
    """SHA-256 over names and contents of all files in a folder; raises FileNotFoundError without one."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}")
    total = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            total.update(path.relative_to(folder).as_posix().encode() + b"\0")
            with path.open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
