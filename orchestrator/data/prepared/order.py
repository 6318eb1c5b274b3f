"""The epoch order: which rows form which batch, as pure functions of sizes, seed and epoch.

Batch `k` of an epoch is `order[k·B : (k+1)·B]`; rank `r` takes a contiguous slice of it. So any number of
workers sees the same global batches, and a resumed run starts at the exact next one. Imports: numpy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class EpochOrder(Protocol):
    """The rows of an epoch in batches, counted from 0. No batch needs another one to be asked for first."""

    def batch(self, k: int) -> NDArray[np.int64]:
        """The rows of global batch `k`; the last one may be short, and past the end they are empty."""

    def shards(self, k: int) -> tuple[int, ...]:
        """The shards to have open from batch `k` on; empty where it makes no difference."""


class MappedOrder:
    """All rows shuffled as a whole."""

    def __init__(self, num_rows: int, batch_size: int, *, seed: int, epoch: int) -> None:
        self._batch_size = batch_size
        self._permutation = epoch_permutation(num_rows, seed, epoch)

    def batch(self, k: int) -> NDArray[np.int64]:
        return self._permutation[k * self._batch_size : (k + 1) * self._batch_size]

    def shards(self, k: int) -> tuple[int, ...]:  # noqa: ARG002 - the protocol's signature
        return ()


class StreamingOrder:
    """A shuffle in two levels: shards in random order are grouped into windows of at most `window_bytes` (at
    least one shard), and rows are shuffled within a window. A batch may span windows.

    Where a window begins is known from the sizes alone, so any batch costs the rows of its own windows only.
    Not for use by several threads.
    """

    def __init__(
        self,
        shard_rows: Sequence[int],
        shard_bytes: Sequence[int],
        window_bytes: int,
        batch_size: int,
        *,
        seed: int,
        epoch: int,
    ) -> None:
        self._batch_size = batch_size
        self._key = [seed, epoch]
        order = _permutation(len(shard_rows), [*self._key, 1])
        self._windows = _grouped(order.tolist(), shard_bytes, window_bytes)
        rows = [sum(shard_rows[shard] for shard in window) for window in self._windows]
        self._ends = np.cumsum([0, *rows])[1:]  # in the order, shape (windows,)
        self._first_rows = np.cumsum([0, *shard_rows])  # of each shard, shape (shards + 1,)
        self._kept: dict[int, NDArray[np.int64]] = {}

    def batch(self, k: int) -> NDArray[np.int64]:
        start, stop, windows = self._span(k)
        self._kept = {window: rows for window, rows in self._kept.items() if window in windows}
        pieces = [np.empty(0, np.int64)] if not windows else []
        for window in windows:
            rows = self._rows(window)
            first = int(self._ends[window]) - len(rows)
            pieces.append(rows[max(0, start - first) : stop - first])
        return np.concatenate(pieces) if len(pieces) != 1 else pieces[0]

    def shards(self, k: int) -> tuple[int, ...]:
        """Those of the batch's windows; of the next one too, while the batch lies in a single window."""
        _, _, windows = self._span(k)
        wanted = range(windows.start, max(windows.stop, windows.start + 2))
        return tuple(shard for window in wanted for shard in self.window(window))

    def window(self, index: int) -> tuple[int, ...]:
        """The shards of a window; empty past the end."""
        return tuple(self._windows[index]) if index < len(self._windows) else ()

    def _span(self, k: int) -> tuple[int, int, range]:
        """Where batch `k` lies in the order, and the windows that it meets (one past the end: none)."""
        num_rows = int(self._ends[-1]) if len(self._ends) else 0
        start = min(k * self._batch_size, num_rows)
        stop = min(start + self._batch_size, num_rows)
        if start == stop:
            return start, stop, range(len(self._windows), len(self._windows))
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right").tolist()
        return start, stop, range(first, last + 1)

    def _rows(self, window: int) -> NDArray[np.int64]:
        rows = self._kept.get(window)
        if rows is None:
            starts, stops = self._first_rows[:-1], self._first_rows[1:]
            together = np.concatenate(
                [np.arange(starts[shard], stops[shard]) for shard in self._windows[window]]
            )
            rows = self._kept[window] = together[_permutation(len(together), [*self._key, 2, window])]
        return rows


class SequentialOrder:
    """Rows `start` … `stop`-1 one after the other, as an evaluation wants them."""

    def __init__(self, start: int, stop: int, batch_size: int, shard_rows: Sequence[int]) -> None:
        self._start, self._stop, self._batch_size = start, stop, batch_size
        self._ends = np.cumsum(shard_rows)

    def batch(self, k: int) -> NDArray[np.int64]:
        start = self._start + k * self._batch_size
        return np.arange(start, min(start + self._batch_size, self._stop))

    def shards(self, k: int) -> tuple[int, ...]:
        """Those of the batch and the one after them."""
        start = self._start + k * self._batch_size
        stop = min(start + self._batch_size, self._stop)
        if start >= stop:
            return ()
        first, last = np.searchsorted(self._ends, [start, stop - 1], side="right").tolist()
        return tuple(range(first, min(last + 2, len(self._ends))))


def epoch_permutation(num_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of the rows in an epoch, a permutation of 0…num_rows-1, shape (num_rows,).

    Sorts the raw 64-bit words of a Philox generator: numpy promises that those never change between versions,
    which it does not for `Generator.permutation`.
    """
    return _permutation(num_rows, [seed, epoch])


def num_batches(num_rows: int, batch_size: int, drop_last: bool = False) -> int:
    """Global batches in an epoch; the last one may be short unless `drop_last`."""
    return num_rows // batch_size if drop_last else -(-num_rows // batch_size)


def rank_slice(n: int, rank: int, world_size: int) -> slice:
    """The part of `n` things that a rank takes: contiguous, sizes differing by at most one, in rank order."""
    base, extra = divmod(n, world_size)
    start = rank * base + min(rank, extra)
    return slice(start, start + base + (rank < extra))


def _permutation(n: int, key: Sequence[int]) -> NDArray[np.int64]:
    """A permutation of 0…n-1 for a key of integers: `np.argsort(words, kind="stable")`, but many times as fast.

    Sorting words takes less than finding their order, so their low bits are replaced by the positions; the few
    words that differ in those bits alone are put right afterwards.
    """
    words = np.random.Philox(np.random.SeedSequence(key)).random_raw(n)
    num_bits = max(n - 1, 0).bit_length()
    low = np.uint64((1 << num_bits) - 1)
    packed = (words & ~low) | np.arange(n, dtype=np.uint64)
    packed.sort()
    order = (packed & low).astype(np.int64)
    packed >>= np.uint64(num_bits)
    alike = np.flatnonzero(packed[1:] == packed[:-1]).tolist()
    swapped = True
    while swapped:
        swapped = False
        for place in alike:
            first, second = order[place], order[place + 1]
            if words[first] > words[second]:
                order[place], order[place + 1] = second, first
                swapped = True
    return order


def _grouped(order: Sequence[int], sizes: Sequence[int], most: int) -> list[list[int]]:
    """Neighbours together as long as their sizes sum up to `most`; what is larger stands alone."""
    groups: list[list[int]] = []
    filled = 0
    for one in order:
        if not groups or filled + sizes[one] > most:
            groups.append([])
            filled = 0
        groups[-1].append(one)
        filled += sizes[one]
    return groups
