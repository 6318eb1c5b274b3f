"""What a folder of prepared data says about itself. Imports: the standard library."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from orchestrator.data.sources.fingerprint import hash_file

FORMAT_VERSION = 3
MANIFEST = "manifest.json"
EXAMPLE = "example.arrow"
QUALITY, DRIFT = "quality.json", "drift.json"
QUALITY_PAGE, DRIFT_PAGE, CORRUPT = "quality.html", "drift.html", "corrupt.csv"
PAGES = (QUALITY_PAGE, DRIFT_PAGE, CORRUPT)
"""The reports for people."""


class Shard(NamedTuple):
    """A file with some rows of a part."""

    file: str
    rows: int
    bytes: int
    sha256: str
    mtime_ns: int


@dataclass(frozen=True)
class Manifest:
    """What is in a folder of prepared data. Parts are `train`, `val` and `test`."""

    format_version: int
    key: str
    fingerprint: str
    task: Literal["multiclass", "binary", "multilabel", "regression", "language_modeling"]
    target: str | None
    """None for a language model."""
    classes: list[Any] | None
    """Labels (strings, integers or booleans) by class index; None for a regression and a language model."""
    num_outputs: int
    """Of the model: the number of classes or labels, for a language model of token ids; else 1."""
    feature_kind: Literal["array", "encoded_image", "table", "text"]
    vocab_size: int | None
    """Number of token ids of text, 0 (padding) and 1 (unknown) included; None for all else."""
    input_shape: tuple[int, ...]
    """Of the model, without the batch: (channels, height, width), (columns,) or (tokens,)."""
    stored_shape: tuple[int, ...]
    """Of one row of `features`: (height, width, channels), (columns,) or (tokens,)."""
    rows_read: int
    rows: Mapping[str, int]
    """Rows of each part; of a language model, samples."""
    class_counts: Mapping[str, Mapping[str, int]] | None
    """Rows that have each class (its label as text) in each part; None where there are no classes."""
    cleaning: Sequence[Mapping[str, Any]]
    """One entry per step: `step`, `columns` as the spec names them, `rows` dropped or filled."""
    corrupt: int
    """Records that could not be read, images that could not be decoded among them; they were skipped."""
    pipeline: Mapping[str, Any]
    shards: Mapping[str, list[Mapping[str, Any]]]
    """Of each part, in the order of its rows: `file` and `rows`. A part without rows has none."""
    files: Mapping[str, Mapping[str, Any]]
    """By name, shards included: `bytes`, `sha256`, `mtime_ns`."""
    lineage: str = ""
    """The same for all data that the same settings prepare, whatever their source holds."""
    chunks: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """The chunks of the source, as `data.preparing.earlier` keeps them."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Manifest:
        """Raises TypeError or KeyError where the value is no manifest."""
        shapes = {name: tuple(int(n) for n in value[name]) for name in ("input_shape", "stored_shape")}
        parts = [name for name in ("train", "val", "test") if name in value["rows"]]  # JSON sorted them
        rows = {name: value["rows"][name] for name in parts}
        counts = value["class_counts"]
        if counts is not None:
            counts = {name: {str(c): counts[name][str(c)] for c in value["classes"]} for name in parts}
        return cls(**{**value, **shapes, "rows": rows, "class_counts": counts})

    def shards_of(self, part: str) -> tuple[Shard, ...]:
        return tuple(
            Shard(entry["file"], entry["rows"], **self.files[entry["file"]])
            for entry in self.shards.get(part, [])
        )

    def summary(self) -> str:
        """One line: the rows that were read, what cleaning did to them, and the rows of each part."""
        steps = [f"{step['step']} {step['rows']:,}" for step in self.cleaning]
        steps += [f"corrupt {self.corrupt:,}"] if self.corrupt else []
        cleaned = f"; cleaned: {', '.join(steps)}" if steps else ""
        parts = ", ".join(f"{part} {count:,}" for part, count in self.rows.items())
        return f"data: {self.rows_read:,} rows read{cleaned}; {parts}"

    @property
    def total_bytes(self) -> int:
        return sum(facts["bytes"] for facts in self.files.values())


def read_manifest(folder: Path, *, hashing: bool = True) -> Manifest | None:
    """The manifest of a folder whose files are all there and whole; None otherwise.

    A file whose size and time stamp are as written is taken for whole; otherwise its content is hashed. Without
    `hashing` only sizes are looked at: of data that is streamed, each shard is checked when it is opened.
    """
    try:
        manifest = Manifest.from_dict(json.loads((folder / MANIFEST).read_bytes()))
        if manifest.format_version != FORMAT_VERSION:
            return None
        for name, facts in manifest.files.items():
            if (folder / name).stat().st_size != facts["bytes"]:
                return None
            if hashing and not is_whole(folder / name, facts):
                return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return manifest


def is_whole(file: Path, facts: Mapping[str, Any]) -> bool:
    """Whether a file is what its facts say; hashed only where its time stamp is another one."""
    stat = file.stat()
    if stat.st_size != facts["bytes"]:
        return False
    return bool(stat.st_mtime_ns == facts["mtime_ns"] or hash_file(file) == facts["sha256"])


def file_facts(file: Path) -> dict[str, Any]:
    """What the manifest's `files` says of a file."""
    stat = file.stat()
    return {"bytes": stat.st_size, "sha256": hash_file(file), "mtime_ns": stat.st_mtime_ns}
