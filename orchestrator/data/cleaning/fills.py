"""Steps that fill gaps: by a constant or a statistic, or by the last value before. Imports: numpy, pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.cleaning import statistics
from orchestrator.data.cleaning.cleaned import Cleaned, Fill, Filled, Learned, Mask
from orchestrator.data.cleaning.statistics import (
    Counts,
    Numbers,
    merged_columns,
    survey_counts,
    survey_numbers,
)
from orchestrator.data.cleaning.step import Head, plain, plain_type, with_type
from orchestrator.data.columns import is_number, null_rows, numbers

_GAPS = "gaps"


@dataclass(frozen=True)
class GapFill:
    """Fills by a constant, or by a mean, median or mode: provisionally over all rows, then of training rows."""

    head: Head
    value: Fill
    starts: Mapping[str, int]
    """The first of the steps that learn from a column, and clip or fill it."""
    values: Mapping[str, Fill] | None = None
    gaps: frozenset[str] = frozenset()
    """The columns that hold a gap in any chunk: those of whole numbers then take a mean as numbers with a point."""

    @property
    def pending(self) -> bool:
        return self.values is None

    @property
    def learns(self) -> bool:
        return self.value in ("mean", "median", "mode")

    def survey(self, cleaned: Cleaned) -> dict[Any, Any]:
        found: dict[Any, Any] = {
            name: survey_known(cleaned.table[name], ~null_rows(cleaned.table[name]), cleaned)
            for name in self.head.names
        }
        return found | {_GAPS: [name for name in self.head.names if null_rows(cleaned.table[name]).any()]}

    def fit(self, partials: Iterable[Mapping[Any, Any]]) -> Self:
        gaps: set[str] = set()

        def columns() -> Iterable[Mapping[str, Numbers | Counts]]:
            for partial in partials:
                gaps.update(partial[_GAPS])
                yield {name: partial[name] for name in self.head.names}

        found = merged_columns(columns())
        values = {name: find_fill(self.value, found.get(name)) for name in self.head.names}
        # Where no value is known, any will do until the training rows are asked.
        provisional = {name: 0.0 if value is None else value for name, value in values.items()}
        return replace(self, values=provisional, gaps=frozenset(gaps))

    def apply(self, cleaned: Cleaned) -> tuple[Cleaned, Mask]:
        assert self.values is not None
        touched, filled = np.zeros(len(cleaned.rows), dtype=bool), dict(cleaned.filled)
        for name in self.head.names:
            missing = null_rows(cleaned.table[name])
            column = fill_column(
                cleaned.table[name], missing, self.values[name], self._type(cleaned.table.schema, name)
            )
            cleaned = cleaned.put(name, column)
            before = filled.get(name)
            filled[name] = (
                Filled(before.value, before.rows | missing) if before else Filled(self.value, missing)
            )
            touched |= missing
        return replace(cleaned, filled=filled), touched

    def schema_after(self, schema: pa.Schema) -> pa.Schema:
        for name in self.head.names:
            schema = with_type(schema, name, self._type(schema, name))
        return schema

    def _type(self, schema: pa.Schema, name: str) -> pa.DataType:
        kind = plain_type(schema.field(name).type)
        if self.value in ("mean", "median"):
            return pa.float64() if name in self.gaps and not pa.types.is_floating(kind) else kind
        return filled_type(kind, self.value)


def filled_type(kind: pa.DataType, value: Fill) -> pa.DataType:
    """What a column becomes that a constant fills: 0.5 does not fit among whole numbers."""
    fits = pa.types.is_floating(kind) or not isinstance(value, float) or value.is_integer()
    return kind if fits or not is_number(kind) else pa.float64()


def fill_column(column: pa.ChunkedArray, missing: Mask, value: Fill, kind: pa.DataType) -> pa.ChunkedArray:
    """A column of another type, with a value where it is missing."""
    column = plain(column)
    column = column if column.type == kind else column.cast(kind, safe=False)
    if not missing.any():
        return column
    if isinstance(value, float) and pa.types.is_integer(kind):
        value = int(value)
    return pc.if_else(pa.array(missing), pa.scalar(value).cast(kind), column)


def survey_known(column: pa.ChunkedArray, known: Mask, cleaned: Cleaned) -> Numbers | Counts:
    """What there is to learn of a column where it is known: of its numbers, or of its texts."""
    if is_number(column.type):
        return survey_numbers(numbers(column)[known], cleaned.rows[known], cleaned.chunk)
    return survey_counts(plain(column).filter(pa.array(known)))


def find_fill(value: Fill, found: Numbers | Counts | None) -> Fill | None:
    """What fills a column's gaps; None where no value is known."""
    if value not in ("mean", "median", "mode"):
        return value
    if found is None or not (found.count if isinstance(found, Numbers) else len(found.counts)):
        return None
    if isinstance(found, Counts):
        return statistics.most_frequent_value(found)
    if value == "mode":
        return statistics.most_frequent(found)
    return statistics.mean(found) if value == "mean" else statistics.median(found)


