"""Statistics of a column that is read chunk by chunk: surveyed per chunk, merged in the order of the chunks.

Up to SAMPLE_LIMIT values, all are kept, and every statistic is taken of them at once: however the rows are cut
into chunks, the same bits come out. Beyond, counts, means and deviations come from moments, which are exact but
for rounding; medians, modes and quantiles come from a sample. Imports: numpy, pyarrow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.data.cleaning.hashing import mix

SAMPLE_LIMIT = 1_000_000
"""How many numbers of a column are kept at most."""


@dataclass(frozen=True)
class Numbers:
    """The finite numbers of a column: how many, their mean and summed squared deviations, and `values`, all of
    them or a sample, in source order; `ranks` say which go first where there are too many."""

    count: int
    mean: float
    squares: float
    values: NDArray[np.float64]
    ranks: NDArray[np.uint64]

    @property
    def complete(self) -> bool:
        """Whether `values` are all there are."""
        return len(self.values) == self.count


def survey_numbers(
    values: NDArray[np.float64], rows: NDArray[np.int64], chunk: int, limit: int = SAMPLE_LIMIT
) -> Numbers:
    """Of one chunk: its values, shape (n,), and the numbers of their rows in the chunk. NaN and infinities are
    left out. What a sample takes depends on the places of the values (chunk and row), never on the values."""
    finite = np.isfinite(values)
    values, rows = values[finite], rows[finite]
    mean = float(values.mean()) if len(values) else 0.0
    squares = float(np.square(values - mean).sum())
    ranks = mix(rows.astype(np.uint64) + (np.uint64(chunk) << np.uint64(40)))
    return _limited(Numbers(len(values), mean, squares, values, ranks), limit)


class NumbersMerger:
    """Merges the surveys of a column, one after the other in the order of the chunks; holds never much more than
    the limit. Moments are merged after Chan, Golub and LeVeque (1979)."""

    def __init__(self, limit: int = SAMPLE_LIMIT) -> None:
        self._limit = limit
        self._parts: list[Numbers] = []
        self._held = self._count = 0
        self._mean = self._squares = 0.0

    def add(self, part: Numbers) -> None:
        total = self._count + part.count
        if part.count:
            step = part.mean - self._mean
            self._mean += step * part.count / total
            self._squares += part.squares + step * step * self._count * part.count / total
        self._count = total
        self._parts.append(part)
        self._held += len(part.values)
        if self._held > 1.5 * self._limit:
            self._parts = [self.result()]
            self._held = len(self._parts[0].values)

    def result(self) -> Numbers:
        values = np.concatenate([np.empty(0), *(part.values for part in self._parts)])
        ranks = np.concatenate([np.empty(0, np.uint64), *(part.ranks for part in self._parts)])
        return _limited(Numbers(self._count, self._mean, self._squares, values, ranks), self._limit)


def _limited(numbers: Numbers, limit: int) -> Numbers:
    """With the values of the lowest ranks only, still in source order."""
    if len(numbers.values) <= limit:
        return numbers
    kept = np.sort(np.argpartition(numbers.ranks, limit)[:limit])
    return Numbers(numbers.count, numbers.mean, numbers.squares, numbers.values[kept], numbers.ranks[kept])


def mean(numbers: Numbers) -> float:
    """The mean of at least one number."""
    return float(numbers.values.mean()) if numbers.complete else numbers.mean


def deviation(numbers: Numbers) -> float:
    """The standard deviation of at least one number (divided by their count, as numpy does)."""
    if numbers.complete:
        return float(numbers.values.std())
    return float(np.sqrt(numbers.squares / numbers.count))


def quantiles(numbers: Numbers, shares: list[float]) -> list[float]:
    """By linear interpolation between the two nearest values, as numpy does; of at least one number."""
    return [float(value) for value in np.quantile(numbers.values, shares)]


def median(numbers: Numbers) -> float:
    """Of at least one number."""
    return float(np.median(numbers.values))


def most_frequent(numbers: Numbers) -> float:
    """The smallest of the most frequent numbers, of at least one."""
    values, counts = np.unique(numbers.values, return_counts=True)
    return float(values[counts.argmax()])


def clip_numbers(numbers: Numbers, low: float, high: float) -> Numbers:
    """The numbers moved into bounds. Of more than the limit, all statistics are then those of the sample."""
    values = np.clip(numbers.values, low, high)
    mean = float(values.mean()) if len(values) else 0.0
    return Numbers(len(values), mean, float(np.square(values - mean).sum()), values, numbers.ranks)


@dataclass(frozen=True)
class Counts:
    """How often each value of a column occurs: `values` (n distinct, without null) and `counts` (n,)."""

    values: pa.Array
    counts: NDArray[np.int64]


def survey_counts(column: pa.ChunkedArray) -> Counts:
    """Of one chunk's values, nulls left out."""
    found = pc.value_counts(column.drop_null())
    return Counts(found.field("values"), found.field("counts").to_numpy().astype(np.int64))


class CountsMerger:
    """Merges the counts of a column. Of more than `limit` distinct values, the most frequent so far stay: counts
    are exact for columns with no more than that."""

    def __init__(self, limit: int = SAMPLE_LIMIT) -> None:
        self._limit = limit
        self._parts: list[Counts] = []
        self._held = 0

    def add(self, part: Counts) -> None:
        self._parts.append(part)
        self._held += len(part.counts)
        if self._held > 1.5 * self._limit:
            self._parts = [self.result()]
            self._held = len(self._parts[0].counts)

    def result(self) -> Counts:
        table = pa.table(
            {
                "value": pa.chunked_array([part.values for part in self._parts], self._parts[0].values.type),
                "count": np.concatenate([part.counts for part in self._parts]),
            }
        )
        table = table.group_by("value", use_threads=False).aggregate([("count", "sum")])
        values, counts = _one_array(table["value"]), table["count_sum"].to_numpy()
        if len(counts) > self._limit:
            kept = np.sort(np.argsort(-counts, kind="stable")[: self._limit])
            values, counts = values.take(pa.array(kept)), counts[kept]
        return Counts(values, counts)


def merged_columns(
    partials: Iterable[Mapping[Any, Numbers | Counts]], limit: int = SAMPLE_LIMIT
) -> dict[Any, Numbers | Counts]:
    """The surveys of many columns, by the columns' keys; `partials` is read one by one."""
    mergers: dict[Any, NumbersMerger | CountsMerger] = {}
    for partial in partials:
        for key, part in partial.items():
            if isinstance(part, Numbers):
                merger = mergers.setdefault(key, NumbersMerger(limit))
            else:
                merger = mergers.setdefault(key, CountsMerger(limit))
            merger.add(part)  # type: ignore[arg-type]
    return {key: merger.result() for key, merger in mergers.items()}


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def most_frequent_value(counts: Counts) -> str:
    """The first, in the order of their bytes, of the most frequent texts; of at least one."""
    most = counts.values.filter(pa.array(counts.counts == counts.counts.max()))
    return str(pc.min(most).as_py())
