"""Statistics of a column that is read chunk by chunk: surveyed per chunk, merged in the order of the chunks.

Up to SAMPLE_ROWS values, all are kept, and every statistic is taken of them at once: however the rows are cut
into chunks, the same bits come out. Beyond, counts, means and deviations come from moments, which are exact but
for rounding; medians, modes and quantiles come from a sample. Imports: numpy, pyarrow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.data.splitmix import place_keys
from orchestrator.data.statistics import SAMPLE_ROWS, Moments, Sample

_VALUES = "values"


@dataclass(frozen=True)
class Numbers:
    """The finite numbers of a column: their moments, and all of them or a sample."""

    moments: Moments
    sample: Sample

    @property
    def count(self) -> int:
        return self.moments.count

    @property
    def values(self) -> NDArray[np.float64]:
        """Those of the sample, in source order."""
        return self.sample.columns[_VALUES]

    @property
    def complete(self) -> bool:
        """Whether `values` are all there are."""
        return len(self.values) == self.count


def survey_numbers(
    values: NDArray[np.float64], rows: NDArray[np.int64], chunk: int, limit: int = SAMPLE_ROWS
) -> Numbers:
    """Of one chunk: its values, shape (n,), and the numbers of their rows in the chunk. NaN and infinities are
    left out. What a sample takes depends on the places of the values (chunk and row), never on the values."""
    finite = np.isfinite(values)
    values, keys = values[finite], place_keys(rows[finite], chunk=chunk)
    return Numbers(Moments.of(values[:, None]), Sample.of(keys, {_VALUES: values}, limit))


def mean(numbers: Numbers) -> float:
    """The mean of at least one number."""
    return float(numbers.values.mean()) if numbers.complete else float(numbers.moments.mean[0])


def deviation(numbers: Numbers) -> float:
    """The standard deviation of at least one number (divided by their count, as numpy does)."""
    if numbers.complete:
        return float(numbers.values.std())
    return float(numbers.moments.std[0])


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
    sample, values = numbers.sample, np.clip(numbers.values, low, high)
    return Numbers(Moments.of(values[:, None]), Sample(sample.keys, {_VALUES: values}, sample.limit))


@dataclass(frozen=True)
class Counts:
    """How often each value of a column occurs: `values` (n distinct, without null) and `counts` (n,)."""

    values: pa.Array
    counts: NDArray[np.int64]


def survey_counts(column: pa.ChunkedArray) -> Counts:
    """Of one chunk's values, nulls left out."""
    found = pc.value_counts(column.drop_null())
    return Counts(found.field("values"), found.field("counts").to_numpy().astype(np.int64))


def merged_columns(
    partials: Iterable[Mapping[Any, Numbers | Counts]], limit: int = SAMPLE_ROWS
) -> dict[Any, Numbers | Counts]:
    """The surveys of many columns, by the columns' keys, in the order of the chunks. `partials` is read one by one,
    and of each column never much more than `limit` values are held.

    Of more distinct texts, the most frequent so far stay: counts are exact for columns with no more than `limit`.
    """
    parts: dict[Any, list[Numbers | Counts]] = {}
    held: Counter[Any] = Counter()
    for partial in partials:
        for key, part in partial.items():
            parts.setdefault(key, []).append(part)
            held[key] += len(part.values)
            if held[key] > 1.5 * limit:
                parts[key] = [_merged(parts[key], limit)]
                held[key] = len(parts[key][0].values)
    return {key: _merged(each, limit) for key, each in parts.items()}


def _merged(parts: Sequence[Any], limit: int) -> Numbers | Counts:
    if isinstance(parts[0], Counts):
        return _merged_counts(parts, limit)
    first, *others = (part.sample for part in parts)
    return Numbers(reduce(Moments.merge, (part.moments for part in parts)), first.merge(*others))


def _merged_counts(parts: Sequence[Counts], limit: int) -> Counts:
    table = pa.table(
        {
            "value": pa.chunked_array([part.values for part in parts], parts[0].values.type),
            "count": np.concatenate([part.counts for part in parts]),
        }
    )
    table = table.group_by("value", use_threads=False).aggregate([("count", "sum")])
    values, counts = _one_array(table["value"]), table["count_sum"].to_numpy()
    if len(counts) > limit:
        kept = np.sort(np.argsort(-counts, kind="stable")[:limit])
        values, counts = values.take(pa.array(kept)), counts[kept]
    return Counts(values, counts)


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def most_frequent_value(counts: Counts) -> str:
    """The first, in the order of their bytes, of the most frequent texts; of at least one."""
    most = counts.values.filter(pa.array(counts.counts == counts.counts.max()))
    return str(pc.min(most).as_py())