def remember(step: Any, cleaned: Cleaned) -> Cleaned:
    """Keeps the columns that a step is the first to learn from, as they are before it."""
    learned = dict(cleaned.learned)
    for name in step.head.names:
        if step.learns and step.starts[name] == step.head.index:
            column = cleaned.table[name]
            known = ~null_rows(column)
            if name in cleaned.filled:
                known &= ~cleaned.filled[name].rows
            learned[step.head.index, name] = Learned(column, known)
    return replace(cleaned, learned=learned)


@dataclass(frozen=True)
class ForwardFill:
    """Fills by the last value before, in the order of the source. A gap that nothing stands before stays."""

    head: Head
    carried: tuple[Mapping[str, pa.Array | None], ...] | None = None
    """For each chunk and column the last value before the chunk, as an array of one; None where there is none."""

    @property
    def pending(self) -> bool:
        return self.carried is None

    def survey(self, cleaned: Cleaned) -> dict[str, pa.Array | None]:
        return {name: _last(cleaned.table[name]) for name in self.head.names}

    def fit(self, partials: Iterable[Mapping[str, pa.Array | None]]) -> Self:
        carried: list[dict[str, pa.Array | None]] = []
        last: dict[str, pa.Array | None] = dict.fromkeys(self.head.names)
        for partial in partials:
            carried.append(dict(last))
            last.update({name: value for name, value in partial.items() if value is not None})
        return replace(self, carried=tuple(carried))

    def apply(self, cleaned: Cleaned) -> tuple[Cleaned, Mask]:
        assert self.carried is not None
        touched = np.zeros(len(cleaned.rows), dtype=bool)
        for name in self.head.names:
            column, missing = plain(cleaned.table[name]), null_rows(cleaned.table[name])
            source = np.maximum.accumulate(np.where(missing, -1, np.arange(len(missing))))
            last = self.carried[cleaned.chunk][name]
            if last is not None:
                source[source < 0] = len(missing)  # its place behind the chunk's own values
                column = pa.chunked_array([*column.chunks, last], column.type)
            filling = missing & (source >= 0)
            rows = np.where(source < 0, np.arange(len(missing)), source)
            cleaned = cleaned.put(
                name, column.take(pa.array(rows)) if filling.any() else plain(cleaned.table[name])
            )
            touched |= filling
        return cleaned, touched

    def schema_after(self, schema: pa.Schema) -> pa.Schema:
        for name in self.head.names:
            schema = with_type(schema, name, plain_type(schema.field(name).type))
        return schema


def _last(column: pa.ChunkedArray) -> pa.Array | None:
    known, column = np.flatnonzero(~null_rows(column)), plain(column)
    if not len(known):
        return None
    taken = column.take(pa.array(known[-1:]))  # a slice would be pickled with all its chunk
    return taken.chunk(0) if taken.num_chunks == 1 else pa.concat_arrays(taken.chunks)
