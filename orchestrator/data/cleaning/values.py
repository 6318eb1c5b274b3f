"""Steps that change values one by one: casts and mappings. Imports: numpy, pyarrow."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.cleaning.cleaned import Cleaned, Mask
from orchestrator.data.cleaning.step import Head, plain, plain_type, with_type
from orchestrator.data.columns import is_number, is_text, null_rows
from orchestrator.errors import SourceError
from orchestrator.spec.data import Cast, Map

CAST_TYPES: dict[str, pa.DataType] = {
    "int": pa.int64(),
    "float": pa.float64(),
    "string": pa.string(),
    "bool": pa.bool_(),
    "date": pa.date32(),
    "timestamp": pa.timestamp("us"),
}
_PATTERNS = {
    "int": r"^-?[0-9]+$",
    "float": r"^-?([0-9]+\.?[0-9]*|\.[0-9]+)(e[-+]?[0-9]+)?$|^-?(inf|infinity|nan)$",
    "bool": r"^(true|false|1|0)$",
    "date": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}$",
    "timestamp": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([ T][0-9:.]*)?$",
}
"""What texts look like that may be values of a type."""
_BLOCK = 256


def is_castable(kind: pa.DataType, to: str) -> bool:
    """Whether columns of an Arrow type can become `to`: numbers and texts each other, texts and times each
    other."""
    kind = plain_type(kind)
    time = pa.types.is_date(kind) or pa.types.is_timestamp(kind)
    if is_text(kind) or pa.types.is_null(kind):
        return True
    return (
        is_number(kind) if to in ("int", "float", "bool") else (time or (to == "string" and is_number(kind)))
    )


@dataclass(frozen=True)
class CastColumns:
    """Gives columns another type."""

    head: Head
    rule: Cast

    def apply(self, cleaned: Cleaned) -> tuple[Cleaned, Mask]:
        touched = np.zeros(len(cleaned.rows), dtype=bool)
        for name in self.head.names:
            column, unfit = cast_column(cleaned.table[name], self.rule.to, self.rule.format)
            if unfit.any() and self.rule.errors == "fail":
                row = int(unfit.argmax())
                shown = repr(cleaned.table[name][row].as_py())
                place = f"row {cleaned.rows[row]}" + (f" of chunk {cleaned.chunk}" if cleaned.chunk else "")
                written = f" written as '{self.rule.format}'" if self.rule.format else ""
                raise SourceError(
                    f"{self.head.place}: column '{name}' holds {shown[:80]} in {place}, which is no "
                    f"{self.rule.to}{written}; {int(unfit.sum())} values of the chunk are not",
                    "write errors: null, to make nulls of such values, or mend the source",
                )
            cleaned = cleaned.put(name, column)
            touched |= unfit
        return cleaned, touched

    def schema_after(self, schema: pa.Schema) -> pa.Schema:
        for name in self.head.names:
            schema = with_type(schema, name, CAST_TYPES[self.rule.to])
        return schema


def cast_column(column: pa.ChunkedArray, to: str, written: str | None = None) -> tuple[pa.ChunkedArray, Mask]:
    """The column in another type, and where a value did not fit (null there). Nulls and NaN become null."""
    kind = CAST_TYPES[to]
    missing = null_rows(column)
    column = plain(column)
    if pa.types.is_floating(column.type) and to != "float":
        column = pc.if_else(pa.array(missing), pa.scalar(None, column.type), column)
    if is_text(column.type):
        column = column.cast(pa.large_string())
        if to != "string":
            column = pc.utf8_trim_whitespace(column)
        if to in _PATTERNS and written is None:
            # So that few values are left to be tried one by one.
            column = _only(column, pc.match_substring_regex(column, _PATTERNS[to], ignore_case=True))
    elif to == "int" and pa.types.is_floating(column.type):
        # Arrow refuses a column for one fraction. Below 2⁶³ in size, every whole float64 is an int64.
        column = column.cast(pa.float64())
        fits = pc.and_(pc.equal(pc.floor(column), column), pc.less(pc.abs(column), 2.0**63))
        column = _only(column, fits)
    elif to == "bool" and is_number(column.type) and not pa.types.is_boolean(column.type):
        column = column.cast(pa.float64(), safe=False)
        column = _only(column, pc.is_in(column, value_set=pa.array([0.0, 1.0])))
    made = _converted(column, kind, to, written)
    if isinstance(made, pa.Array):
        made = pa.chunked_array([made])
    unfit = np.asarray(pc.is_null(made), dtype=bool) & ~missing
    return made, unfit


def _converted(column: pa.ChunkedArray, kind: pa.DataType, to: str, written: str | None) -> pa.ChunkedArray:
    if written is not None and is_text(column.type):
        return pc.strptime(column, format=written, unit="us", error_is_null=True).cast(kind, safe=False)
    # A float is as near as it gets to a large number, and a date is the day of a time.
    safe = not (to == "float" and is_number(column.type)) and not pa.types.is_timestamp(column.type)
    try:
        return column.cast(kind, safe=safe)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        distinct = pc.unique(column)
        made = _one_by_one(distinct, lambda values: values.cast(kind, safe=safe), kind)
        return made.take(pc.index_in(column, value_set=distinct))


def _only(column: pa.ChunkedArray, rows: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.if_else(rows, column, pa.scalar(None, column.type))


def _one_by_one(values: pa.Array, convert: Callable[[Any], Any], kind: pa.DataType) -> pa.Array:
    """Each value converted, null where that fails; blocks that convert as a whole are done at once."""
    pieces = [pa.array([], kind)]
    for start in range(0, len(values), _BLOCK):
        block = values.slice(start, _BLOCK)
        try:
            pieces.append(convert(block))
        except pa.ArrowInvalid:
            pieces += [_attempt(block.slice(row, 1), convert, kind) for row in range(len(block))]
    return pa.concat_arrays(pieces)


def _attempt(value: pa.Array, convert: Callable[[Any], Any], kind: pa.DataType) -> pa.Array:
    try:
        return convert(value)
    except pa.ArrowInvalid:
        return pa.nulls(1, kind)


@dataclass(frozen=True)
class MapColumn:
    """Replaces the values of a column by others."""

    head: Head
    rule: Map

    def apply(self, cleaned: Cleaned) -> tuple[Cleaned, Mask]:
        name = self.rule.column
        column, touched, unlisted = map_column(cleaned.table[name], self.rule, self.head.place)
        if unlisted.any() and self.rule.default == "fail":
            row = int(unlisted.argmax())
            raise SourceError(
                f"{self.head.place}: column '{name}' holds {cleaned.table[name][row].as_py()!r}, which "
                f"values does not list; {int(unlisted.sum())} rows of the chunk hold such a value",
                "list it, or write default: keep, null or a value",
            )
        return cleaned.put(name, column), touched

    def schema_after(self, schema: pa.Schema) -> pa.Schema:
        kind = mapped_values(self.rule, schema.field(self.rule.column).type, self.head.place).type
        return with_type(schema, self.rule.column, kind)


def map_column(column: pa.ChunkedArray, rule: Map, place: str) -> tuple[pa.ChunkedArray, Mask, Mask]:
    """The column with other values, which rows were given one, and which hold a value that is not listed.
    Nulls and NaN stay."""
    made = mapped_values(rule, column.type, place)
    missing = null_rows(column)
    column = plain(column)
    listed = pc.fill_null(pc.index_in(column, value_set=_keys(rule, column.type, place)), -1)
    found = np.asarray(listed, dtype=np.int64)
    unlisted = (found < 0) & ~missing
    if rule.default == "keep":
        values = pa.chunked_array([made.take(pa.array(found, mask=found < 0))], made.type)
        return pc.if_else(pa.array(found >= 0), values, column.cast(made.type)), found >= 0, unlisted
    index = np.where(unlisted, len(made) - 1, found)
    mapped = pa.chunked_array([made.take(pa.array(index, mask=missing))], made.type)
    return mapped, (found >= 0) | (unlisted & (rule.default != "fail")), unlisted


def mapped_values(rule: Map, kind: pa.DataType, place: str) -> pa.Array:
    """What the keys become, in order, and then the default (null where there is none).

    Raises SourceError where kept values and others are of different types.
    """
    values = [*rule.values.values(), None if rule.default in ("fail", "keep") else rule.default]
    _keys(rule, plain_type(kind), place)
    if rule.default != "keep":
        return pa.array(values)
    try:
        return pa.array(values, plain_type(kind))
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
        raise SourceError(
            f"{place}: 'default: keep' keeps values of the type {plain_type(kind)} beside others, and these do "
            f"not fit ({error})",
            "write default: null, a value, or leave it out to fail on values that are not listed",
        ) from error


def _keys(rule: Map, kind: pa.DataType, place: str) -> pa.Array:
    try:
        return pa.array(list(rule.values)).cast(kind)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise SourceError(
            f"{place}: the keys of values do not fit the column '{rule.column}' of the type {kind} ({error})",
            "write values as the column holds them, or cast it by a step before",
        ) from error
