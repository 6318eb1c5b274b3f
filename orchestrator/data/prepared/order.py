"""The epoch order: which rows form which batch, as pure functions of sizes, seed and epoch.

Batch `k` of an epoch is `permutation[k·B : (k+1)·B]`; rank `r` takes a contiguous slice of it. So any number
of workers sees the same global batches, and a resumed run starts at the exact next one. Imports: numpy.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def epoch_permutation(num_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """The order of the rows in an epoch, a permutation of 0…num_rows-1, shape (num_rows,).

    Sorts the raw 64-bit words of a Philox generator: numpy promises that those never change between versions,
    which it does not for `Generator.permutation`.
    """
    words = np.random.Philox(np.random.SeedSequence([seed, epoch])).random_raw(num_rows)
    return np.argsort(words, kind="stable").astype(np.int64, copy=False)


def num_batches(num_rows: int, batch_size: int, drop_last: bool = False) -> int:
    """Global batches in an epoch; the last one may be short unless `drop_last`."""
    return num_rows // batch_size if drop_last else -(-num_rows // batch_size)


def batch_indices(permutation: NDArray[np.int64], k: int, batch_size: int) -> NDArray[np.int64]:
    """The rows of global batch `k`, counted from 0; empty past the end."""
    return permutation[k * batch_size : (k + 1) * batch_size]


def rank_slice(n: int, rank: int, world_size: int) -> slice:
    """The part of `n` things that a rank takes: contiguous, sizes differing by at most one, in rank order."""
    base, extra = divmod(n, world_size)
    start = rank * base + min(rank, extra)
    return slice(start, start + base + (rank < extra))
