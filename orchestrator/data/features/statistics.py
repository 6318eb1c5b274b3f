"""Statistics of rows that come in chunks: small partial results of each chunk, merged in any grouping.

Imports: numpy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDS = 5
"""Training rows are parted into so many folds, for what must not look at a row's own target."""
SAMPLE_ROWS = 1_000_000
"""Rows that a sample holds at most; statistics of fewer are exact."""

_CHUNK_VALUES = 1 << 22
"""Values converted to float64 at a time: 32 MiB."""


def row_keys(rows: NDArray[np.int64], *, chunk: int = 0, seed: int = 0) -> NDArray[np.uint64]:
    """A number for each row that looks random and is always the same: its fold, and its place in samples.

    `rows` are the rows' numbers within the chunk, shape (rows,); no two rows of a source may share both
    numbers. Of the same row the key is the same, whatever rows stand beside it.
    """
    base = _mixed(np.array([((seed << 32) ^ chunk) % 2**64], np.uint64))
    return _mixed(base ^ rows.astype(np.uint64))


def fold_numbers(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The fold of each row, 0 to FOLDS - 1, shape (rows,)."""
    return ((keys >> np.uint64(32)) % np.uint64(FOLDS)).astype(np.int64)


@dataclass(frozen=True)
class Moments:
    """Of each column or channel: how many values, their mean, sum of squared deviations, minimum and maximum,
    each shape (columns,) but `count`."""

    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def std(self) -> NDArray[np.float64]:
        """Population standard deviation."""
        return np.sqrt(self.squares / max(1, self.count))

    @classmethod
    def of(cls, values: NDArray[Any]) -> Moments:
        """Over all axes but the last; converted to float64 in pieces. No rows give a count of 0."""
        channels = values.shape[-1]
        merged = cls.none(channels)
        rows_per_piece = max(1, _CHUNK_VALUES // max(1, int(np.prod(values.shape[1:]))))
        for start in range(0, len(values), rows_per_piece):
            piece = values[start : start + rows_per_piece].astype(np.float64).reshape(-1, channels)
            mean = piece.mean(axis=0)
            squares = ((piece - mean) ** 2).sum(axis=0)
            merged = merged.merge(cls(len(piece), mean, squares, piece.min(axis=0), piece.max(axis=0)))
        return merged

    @classmethod
    def none(cls, channels: int) -> Moments:
        zeros = np.zeros(channels)
        return cls(0, zeros, zeros, np.full(channels, np.inf), np.full(channels, -np.inf))

    def merge(self, other: Moments) -> Moments:
        mean, squares = merge_means(
            np.float64(self.count),
            self.mean,
            self.squares,
            np.float64(other.count),
            other.mean,
            other.squares,
        )
        return Moments(
            self.count + other.count,
            mean,
            squares,
            np.minimum(self.low, other.low),
            np.maximum(self.high, other.high),
        )


def merge_means(
    count: Any, mean: Any, squares: Any, count2: Any, mean2: Any, squares2: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and sum of squared deviations of two groups together, without cancellation (Chan et al. 1979);
    arrays that broadcast. Two empty groups give 0."""
    total = np.maximum(count + count2, 1)
    delta = mean2 - mean
    return mean + delta * (count2 / total), squares + squares2 + delta**2 * (count * (count2 / total))


@dataclass(frozen=True)
class Sample:
    """The rows with the smallest keys, at most SAMPLE_ROWS: every row is as likely as any other, and which
    rows they are does not depend on how rows are parted into chunks.

    `keys` (rows,), in no order; `values` float32 (rows, columns).
    """

    keys: NDArray[np.uint64]
    values: NDArray[np.float32]

    @classmethod
    def of(cls, keys: NDArray[np.uint64], values: NDArray[np.float32]) -> Sample:
        if len(keys) <= SAMPLE_ROWS:
            return cls(keys, values)
        smallest = np.argpartition(keys, SAMPLE_ROWS)[:SAMPLE_ROWS]
        return cls(keys[smallest], values[smallest])

    def merge(self, other: Sample) -> Sample:
        return Sample.of(np.concatenate([self.keys, other.keys]), np.concatenate([self.values, other.values]))

    def quartiles(self) -> NDArray[np.float64]:
        """25 %, 50 % and 75 % of each column, between values where need be, shape (3, columns)."""
        return np.asarray(np.quantile(self.values.astype(np.float64), [0.25, 0.5, 0.75], axis=0))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele et al. 2014): one to one, and every bit depends on every other."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
