"""Looking after prepared data: what is there, is it whole, and what can go. For `<storage>/prepared` and for this
node's cache (`cache_folder`) alike. Imports: pyarrow, filelock.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from orchestrator.data.prepared.lease import is_held, remove_unless_held
from orchestrator.data.prepared.manifest import FORMAT_VERSION, MANIFEST, Manifest
from orchestrator.data.sources.fingerprint import cache_root
from orchestrator.storage import Folder

_LEFTOVER_AGE_S = 86400.0
"""A folder without a whole manifest may be one that is being built: it is left alone for so long."""
_PIECE_BYTES = 1 << 22


@dataclass(frozen=True)
class Entry:
    """A folder of prepared data. `manifest` is None where it has none of this version."""

    key: str
    uri: str
    bytes: int
    last_used_s: float
    """Since the epoch. On remote storage nobody notes its use: when it was written."""
    in_use: bool
    """A process of this machine (on a shared filesystem: of any) has it open; unknown on remote storage."""
    manifest: Manifest | None
    complete: bool
    """All files are there in their size; `verify_prepared` looks into them."""


def cache_folder() -> Folder:
    """Where this node keeps its whole copies of remote prepared data."""
    return Folder.at(cache_root() / "prepared")


def list_prepared(root: Folder) -> list[Entry]:
    """All prepared data in a folder of such folders, used longest ago first. Reads manifests only."""
    return sorted((_entry(folder) for folder in root.folders()), key=lambda entry: entry.last_used_s)


def verify_prepared(folder: Folder) -> list[str]:
    """What is damaged, a line each; empty where all is whole. Reads everything."""
    manifest = _manifest(folder)
    if manifest is None:
        return [f"{MANIFEST}: is missing, cannot be read or is not of version {FORMAT_VERSION}"]
    damage = []
    sizes = _sizes(folder)
    for name, facts in manifest.files.items():
        if name not in sizes:
            damage.append(f"{name}: is missing")
        elif sizes[name] != facts["bytes"]:
            damage.append(f"{name}: has {sizes[name]} bytes, not {facts['bytes']}")
        elif _digest(folder, name) != facts["sha256"]:
            damage.append(f"{name}: its content is not what was written")
    for part, rows in manifest.rows.items():
        listed = sum(shard.rows for shard in manifest.shards_of(part))
        if listed != rows:
            damage.append(f"{MANIFEST}: {part} has {rows} rows, its shards have {listed}")
    return damage


def collect(
    root: Folder,
    *,
    max_bytes: int | None = None,
    max_age_s: float | None = None,
    dry_run: bool = False,
    now_s: float | None = None,
) -> list[Entry]:
    """Remove prepared data that nobody uses, and tell what was removed (with `dry_run`: would be).

    Goes: what a killed build left a day ago or more, and what is incomplete or of another version for so long;
    what was not used for `max_age_s`; then what was used longest ago, until the rest fits into `max_bytes`.
    """
    now_s = time.time() if now_s is None else now_s
    entries = list_prepared(root)
    held = sum(entry.bytes for entry in entries)
    removed = []
    for entry in entries:
        age_s = now_s - entry.last_used_s
        old = max_age_s is not None and age_s > max_age_s
        leftover = not entry.complete and age_s > _LEFTOVER_AGE_S
        too_much = max_bytes is not None and held > max_bytes and entry.complete
        if entry.in_use or not (leftover or too_much or (old and entry.complete)):
            continue
        if dry_run or _remove(root / entry.key):
            held -= entry.bytes
            removed.append(entry)
    return removed


def _entry(folder: Folder) -> Entry:
    manifest, sizes = _manifest(folder), _sizes(folder)
    last_used_s = _modified_s(folder)
    return Entry(
        key=Path(folder.path).name,
        uri=folder.uri,
        bytes=sum(sizes.values()),
        last_used_s=last_used_s,
        in_use=folder.is_local and is_held(folder.local_path()),
        manifest=manifest,
        complete=manifest is not None
        and all(sizes.get(name) == facts["bytes"] for name, facts in manifest.files.items()),
    )


def _manifest(folder: Folder) -> Manifest | None:
    try:
        value: Mapping[str, Any] | None = folder.read_json(MANIFEST)
        if value is None or value["format_version"] != FORMAT_VERSION:
            return None
        return Manifest.from_dict(value)
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _sizes(folder: Folder) -> dict[str, int]:
    return {info.base_name: int(info.size) for info in folder.infos() if info.type == pafs.FileType.File}


def _modified_s(folder: Folder) -> float:
    """Of the manifest, whose time stamp every use renews; without one, of the newest file, or of the folder."""
    stamps = {info.base_name: info.mtime_ns or 0 for info in folder.infos()}
    if MANIFEST in stamps:
        return stamps[MANIFEST] / 1e9
    own = folder.info().mtime_ns or 0
    return max([own, *stamps.values()]) / 1e9


def _digest(folder: Folder, name: str) -> str:
    digest = hashlib.sha256()
    with folder.filesystem.open_input_stream((folder / name).path, compression=None) as stream:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _remove(folder: Folder) -> bool:
    if folder.is_local:
        return remove_unless_held(folder.local_path())
    folder.remove_file(MANIFEST)  # from now on nobody takes it for complete
    folder.remove()
    return True
