"""The rows of one part of prepared data, gathered from its mapped shards. Imports: numpy, torch."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.prepared.manifest import Shard
from orchestrator.data.prepared.shards import OpenShard, OpenShards

if TYPE_CHECKING:
    from torch import Tensor


class Batch(NamedTuple):
    """Rows as they are stored, on the CPU: `features` (rows, *stored_shape); `targets` (rows,), int64 class
    indices or float32 numbers, (rows, labels) float32 of 0 and 1, or (rows, length) int64 next tokens, -100 where
    that is padding. Neither may be written to: they can be views of the mapped file, or shared."""

    features: Tensor
    targets: Tensor


class Store(Protocol):
    """Where the shards of prepared data are. Can be pickled."""

    def open(self, shard: Shard, *, load: bool) -> OpenShard: ...


class Part:
    """The rows of one part, in shards that are mapped at first use.

    With `window_bytes` the part is streamed: at most two windows of shards are mapped at a time, and nothing that
    is handed out keeps a shard mapped. Several threads may gather.
    """

    def __init__(
        self,
        store: Store,
        shards: Sequence[Shard],
        stored_shape: tuple[int, ...],
        window_bytes: int | None = None,
        keep: object = None,
    ) -> None:
        """`keep` is held for as long as the part is."""
        self.window_bytes = window_bytes
        self.shards = tuple(shards)
        self._store, self._stored_shape, self._held = store, stored_shape, keep
        self._ends = np.cumsum([shard.rows for shard in shards]).tolist()
        largest = max((shard.bytes for shard in shards), default=0)
        self._open = OpenShards(
            self._open_one,
            [shard.bytes for shard in shards],
            None if window_bytes is None else 2 * max(window_bytes, largest),
        )

    @property
    def num_rows(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def blocks(self) -> NDArray[np.int64]:
        """Where the stretches of rows end that are at hand together: the whole part, or each shard where it is
        streamed; shape (blocks,)."""
        return np.array(self._ends if self.streaming else self._ends[-1:], dtype=np.int64)

    @property
    def streaming(self) -> bool:
        return self.window_bytes is not None

    @property
    def row_bytes(self) -> float:
        """Of a row as it is stored, all columns together."""
        return sum(shard.bytes for shard in self.shards) / max(1, self.num_rows)

    def gather(self, indices: NDArray[np.int64], *, pin: bool = False) -> Batch:
        """The rows at these positions (0…num_rows-1), in this order: a copy, or a view where they follow each
        other in a shard that stays mapped. No rows give an empty batch. `pin` copies into page-locked memory.

        Raises IndexError for a position that is not there, DataError for a damaged shard.
        """
        features, targets = self._columns(indices, (0, 1), pin)
        return Batch(features, _whole_numbers(targets))

    def gather_targets(self, indices: NDArray[np.int64]) -> Tensor:
        """The targets of these rows alone."""
        return _whole_numbers(self._columns(indices, (1,), pin=False)[0])

    def source_rows(self) -> NDArray[np.int64]:
        """The number of each row in the source as it is read, before cleaning. Of a language model's sample:
        of the document in which it begins."""
        shards = (self._open.get(index).rows for index in range(len(self.shards)))
        return np.concatenate([np.empty(0, np.int64), *(rows.copy() for rows in shards)])

    def expect(self, shards: Iterable[int]) -> None:
        """Have these shards mapped and read in, and no others: what streaming calls ahead of use."""
        self._open.keep(shards)

    def open_shards(self) -> list[int]:
        """The shards that are mapped now."""
        return self._open.indices()

    def __reduce__(self) -> tuple[Any, ...]:
        # Each process maps the shards itself.
        return Part, (self._store, self.shards, self._stored_shape, self.window_bytes)

    def _open_one(self, index: int) -> OpenShard:
        features, targets, rows = self._store.open(self.shards[index], load=self.streaming)
        return OpenShard(features.reshape(len(rows), *self._stored_shape), targets, rows)

    def _columns(self, indices: NDArray[np.int64], columns: Sequence[int], pin: bool) -> list[Tensor]:
        import torch

        if not self.shards:
            if len(indices):
                raise IndexError("rows of a part that has none")
            return [torch.empty(0, *(self._stored_shape if column == 0 else ())) for column in columns]
        low, high = (int(indices.min()), int(indices.max())) if len(indices) else (0, 0)
        if low < 0 or high >= self.num_rows:
            raise IndexError(f"rows {low} to {high} of a part of {self.num_rows}")
        first = bisect_right(self._ends, low)
        if high >= self._ends[first]:
            return self._from_many(indices, columns, pin)
        shard = self._open.get(first)
        local = indices - (self._ends[first] - self.shards[first].rows)
        if not self.streaming and not pin and _is_run(local):
            start = int(local[0]) if len(local) else 0
            return [torch.from_numpy(shard[column][start : start + len(local)]) for column in columns]
        gathered = []
        for column in columns:
            tensor, rows = _empty(len(local), shard[column], pin)
            np.take(
                shard[column], local, axis=0, out=rows, mode="clip"
            )  # checked above; "raise" would buffer
            gathered.append(tensor)
        return gathered

    def _from_many(self, indices: NDArray[np.int64], columns: Sequence[int], pin: bool) -> list[Tensor]:
        """One gather per touched shard, side by side, and one that brings the rows into their order: nearly three
        times as fast as putting each shard's rows where they belong, which is done row by row."""
        small = np.min_scalar_type(
            len(self.shards)
        )  # numbers of 8 or 16 bits are sorted in a third of the time
        of_shard = np.searchsorted(self._ends, indices, side="right").astype(small)
        order = np.argsort(of_shard, kind="stable")
        places = np.empty(len(indices), np.int64)
        places[order] = np.arange(len(indices))
        counts = np.bincount(of_shard)
        touched = np.flatnonzero(counts)
        ends = np.cumsum(counts[touched])
        beside: list[NDArray[Any]] = []
        for shard_index, start, stop in zip(touched.tolist(), [0, *ends[:-1]], ends, strict=True):
            shard = self._open.get(shard_index)
            local = indices[order[start:stop]] - (self._ends[shard_index] - self.shards[shard_index].rows)
            beside = beside or [
                np.empty((len(indices), *shard[column].shape[1:]), shard[column].dtype) for column in columns
            ]
            for column, rows in zip(columns, beside, strict=True):
                np.take(shard[column], local, axis=0, out=rows[start:stop], mode="clip")
        gathered = []
        for rows in beside:
            tensor, out = _empty(len(indices), rows, pin)
            np.take(rows, places, axis=0, out=out, mode="clip")
            gathered.append(tensor)
        return gathered


def _empty(count: int, like: NDArray[Any], pin: bool) -> tuple[Tensor, NDArray[Any]]:
    """Room for `count` rows of a column, as a tensor and as the array over the same memory."""
    import torch

    dtype = torch.from_numpy(like[:0]).dtype  # torch's name for numpy's
    rows = torch.empty((count, *like.shape[1:]), dtype=dtype, pin_memory=pin)
    return rows, rows.numpy()


def _whole_numbers(targets: Tensor) -> Tensor:
    """Tokens are stored as small as they fit."""
    import torch

    return targets if targets.is_floating_point() else targets.to(torch.int64)


def _is_run(indices: NDArray[np.int64]) -> bool:
    """Whether each index is the one before it plus 1."""
    count = len(indices)
    if not count:
        return True
    return int(indices[-1]) - int(indices[0]) == count - 1 and bool((indices[1:] - indices[:-1] == 1).all())
