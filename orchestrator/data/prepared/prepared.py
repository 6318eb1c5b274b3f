"""Prepared data: memory-mapped Arrow files with fixed-width columns, and a manifest that describes them.

All processes of a node share one copy in the page cache, and a batch is one gather per column. Reading the
manifest is light. Imports: pyarrow; numpy and torch where a part is read.
"""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pyarrow as pa

from orchestrator.data.sources.fingerprint import cache_root, hash_file
from orchestrator.errors import DataError
from orchestrator.storage import Folder

if TYPE_CHECKING:
    import numpy as np
    from filelock import FileLock
    from numpy.typing import NDArray
    from torch import Tensor

    from orchestrator.data.features.pipeline import Pipeline

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
EXAMPLE = "example.arrow"


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
    cleaning: list[Mapping[str, Any]]
    """One entry per step: `step`, `columns` as the spec names them, `rows` dropped or filled."""
    corrupt_images: int
    """Images that could not be decoded and were skipped."""
    pipeline: Mapping[str, Any]
    files: Mapping[str, Mapping[str, Any]]
    """By name: `bytes`, `sha256`, `mtime_ns`."""

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


class Batch(NamedTuple):
    """Rows as they are stored, on the CPU: `features` (rows, *stored_shape); `targets` (rows,), int64 class
    indices or float32 numbers, (rows, labels) float32 of 0 and 1, or (rows, length) int64 next tokens, none of
    which is padding. Neither may be written to: they can be views of the mapped file."""

    features: Tensor
    targets: Tensor


class Part:
    """The rows of one part, read through a memory map that is opened at first use."""

    def __init__(self, file: Path, num_rows: int, stored_shape: tuple[int, ...]) -> None:
        self.num_rows = num_rows
        self._file = file
        self._stored_shape = stored_shape

    def gather(self, indices: NDArray[np.int64]) -> Batch:
        """The rows at these positions (0…num_rows-1), in this order: a copy, or a view where they follow each
        other. No rows give an empty batch."""
        import torch

        count = len(indices)
        if not count or _is_run(indices):
            start = int(indices[0]) if count else 0
            features, targets = (column[start : start + count] for column in self._columns)
        else:
            index = torch.from_numpy(indices)
            features, targets = (column.index_select(0, index) for column in self._columns)
        if not targets.is_floating_point():  # tokens are stored as small as they fit
            targets = targets.to(torch.int64)
        return Batch(features, targets)

    def source_rows(self) -> NDArray[np.int64]:
        """The number of each row in the source as it is read, before cleaning. Of a language model's sample:
        of the document in which it begins."""
        return self._arrays[2]

    def __reduce__(self) -> tuple[Any, ...]:
        return Part, (self._file, self.num_rows, self._stored_shape)  # each process maps the file itself

    @cached_property
    def _columns(self) -> tuple[Tensor, Tensor]:
        import torch

        features, targets, _ = self._arrays
        shape = (self.num_rows, *self._stored_shape)
        return torch.from_numpy(features).reshape(shape), torch.from_numpy(targets)

    @cached_property
    def _arrays(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
        import numpy as np

        # A private map is writable, so torch takes it without a copy or a warning; nothing reaches the file.
        with self._file.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
        whole = pa.py_buffer(mapped)
        with pa.ipc.open_file(whole) as reader:
            batch = reader.get_batch(0)
        if batch.num_rows != self.num_rows:
            raise DataError(f"{self._file} holds {batch.num_rows} rows, its manifest says {self.num_rows}")

        def view(array: pa.Array) -> NDArray[Any]:
            """Shape (rows,), or (rows, width) of fixed-size lists."""
            wide = pa.types.is_fixed_size_list(array.type)
            values = array.values if wide else array
            offset = values.buffers()[1].address - whole.address if len(values) else 0
            flat = np.frombuffer(mapped, np.dtype(values.type.to_pandas_dtype()), len(values), offset)
            return flat.reshape(len(array), array.type.list_size) if wide else flat

        return view(batch["features"]), view(batch["target"]), view(batch["row"])


class Prepared:
    """A folder of prepared data on this machine."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.manifest = manifest

    @classmethod
    def load(cls, folder: Folder | Path | str) -> Prepared:
        """Open prepared data; a remote folder is fetched to this node first.

        Raises DataError where it is missing, incomplete or of another format version.
        """
        path = local_copy(folder if isinstance(folder, Folder) else Folder.at(folder)).local_path()
        manifest = read_manifest(path)
        if manifest is None:
            raise DataError(
                f"{path} holds no complete prepared data",
                "run the job again: what is missing is prepared anew",
            )
        return cls(path, manifest)

    @cached_property
    def pipeline(self) -> Pipeline:
        from orchestrator.data.features.pipeline import Pipeline

        return Pipeline.from_dict(self.manifest.pipeline)

    def part(self, name: str) -> Part:
        """The part `train`, `val` or `test`; it has no rows where its ratio is 0."""
        return Part(self.folder / f"{name}.arrow", self.manifest.rows[name], self.manifest.stored_shape)

    def raw_example(self, n: int = 5) -> pa.Table:
        """The first rows (at most 5) of the training part as the source gave them, feature columns only; of
        long texts the beginning."""
        with pa.ipc.open_file(str(self.folder / EXAMPLE)) as reader:
            return reader.read_all().slice(0, n)

    def __reduce__(self) -> tuple[Any, ...]:
        return Prepared, (self.folder, self.manifest)


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a folder whose files are all there and whole; None otherwise.

    A file whose size and time stamp are as written is taken for whole; otherwise its content is hashed.
    """
    try:
        manifest = Manifest.from_dict(json.loads((folder / MANIFEST).read_bytes()))
        if manifest.format_version != FORMAT_VERSION:
            return None
        for name, facts in manifest.files.items():
            stat = (folder / name).stat()
            if stat.st_size != facts["bytes"]:
                return None
            if stat.st_mtime_ns != facts["mtime_ns"] and hash_file(folder / name) != facts["sha256"]:
                return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return manifest


def local_copy(folder: Folder) -> Folder:
    """The folder itself where it is local, else a copy of it on this node, fetched once by all its processes.

    Raises DataError where the remote folder is missing or arrives damaged.
    """
    if folder.is_local:
        return folder
    target = node_path(folder)
    with node_lock(folder):
        if read_manifest(target) is None:
            folder.download(target)
            manifest = read_manifest(target)
            if manifest is None:
                raise DataError(f"{folder.uri} holds no complete prepared data", "run the job again")
            for name, facts in manifest.files.items():  # so that nobody has to hash them again
                os.utime(target / name, ns=(facts["mtime_ns"], facts["mtime_ns"]))
    return Folder.at(target)


def node_path(folder: Folder) -> Path:
    """Where prepared data lies on this node: the folder's own path, or its copy in this machine's cache."""
    return folder.local_path() if folder.is_local else cache_root() / "prepared" / Path(folder.path).name


def node_lock(folder: Folder) -> FileLock:
    """Held by the one process of this node (on shared local storage: of all nodes) that makes or fetches it.

    The process that holds it may take it again.
    """
    from filelock import FileLock

    path = node_path(folder)
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f"{path.name}.lock"), is_singleton=True)


def _is_run(indices: NDArray[np.int64]) -> bool:
    """Whether each index is the one before it plus 1."""
    first, count = int(indices[0]), len(indices)
    return int(indices[-1]) - first == count - 1 and bool((indices[1:] - indices[:-1] == 1).all())
