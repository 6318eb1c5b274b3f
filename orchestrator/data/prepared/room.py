"""How much room this node's copies of prepared data take up.

`ORCHESTRATOR_CACHE_BYTES` (`200GB`) is the most; by default nine tenths of what the disk has room for. What was used
longest ago goes first: whole folders that nobody holds a lease on, and shards. Imports: the standard library.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from orchestrator.data.prepared.lease import is_held, remove_unless_held
from orchestrator.data.prepared.manifest import EXAMPLE, MANIFEST
from orchestrator.data.sources.fingerprint import cache_root
from orchestrator.errors import UsageError
from orchestrator.units import parse_size

_log = logging.getLogger(__name__)
LIMIT_VARIABLE = "ORCHESTRATOR_CACHE_BYTES"


class _Evictable(NamedTuple):
    last_used_s: float
    bytes: int
    remove: Callable[[], bool]


def make_room(num_bytes: int) -> None:
    """Remove what was used longest ago from this node's cache until so much more fits under its limit."""
    things = list(_cached())
    held = sum(thing.bytes for thing in things)
    limit = cache_limit(held)
    for thing in sorted(things, key=lambda thing: thing.last_used_s):
        if held + num_bytes <= limit:
            return
        if thing.remove():
            held -= thing.bytes
    if held + num_bytes > limit:
        _log.warning(
            "this node's cache of prepared data holds %.1f GB in use and needs %.1f GB more: over its limit of "
            "%.1f GB (%s); data.iterate.kind: streaming needs less",
            held / 1e9,
            num_bytes / 1e9,
            limit / 1e9,
            LIMIT_VARIABLE,
        )


def cache_limit(held_bytes: int = 0) -> int:
    """The most bytes that this node's cache may take up, where it takes up `held_bytes` now."""
    text = os.environ.get(LIMIT_VARIABLE)
    if text:
        try:
            return parse_size(text)
        except ValueError as error:
            raise UsageError(f"{LIMIT_VARIABLE}: {error}") from error
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    return (held_bytes + shutil.disk_usage(root).free) * 9 // 10


def _cached() -> Iterator[_Evictable]:
    """All whole folders that are not in use, and all single shards. A mapped shard may be removed: who has it
    mapped keeps its pages."""
    for folder in _folders(cache_root() / "prepared"):
        try:
            size = sum(file.stat().st_size for file in folder.iterdir())
            used_s = (folder / MANIFEST).stat().st_mtime
        except FileNotFoundError:  # it is being built or fetched, or was removed just now
            continue
        if not is_held(folder):
            yield _Evictable(used_s, size, partial(remove_unless_held, folder))
        else:
            yield _Evictable(used_s, size, lambda: False)
    for folder in _folders(cache_root() / "shards"):
        for file in folder.glob("*.arrow"):
            if file.name == EXAMPLE:
                continue
            with contextlib.suppress(FileNotFoundError):
                stat = file.stat()
                yield _Evictable(stat.st_atime, stat.st_size, partial(_removed, file))


def _folders(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []


def _removed(file: Path) -> bool:
    file.unlink(missing_ok=True)
    return True
