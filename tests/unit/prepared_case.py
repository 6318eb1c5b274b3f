"""Small prepared data with as many shards as a test wants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.prepared.cache import LocalStore
from orchestrator.data.prepared.manifest import FORMAT_VERSION, MANIFEST, Manifest, Shard
from orchestrator.data.prepared.part import Part
from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.prepared.shards import WrittenShard, write_shard
from orchestrator.storage import Folder

SHAPE = (2, 3)


def columns(num_rows: int, seed: int = 0) -> tuple[NDArray[Any], NDArray[Any], NDArray[np.int64]]:
    """Features (num_rows, 2, 3), targets, row numbers; no two rows alike."""
    rng = np.random.default_rng(seed)
    features = rng.random((num_rows, *SHAPE), dtype=np.float32)
    return features, rng.integers(0, 9, num_rows).astype(np.int64), np.arange(num_rows)[::-1].copy()


def write_shards(folder: Path, part: str, sizes: Sequence[int], seed: int = 0) -> list[WrittenShard]:
    """`columns(sum(sizes))`, cut up."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = np.cumsum([0, *sizes])
    features, targets, rows = columns(int(ends[-1]), seed)
    return [
        write_shard(folder, part, index, features[a:b], targets[a:b], rows[a:b])
        for index, (a, b) in enumerate(pairwise(ends.tolist()))
    ]


def write_part(folder: Path, sizes: Sequence[int], window_bytes: int | None = None) -> Part:
    """A training part of its own."""
    written = write_shards(folder, "train", sizes)
    shards = [Shard(shard.file, shard.rows, **shard.facts) for shard in written]
    return Part(LocalStore(folder, checked=window_bytes is not None), shards, SHAPE, window_bytes)


def write_prepared(folder: Path, sizes: Sequence[int] = (4, 3), seed: int = 0) -> Manifest:
    """A folder of prepared data with a training part alone."""
    written = write_shards(folder, "train", sizes, seed)
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        key=folder.name,
        fingerprint="",
        task="multiclass",
        target="y",
        classes=list(range(9)),
        num_outputs=9,
        feature_kind="array",
        vocab_size=None,
        input_shape=SHAPE,
        stored_shape=SHAPE,
        rows_read=sum(sizes),
        rows={"train": sum(sizes)},
        class_counts=None,
        cleaning=[],
        corrupt=0,
        pipeline={},
        shards={"train": [shard.entry for shard in written]},
        files={shard.file: shard.facts for shard in written},
    )
    Folder.at(folder).write_json(MANIFEST, manifest.to_dict())
    return manifest


def reshard(prepared: Prepared, rows_per_shard: int) -> None:
    """Write prepared data anew in its folder, the same rows in more shards."""
    manifest = prepared.manifest
    shards: dict[str, list[Mapping[str, Any]]] = {}
    files = {name: facts for name, facts in manifest.files.items() if name == "example.arrow"}
    for name, num_rows in manifest.rows.items():
        part = prepared.part(name)
        whole, source_rows = part.gather(np.arange(num_rows)), part.source_rows()
        features, targets = whole.features.numpy().copy(), whole.targets.numpy().copy()
        written = []
        for index, start in enumerate(range(0, num_rows, rows_per_shard)):
            some = slice(start, start + rows_per_shard)
            cut = (features[some], targets[some], source_rows[some])
            written.append(write_shard(prepared.folder, name, index, *cut))
        shards[name] = [shard.entry for shard in written]
        files |= {shard.file: dict(shard.facts) for shard in written}
    changed = replace(manifest, shards=shards, files=files)
    Folder.at(prepared.folder).write_json(MANIFEST, changed.to_dict())
