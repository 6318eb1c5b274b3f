"""Steps for outliers: drop the rows that hold them, or clip them. Imports: numpy, pyarrow."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.cleaning import statistics
from orchestrator.data.cleaning.cleaned import Cleaned, Mask
from orchestrator.data.cleaning.statistics import Counts, Numbers, merged_columns, survey_numbers
from orchestrator.data.cleaning.step import Head, with_type
from orchestrator.data.columns import numbers
from orchestrator.spec.data import ClipOutliers, DropOutliers

Bounds = tuple[float, float]
"""Low and high; infinite where there is none."""

_NONE = (-math.inf, math.inf)


def find_bounds(rule: DropOutliers | ClipOutliers, found: Numbers | Counts | None) -> Bounds:
    """Between which values a column's numbers are no outliers. `found` is None where no number is known."""
    if rule.method == "fixed":
        assert isinstance(rule, ClipOutliers)
        return (
            -math.inf if rule.min is None else rule.min,
            math.inf if rule.max is None else rule.max,
        )
    if not isinstance(found, Numbers) or not found.count:
        return _NONE
    if rule.method == "z_score":
        mean, spread = statistics.mean(found), statistics.deviation(found)
        return (mean - rule.z * spread, mean + rule.z * spread) if spread > 0 else _NONE
    if rule.method == "iqr":
        first, third = statistics.quantiles(found, [0.25, 0.75])
        reach = rule.k * (third - first)
        return (first - reach, third + reach) if reach > 0 else _NONE
    low, high = statistics.quantiles(found, [rule.low, rule.high])
    return low, high


@dataclass(frozen=True)
class OutlierRows:
    """Drops rows that hold an outlier, by statistics over all rows."""

    head: Head
    rule: DropOutliers
    bounds: Mapping[str, Bounds] | None = None

    @property
    def pending(self) -> bool:
        return self.bounds is None

    def survey(self, cleaned: Cleaned) -> dict[str, Numbers]:
        return _survey(cleaned, self.head.names)

    def fit(self, partials: Iterable[Mapping[str, Numbers]]) -> Self:
        found = merged_columns(partials)
        return replace(
            self, bounds={name: find_bounds(self.rule, found.get(name)) for name in self.head.names}
        )

    def rows_kept(self, cleaned: Cleaned) -> Mask:
        assert self.bounds is not None
        keep = np.ones(len(cleaned.rows), dtype=bool)
        for name in self.head.names:
            values, (low, high) = numbers(cleaned.table[name]), self.bounds[name]
            keep &= ~((values < low) | (values > high))  # a NaN stays: it is no outlier
        return keep

    def schema_after(self, schema: pa.Schema) -> pa.Schema:
        return schema


@dataclass(frozen=True)
class Clip:
    """Moves outliers to the bounds: provisionally by statistics over all rows, then by those of training rows."""

    head: Head
    rule: ClipOutliers
    whole: frozenset[str]
    """Columns of whole numbers."""
    starts: Mapping[str, int]
    """The first of the steps that learn from a column, and clip or fill it."""
    bounds: Mapping[str, Bounds] | None = None

    @property
    def pending(self) -> bool:
        return self.bounds is None

    @property
    def learns(self) -> bool:
        return self.rule.method != "fixed"

    def survey(self, cleaned: Cleaned) -> dict[str, Numbers]:
        return _survey(cleaned, self.head.names)

    def fit(self, partials: Iterable[Mapping[str, Numbers]]) -> Self:
        found = merged_columns(partials)
        return self.with_bounds({name: find_bounds(self.rule, found.get(name)) for name in self.head.names})

    def with_bounds(self, bounds: Mapping[str, Bounds]) -> Self:
        """Those of columns of whole numbers are rounded outwards."""
        rounded = {name: _outwards(pair) if name in self.whole else pair for name, pair in bounds.items()}
        return replace(self, bounds=rounded)

    def apply(self, cleaned: Cleaned) -> tuple[Cleaned, Mask]:
        assert self.bounds is not None
        touched = np.zeros(len(cleaned.rows), dtype=bool)
        for name in self.head.names:
            column, moved = clip_column(cleaned.table[name], self.bounds[name])
            cleaned = cleaned.put(name, column)
            touched |= moved
        return cleaned, touched

    def schema_after(self, schema: pa.Schema) -> pa.Schema:
        for name in self.head.names:
            schema = with_type(schema, name, _clipped_type(schema.field(name).type))
        return schema


def clip_column(column: pa.ChunkedArray, bounds: Bounds) -> tuple[pa.ChunkedArray, Mask]:
    """A column of numbers between its bounds, and which rows were beyond them. Nulls and NaN stay."""
    kind = _clipped_type(column.type)
    column = column.cast(kind)
    low, high = _within(kind, bounds)
    moved = np.zeros(len(column), dtype=bool)
    for bound, beyond in ((low, pc.less), (high, pc.greater)):
        if bound is not None:
            rows = pc.fill_null(beyond(column, bound), False)
            column = pc.if_else(rows, bound, column)
            moved |= np.asarray(rows, dtype=bool)
    return column, moved


def clipped(value: float, bounds: Bounds) -> float:
    """One number between its bounds."""
    return min(max(value, bounds[0]), bounds[1])


def _clipped_type(kind: pa.DataType) -> pa.DataType:
    return pa.float64() if pa.types.is_decimal(kind) else kind


def _within(kind: pa.DataType, bounds: Bounds) -> tuple[Any, Any]:
    """The bounds in a column's type; None where no value of the type is beyond."""
    if not pa.types.is_integer(kind):
        return tuple(pa.scalar(bound).cast(kind) if math.isfinite(bound) else None for bound in bounds)  # type: ignore[return-value]
    least, most = np.iinfo(kind.to_pandas_dtype()).min, np.iinfo(kind.to_pandas_dtype()).max
    return tuple(  # type: ignore[return-value]
        pa.scalar(min(max(int(bound), least), most), kind) if math.isfinite(bound) else None
        for bound in _outwards(bounds)
    )


def _outwards(bounds: Bounds) -> Bounds:
    low, high = bounds
    return (
        float(math.floor(low)) if math.isfinite(low) else low,
        float(math.ceil(high)) if math.isfinite(high) else high,
    )


def _survey(cleaned: Cleaned, names: Iterable[str]) -> dict[str, Numbers]:
    table = cleaned.table
    return {name: survey_numbers(numbers(table[name]), cleaned.rows, cleaned.chunk) for name in names}
