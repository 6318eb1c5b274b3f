"""A checkpoint's manifest: what is known of it without reading its state, and what its files must be.

Imports: the standard library.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MANIFEST = "manifest.json"
STATE = "state.pt"
_NAME = re.compile(r"step-(\d{9,})")


@dataclass(frozen=True)
class FileFacts:
    """What a file must be: its SHA-256 (hex) and its size."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """A committed checkpoint. `epoch` epochs had ended; `metrics` are those of its own weights, empty where they
    were not evaluated; `time_s` is the moment of the snapshot, in seconds since 1970."""

    name: str
    step: int
    epoch: int
    attempt: int
    time_s: float
    world_size: int
    metrics: Mapping[str, float]
    files: Mapping[str, FileFacts]

    @property
    def size_bytes(self) -> int:
        return sum(facts.size_bytes for facts in self.files.values())


def checkpoint_name(step: int) -> str:
    return f"step-{step:09d}"


def step_of(name: str) -> int | None:
    """The step in a checkpoint's folder name; None where the folder is none."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def rank_file(rank: int, suffix: str = "pt") -> str:
    """The name of the file that holds what this rank alone has."""
    return f"rank-{rank:05d}.{suffix}"


def dump_manifest(manifest: Manifest) -> bytes:
    """The file's content, with a hash over all of it, so that a changed bit is noticed."""
    # JSON knows no NaN: a metric that is undefined is left out.
    metrics = {key: value for key, value in manifest.metrics.items() if value == value}
    facts = asdict(manifest) | {"metrics": metrics}
    # No newline at the end: a file that has lost its last byte would still be one.
    return json.dumps(facts | {"sha256": _digest(facts)}, indent=1, sort_keys=True).encode()


def parse_manifest(data: bytes, name: str) -> Manifest:
    """The manifest in the folder `name`. Raises ValueError that says what is wrong with it."""
    try:
        facts: Any = json.loads(data)
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}") from error
    if not isinstance(facts, dict) or "sha256" not in facts:
        raise ValueError("it is no manifest of a checkpoint")
    if facts.pop("sha256") != _digest(facts):
        raise ValueError("its content does not have the hash that it states")
    try:
        files = {file: FileFacts(**entry) for file, entry in facts.pop("files").items()}
        manifest = Manifest(**facts, files=files)
    except (TypeError, AttributeError, KeyError) as error:
        raise ValueError(f"it is a manifest of another version: {error}") from error
    if manifest.name != name:
        raise ValueError(f"it is the manifest of {manifest.name}")
    if dump_manifest(manifest) != data:
        raise ValueError("it is not as it was written")
    return manifest


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
