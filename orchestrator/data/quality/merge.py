"""From the partials of chunks to the report. Imports: numpy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import reduce
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.features.target import MAX_INTEGER_CLASSES, MIN_ROWS_PER_INTEGER_CLASS
from orchestrator.data.quality.links import correlation, guessed_right
from orchestrator.data.quality.report import (
    QUANTILES,
    ClassCount,
    ColumnReport,
    Duplicates,
    NumberSummary,
    QualityReport,
)
from orchestrator.data.quality.sketches import Rows
from orchestrator.data.quality.survey import ColumnPartial, QualityPartial
from orchestrator.data.statistics import Sample
from orchestrator.errors import SourceError

_VALUES = 100
_CLASSES = 1000
_BINS = 20
_SAMPLE = 1000

Task = Literal["classification", "regression"]


def join_quality(partials: Iterable[QualityPartial]) -> QualityPartial:
    """One partial for several, in the order of their chunks. They are taken one at a time, and the result is no
    larger than one of them can be: a generator of partials needs the memory of two."""
    iterator = iter(partials)
    first = next(iterator, None)
    if first is None:
        raise SourceError("the source has no rows", "look at data.source")
    return reduce(QualityPartial.join, iterator, first)


def merge_quality(partials: Iterable[QualityPartial]) -> QualityReport:
    """The report on all chunks, in their order. Raises SourceError where there is none."""
    whole = join_quality(partials)
    whole = replace(whole, sample=whole.sample.shuffled())
    task = _task(whole)
    columns = tuple(_column(name, column, whole, task) for name, column in whole.columns.items())
    train, val, test, dropped = (int(count) for count in whole.rows)
    return QualityReport(
        rows=(train, val, test),
        dropped=dropped,
        target=whole.target,
        task=task,
        text=whole.text,
        filled=whole.filled,
        columns=columns,
        classes=_classes(whole) if task == "classification" else (),
        duplicates=_duplicates(whole.duplicates),
    )


def _task(whole: QualityPartial) -> Task | None:
    """By the rules of `resolve_target`."""
    if whole.target is None:
        return None
    if whole.task != "auto":
        return "regression" if whole.task == "regression" else "classification"
    column = whole.columns[whole.target]
    if column.kind != "number":
        return "classification"
    if not column.type.startswith(("int", "uint")):
        return "regression"
    distinct = column.distinct.count
    rows = int(whole.rows[:3].sum())
    few = distinct <= MAX_INTEGER_CLASSES and distinct * MIN_ROWS_PER_INTEGER_CLASS <= rows
    return "classification" if few or distinct <= 2 else "regression"


def _column(name: str, column: ColumnPartial, whole: QualityPartial, task: Task | None) -> ColumnReport:
    link = None
    if name != whole.target and whole.target is not None:
        link = _label_link(name, whole.target, whole.sample, task)
    return ColumnReport(
        name=name,
        kind=column.kind,
        type=column.type,
        count=int(whole.rows[:3].sum()),
        nulls=column.nulls,
        infinite=column.infinite,
        distinct=column.distinct.count,
        distinct_exact=column.distinct.exact,
        values=column.values.top(_VALUES),
        values_complete=column.values.complete and len(column.values.counts) <= _VALUES,
        numbers=_summary(column, whole.sample.columns.get(("number", name))),
        label_link=link,
    )


def _label_link(name: str, target: str, sample: Sample, task: Task | None) -> float | None:
    columns, numbers, targets = sample.columns, ("number", name), ("number", target)
    if task == "classification":
        return guessed_right(columns["hash", name], columns.get(numbers), columns["hash", target])
    if task == "regression" and numbers in columns and targets in columns:
        return correlation(columns[numbers], columns[targets])
    return None


def _summary(column: ColumnPartial, drawn: NDArray[np.float64] | None) -> NumberSummary | None:
    moments = column.moments
    if not moments.count:
        return None
    # Squares of numbers beyond 1e154 are infinite, which JSON cannot write.
    mean, std = (float(np.nan_to_num(value[0])) for value in (moments.mean, moments.std))
    exact = NumberSummary(moments.count, mean, std, float(moments.low[0]), float(moments.high[0]))
    values = drawn[np.isfinite(drawn)] if drawn is not None else np.zeros(0)
    if not len(values):
        return exact
    quantiles = np.quantile(values, QUANTILES)
    low, middle, high = quantiles[2:5]
    spread = high - low
    deciles = np.unique(np.quantile(values, np.linspace(0.1, 0.9, 9)))
    shares = np.bincount(np.searchsorted(deciles, values, side="right"), minlength=len(deciles) + 1)
    edges = _edges(values)
    # The outer bins take what lies beyond their edges.
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    outside = (values < low - 3 * spread) | (values > high + 3 * spread)
    farthest = max(exact.most - middle, middle - exact.least) / spread if spread > 0 else 0.0
    return NumberSummary(
        *(exact.count, exact.mean, exact.std, exact.least, exact.most),
        sample_rows=len(values),
        quantiles=tuple(quantiles.tolist()),
        edges=tuple(edges.tolist()),
        counts=tuple(counts.tolist()),
        outliers=float(outside.mean()) if spread > 0 else 0.0,
        farthest=float(farthest),
        bins=tuple(deciles.tolist()),
        shares=tuple((shares / len(values)).tolist()),
        sample=tuple(values[:_SAMPLE].tolist()),
    )


def _edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of equal bins over all values but the outermost 0.5% on either side; of whole numbers that are few, one each."""
    low, high = (float(edge) for edge in np.quantile(values, [0.005, 0.995]))
    if low == high:
        low, high = float(values.min()), float(values.max())
    whole = np.array_equal(values, np.round(values))
    if whole and high - low < _BINS and max(abs(low), abs(high)) < 2.0**52:
        return np.arange(np.floor(low), np.ceil(high) + 2) - 0.5
    edges = np.linspace(low, high, _BINS + 1)
    # Numbers that differ in their last digits only, or not at all, have no bins between them.
    margin = max(0.5, 1e-6 * abs(low))
    return edges if (np.diff(edges) > 0).all() else np.array([low - margin, high + margin])


def _classes(whole: QualityPartial) -> tuple[ClassCount, ...]:
    names = sorted({name for values in whole.classes for name in values.counts})
    train, val, test = (values.counts for values in whole.classes)
    counted = [ClassCount(name, (train.get(name, 0), val.get(name, 0), test.get(name, 0))) for name in names]
    return tuple(sorted(counted, key=lambda item: -item.total)[:_CLASSES])


def _duplicates(rows: Rows) -> Duplicates:
    """Counts among the rows that were kept, times the rows that each of them stands for."""
    scale, counts = 1 << rows.level, rows.counts
    within = np.maximum(counts - 1, 0).sum(axis=0) * scale

    def across(first: int, second: int) -> int:
        return int(counts[counts[:, first] > 0, second].sum()) * scale

    return Duplicates(
        distinct_rows=len(counts) * scale,
        within=(int(within[0]), int(within[1]), int(within[2])),
        across=(across(0, 1), across(0, 2), across(1, 2)),
        exact=rows.level == 0,
    )
