"""Statistics of rows that come in chunks: small partial results of each chunk, which merge in any grouping.

Imports: numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAMPLE_ROWS = 1_000_000
"""Rows that a sample holds at most, where nothing else is said; statistics of fewer are exact."""

_PIECE_VALUES = 1 << 22
"""Values converted to float64 at a time: 32 MiB."""


@dataclass(frozen=True)
class Moments:
    """Of each column or channel: how many values, their mean, sum of squared deviations, minimum and maximum,
    each shape (columns,) but `count`. Exact but for rounding."""

    count: int
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def std(self) -> NDArray[np.float64]:
        """Population standard deviation, as scikit-learn's StandardScaler takes it."""
        return np.sqrt(self.squares / max(1, self.count))

    @classmethod
    def of(cls, values: NDArray[Any]) -> Moments:
        """Over all axes but the last; converted to float64 in pieces. No rows give a count of 0."""
        columns = values.shape[-1]
        merged = cls.none(columns)
        rows_per_piece = max(1, _PIECE_VALUES // max(1, int(np.prod(values.shape[1:]))))
        for start in range(0, len(values), rows_per_piece):
            piece = values[start : start + rows_per_piece].astype(np.float64, copy=False).reshape(-1, columns)
            with np.errstate(over="ignore", invalid="ignore"):  # squares of numbers beyond 1e154 are infinite
                mean = piece.mean(axis=0)
                squares = ((piece - mean) ** 2).sum(axis=0)
            merged = merged.merge(cls(len(piece), mean, squares, piece.min(axis=0), piece.max(axis=0)))
        return merged

    @classmethod
    def none(cls, columns: int = 1) -> Moments:
        zeros = np.zeros(columns)
        return cls(0, zeros, zeros, np.full(columns, np.inf), np.full(columns, -np.inf))

    def merge(self, other: Moments) -> Moments:
        if not self.count or not other.count:
            return self if self.count else other
        mean, squares = merge_means(
            self.count, self.mean, self.squares, other.count, other.mean, other.squares
        )
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return Moments(self.count + other.count, mean, squares, low, high)


def merge_means(
    count: Any, mean: Any, squares: Any, count2: Any, mean2: Any, squares2: Any
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and sum of squared deviations of two groups together, without cancellation (Chan et al. 1979);
    arrays that broadcast. Two empty groups give 0."""
    total = np.maximum(count + count2, 1)
    with np.errstate(over="ignore", invalid="ignore"):
        delta = mean2 - mean
        return mean + delta * (count2 / total), squares + squares2 + delta**2 * (count * (count2 / total))


@dataclass(frozen=True)
class Sample:
    """The rows with the smallest keys, at most `limit`, in the order in which they came: with keys of
    `place_keys`, every row is as likely as any other, and which rows they are depends neither on what they hold
    nor on how they are parted into chunks.

    `keys` (rows,); `columns` by any key, each (rows, …).
    """

    keys: NDArray[np.uint64]
    columns: Mapping[Any, NDArray[Any]]
    limit: int = SAMPLE_ROWS

    @classmethod
    def of(
        cls, keys: NDArray[np.uint64], columns: Mapping[Any, NDArray[Any]], limit: int = SAMPLE_ROWS
    ) -> Sample:
        if len(keys) <= limit:
            return cls(keys, columns, limit)
        return cls(keys, columns, limit)._take(np.sort(np.argpartition(keys, limit)[:limit]))

    def merge(self, *others: Sample) -> Sample:
        """With those that come later, of the same columns."""
        samples: Sequence[Sample] = (self, *others)
        keys = np.concatenate([sample.keys for sample in samples])
        columns = {
            name: np.concatenate([sample.columns[name] for sample in samples]) for name in self.columns
        }
        return Sample.of(keys, columns, self.limit)

    def shuffled(self) -> Sample:
        """In the order of the keys, so that the first rows are a sample of the sample."""
        return self._take(np.argsort(self.keys, kind="stable"))

    def _take(self, rows: NDArray[np.int64]) -> Sample:
        return Sample(
            self.keys[rows], {name: values[rows] for name, values in self.columns.items()}, self.limit
        )
