"""Shard files: Arrow IPC with one uncompressed record batch of fixed-width columns, to be read in place.

The columns are `features`, `target` and `row` (the row's number in the source). Imports: pyarrow, numpy.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.data.prepared.manifest import file_facts
from orchestrator.errors import DataError

SHARD_BYTES = 64_000_000
"""What a writer should aim at: small enough for windows of many shards, large enough to fetch at full speed."""
MOST_PIECES = 1000
"""Shards that one chunk may make of a part: they are numbered by it, `train-12003` being chunk 12's fourth."""
_PAGE_BYTES = 4096


@dataclass(frozen=True)
class WrittenShard:
    """A shard as the manifest lists it: `entry` under `shards`, `facts` under `files` (by the file's name)."""

    file: str
    rows: int
    facts: Mapping[str, Any]
    linked: bool = False
    """It is a file of data that was prepared earlier."""

    @property
    def entry(self) -> dict[str, Any]:
        return {"file": self.file, "rows": self.rows}


class OpenShard(NamedTuple):
    """Views of a mapped file: `features` (rows,) or (rows, numbers), `targets` likewise, `rows` (rows,) int64.
    The file stays mapped as long as one of them is there."""

    features: NDArray[Any]
    targets: NDArray[Any]
    rows: NDArray[np.int64]


def write_shard(
    folder: Path,
    part: str,
    index: int,
    features: NDArray[Any],
    targets: NDArray[Any],
    rows: NDArray[np.int64],
) -> WrittenShard:
    """Write rows of a part as its shard number `index`: `features` (n, *stored_shape), `targets` (n,) or
    (n, width), `rows` (n,) numbers in the source; n is at least 1.

    Shards make up the part in the order in which the manifest lists them.
    """
    batch = pa.record_batch(
        {"features": _fixed_width(features), "target": _fixed_width(targets), "row": pa.array(rows)}
    )
    file = write_arrow(folder / f"{part}-{index:05d}.arrow", batch)
    return WrittenShard(file.name, batch.num_rows, file_facts(file))


def write_arrow(file: Path, batch: pa.RecordBatch) -> Path:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return file


def open_shard(file: Path, num_rows: int, *, load: bool = False) -> OpenShard:
    """Map a shard. With `load` its pages are read in now, one after the other, not in the order of their use.

    Raises DataError where it holds another number of rows, FileNotFoundError where it is not there.
    """
    # A private map is writable, so torch takes it without a copy or a warning; nothing reaches the file.
    with file.open("rb") as stream:
        if load and hasattr(os, "posix_fadvise"):  # other threads go on meanwhile, unlike with mmap's own
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
        mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    whole = pa.py_buffer(mapped)
    with pa.ipc.open_file(whole) as reader:
        batch = reader.get_batch(0)
    if batch.num_rows != num_rows:
        raise DataError(f"{file} holds {batch.num_rows} rows, its manifest says {num_rows}")
    if load:
        np.frombuffer(mapped, np.uint8)[::_PAGE_BYTES].max()

    def view(array: pa.Array) -> NDArray[Any]:
        wide = pa.types.is_fixed_size_list(array.type)
        values = array.values if wide else array
        offset = values.buffers()[1].address - whole.address if len(values) else 0
        flat = np.frombuffer(mapped, np.dtype(values.type.to_pandas_dtype()), len(values), offset)
        return flat.reshape(len(array), array.type.list_size) if wide else flat

    return OpenShard(view(batch["features"]), view(batch["target"]), view(batch["row"]))


class OpenShards:
    """Which shards of a part are mapped; those used longest ago are let go of above `most_bytes`.

    Several threads may use it; a shard that one of them is opening, the others wait for.
    """

    def __init__(
        self, open_one: Callable[[int], OpenShard], sizes: Sequence[int], most_bytes: int | None
    ) -> None:
        self._open_one, self._sizes, self._most_bytes = open_one, sizes, most_bytes
        self._lock = threading.Lock()
        self._open: OrderedDict[int, Future[OpenShard]] = OrderedDict()

    def get(self, index: int) -> OpenShard:
        """Raises what opening it raises; the next call tries again."""
        with self._lock:
            future = self._open.get(index)
            mine = future is None
            if future is None:
                future = self._open[index] = Future()
                self._let_go()
            else:
                self._open.move_to_end(index)
        if mine:
            try:
                future.set_result(self._open_one(index))
            except BaseException as error:
                with self._lock:
                    if self._open.get(index) is future:
                        del self._open[index]
                future.set_exception(error)
                raise
        return future.result()

    def keep(self, indices: Iterable[int]) -> None:
        """Let go of all others, and open these, two at a time: that keeps disks and networks busy."""
        wanted = list(indices)
        with self._lock:
            for index in self._open.keys() - set(wanted):
                del self._open[index]
        if wanted:
            with ThreadPoolExecutor(2, thread_name_prefix="shards") as pool:
                list(pool.map(self.get, wanted))

    def indices(self) -> list[int]:
        with self._lock:
            return sorted(self._open)

    def _let_go(self) -> None:
        if self._most_bytes is None:
            return
        held = sum(self._sizes[index] for index in self._open)
        while held > self._most_bytes and len(self._open) > 1:
            index, _ = self._open.popitem(last=False)
            held -= self._sizes[index]


def _fixed_width(values: NDArray[Any]) -> pa.Array:
    """A column of numbers, or of fixed-size lists where there is more than one number per row."""
    if values.ndim == 1:
        return pa.array(values)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))
