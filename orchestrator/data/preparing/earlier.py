"""What an earlier preparation of the same spec left, to be used again where its source has not changed.

Of a chunk that is known, images need not be decoded, and a shard that would be the same is linked. Imports: numpy.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.cleaning.corrupt import CorruptRecord
from orchestrator.data.prepared.lease import Lease, hold
from orchestrator.data.prepared.manifest import Manifest, Shard, read_manifest
from orchestrator.data.prepared.shards import WrittenShard, open_shard
from orchestrator.storage import Folder

Columns = tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]
"""Of a shard: features, targets, and the rows' numbers in the source."""


def rows_of(records: Sequence[CorruptRecord], rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of these rows the records name, (rows,)."""
    return np.isin(rows, [record.row for record in records if record.row is not None])


@dataclass(frozen=True)
class ChunkRecord:
    """What the manifest keeps of a chunk: its fingerprint, the number of its first row in the source, the files of
    its shards by part, and what of it was corrupt (rows counted from the chunk's first)."""

    fingerprint: str
    first_row: int
    shards: Mapping[str, Sequence[str]]
    corrupt: Sequence[CorruptRecord]
    linked: bool = False
    """All of its shards are files of data that was prepared earlier."""

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "corrupt": [asdict(record) for record in self.corrupt]}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> ChunkRecord:
        corrupt = [CorruptRecord(**record) for record in value["corrupt"]]
        return cls(**{**value, "corrupt": corrupt})


@dataclass(frozen=True)
class KnownChunk:
    """A chunk as an earlier preparation left it, in a folder of this machine."""

    folder: Path
    first_row: int
    shards: Mapping[str, Sequence[Shard]]
    corrupt: Sequence[CorruptRecord]

    def pixels(
        self, rows: NDArray[np.int64], shape: tuple[int, ...]
    ) -> tuple[NDArray[np.uint8], list[CorruptRecord]] | None:
        """Of these rows of the chunk, ascending: the decoded images (rows, *shape), zero where they are corrupt, and
        the corrupt ones. None where the earlier preparation had dropped one of them."""
        pixels = np.zeros((len(rows), *shape), np.uint8)
        corrupt = [record for record in self.corrupt if record.row in set(rows.tolist())]
        missing = ~rows_of(corrupt, rows)
        for shard in itertools.chain.from_iterable(self.shards.values()):
            opened = open_shard(self.folder / shard.file, shard.rows)
            _, here, there = np.intersect1d(rows, opened.rows - self.first_row, return_indices=True)
            pixels[here] = opened.features[there].reshape(-1, *shape)
            missing[here] = False
        return None if missing.any() else (pixels, corrupt)

    def link(self, folder: Path, part: str, piece: int, index: int, columns: Columns) -> WrittenShard | None:
        """The earlier shard number `piece` of this part as number `index` in a folder, where it holds just these
        features, targets and rows."""
        shards = self.shards.get(part, ())
        shard = shards[piece] if piece < len(shards) else None
        if shard is None or shard.rows != len(columns[2]):
            return None
        opened = open_shard(self.folder / shard.file, shard.rows)
        wanted = [np.ascontiguousarray(column).reshape(shard.rows, -1) for column in columns]
        held = [column.reshape(shard.rows, -1) for column in opened]
        if not all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(wanted, held, strict=True)):
            return None
        file = folder / f"{part}-{index:05d}.arrow"
        try:
            os.link(self.folder / shard.file, file)
        except OSError:  # another filesystem
            shutil.copy2(self.folder / shard.file, file)
        facts = {"bytes": shard.bytes, "sha256": shard.sha256, "mtime_ns": file.stat().st_mtime_ns}
        return WrittenShard(file.name, shard.rows, facts, linked=True)


@dataclass(frozen=True)
class Earlier:
    """Data that was prepared before by the same spec."""

    folder: Path
    manifest: Manifest
    lease: Lease | None = None
    """Nobody removes it while this is held."""

    def known(self, fingerprint: str) -> KnownChunk | None:
        """What there is of a chunk with this fingerprint."""
        for record in map(ChunkRecord.from_dict, self.manifest.chunks):
            if record.fingerprint == fingerprint:
                by_file = {
                    shard.file: shard for part in record.shards for shard in self.manifest.shards_of(part)
                }
                shards = {part: [by_file[file] for file in files] for part, files in record.shards.items()}
                return KnownChunk(self.folder, record.first_row, shards, record.corrupt)
        return None


def find_earlier(root: Folder, lineage: str) -> Earlier | None:
    """The newest whole data of this lineage in a folder of prepared data; None where there is none. Data on remote
    storage is not looked for: to fetch it would cost what it saves."""
    if not root.is_local:
        return None
    found: list[tuple[int, Path]] = []
    for folder in root.folders():
        if ".tmp-" in folder.path:  # one that is being built, or was left by a killed build
            continue
        file = folder.local_path() / "manifest.json"
        with contextlib.suppress(OSError, ValueError, TypeError):
            if json.loads(file.read_bytes()).get("lineage") == lineage:
                found.append((file.stat().st_mtime_ns, folder.local_path()))
    for _, path in sorted(found, reverse=True):
        lease = hold(path)
        manifest = read_manifest(path)
        if manifest is not None:
            return Earlier(path, manifest, lease)
    return None
