"""Compile the cleaning steps of a spec against the columns of a source. Imports: pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from orchestrator.data.cleaning.condition import rows_meeting
from orchestrator.data.cleaning.fills import ForwardFill, GapFill, filled_type
from orchestrator.data.cleaning.outliers import Clip, OutlierRows, find_bounds
from orchestrator.data.cleaning.program import AnyStep, Learning, Program
from orchestrator.data.cleaning.rows import DuplicateRows, FilteredRows, NullRows
from orchestrator.data.cleaning.step import Head, plain_type
from orchestrator.data.cleaning.values import CastColumns, MapColumn, is_castable
from orchestrator.data.columns import is_number, is_text, require_columns
from orchestrator.data.hashing import is_hashable
from orchestrator.errors import SourceError
from orchestrator.spec.data import (
    Cast,
    CleanStep,
    ClipOutliers,
    DropDuplicates,
    DropNulls,
    DropOutliers,
    FillNulls,
    Filter,
    Map,
)
from orchestrator.spec.data.expression import parse_condition


def compile_cleaning(
    steps: Sequence[CleanStep], schema: pa.Schema, features: Sequence[str], target: str | None
) -> Program:
    """The steps of `data.clean` for tables of a schema; they may look at columns that are no features.

    The schema's types should be those of `read_source`; the program's own `schema` tells what becomes of them.
    Raises SourceError for columns that do not exist or do not fit their step.
    """
    require_columns(schema.names, features, "data.features")
    require_columns(schema.names, [target] if target else [], "data.target")
    compiler = _Compiler(schema, tuple(features), target)
    return Program(schema, tuple(compiler.add(index, step) for index, step in enumerate(steps)))


@dataclass
class _Compiler:
    schema: pa.Schema
    """The columns as the steps so far leave them."""
    features: tuple[str, ...]
    target: str | None
    starts: dict[str, int] = field(default_factory=dict)
    """Of each column that a step learns from, the first such step since the column was cast or mapped."""
    provisional: set[str] = field(default_factory=set)
    """The columns that hold learned values."""

    def add(self, index: int, step: CleanStep) -> AnyStep:
        head = Head(index, step.kind, (), tuple(step.columns or ()))
        require_columns(self.schema.names, head.named, f"{head.place}.{_field_of_columns(step)}")
        names = head.named or self._default_columns(step)
        compiled = self._compiled(Head(index, step.kind, names, head.named), step)
        if isinstance(compiled, CastColumns | MapColumn):
            for name in names:
                self.starts.pop(name, None)
        if isinstance(compiled, Learning) and compiled.learns:
            self.provisional.update(names)
        self.schema = compiled.schema_after(self.schema)
        return compiled

    def _default_columns(self, step: CleanStep) -> tuple[str, ...]:
        if isinstance(step, DropNulls | DropDuplicates):
            return (*self.features, *([self.target] if self.target else []))
        kinds = {name: self.schema.field(name).type for name in self.features}
        if isinstance(step, ClipOutliers):
            return tuple(name for name, kind in kinds.items() if _is_quantity(kind))
        text = isinstance(step, FillNulls) and step.value in ("mode", "forward")
        return tuple(name for name, kind in kinds.items() if is_number(kind) or (text and is_text(kind)))

    def _compiled(self, head: Head, step: CleanStep) -> AnyStep:
        match step:
            case DropNulls():
                return NullRows(head)
            case DropDuplicates():
                for name in head.names:
                    self._require(head, name, fits=is_hashable(self._type(name)), wanted="can be compared")
                return DuplicateRows(head)
            case DropOutliers():
                for name in head.names:
                    self._require(head, name, fits=is_number(self._type(name)), wanted="hold numbers")
                return OutlierRows(head, step)
            case ClipOutliers():
                return self._clip(head, step)
            case FillNulls():
                return self._fill(head, step)
            case Filter():
                condition = parse_condition(step.where)
                named = pa.schema([self.schema.field(name) for name in head.names])
                rows_meeting(named.empty_table(), condition, f"{head.place}.where")  # do the types fit?
                return FilteredRows(head, condition)
            case Cast():
                for name in head.names:
                    fits = is_castable(self._type(name), step.to)
                    self._require(head, name, fits=fits, wanted=f"can be cast to {step.to}")
                return CastColumns(head, step)
            case Map():
                return MapColumn(head, step)

    def _clip(self, head: Head, step: ClipOutliers) -> Clip:
        for name in head.names:
            self._require(head, name, fits=_is_quantity(self._type(name)), wanted="hold numbers")
        whole = frozenset(name for name in head.names if pa.types.is_integer(self._type(name)))
        if step.method != "fixed":
            return Clip(head, step, whole, self._starts(head))
        return Clip(head, step, whole, {}).with_bounds(dict.fromkeys(head.names, find_bounds(step, None)))

    def _fill(self, head: Head, step: FillNulls) -> GapFill | ForwardFill:
        value = step.value
        learns = value in ("mean", "median", "mode")
        for name in head.names:
            self._require_fill(head, name, step)
        if (learns or value == "forward") and self.target in head.names:
            raise SourceError(
                f"{head.place}: a made-up value ({value}) is no value to learn",
                f"use drop_nulls for the target '{self.target}'",
            )
        if value == "forward":
            return ForwardFill(head)
        if learns:
            return GapFill(head, value, self._starts(head))
        return GapFill(head, value, {}, dict.fromkeys(head.names, value))

    def _require_fill(self, head: Head, name: str, step: FillNulls) -> None:
        value, kind = step.value, self._type(name)
        if value == "forward":
            if name in self.provisional:
                raise SourceError(
                    f"{head.place}: column '{name}' is clipped or filled by an earlier step, whose values are "
                    "only known with the training rows",
                    "put the forward fill before that step",
                )
            return
        text = isinstance(value, str) and value not in ("mean", "median", "mode")
        if text and is_number(kind):
            raise SourceError(f"{head.place}: '{name}' holds numbers, not '{value}'", "fill it by a number")
        if text or (value == "mode" and is_text(kind)):
            self._require(head, name, fits=is_text(kind), wanted="hold text")
            return
        self._require(head, name, fits=is_number(kind), wanted="hold numbers")
        if not isinstance(value, str):
            try:
                pa.scalar(value).cast(filled_type(plain_type(kind), value))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise SourceError(
                    f"{head.place}: {value} does not fit column '{name}' of the type {kind} ({error})",
                    "fill it by another number, or cast the column by a step before",
                ) from error

    def _starts(self, head: Head) -> dict[str, int]:
        return {name: self.starts.setdefault(name, head.index) for name in head.names}

    def _type(self, name: str) -> pa.DataType:
        return self.schema.field(name).type

    def _require(self, head: Head, name: str, *, fits: bool, wanted: str) -> None:
        if not fits:
            raise SourceError(
                f"{head.place}: column '{name}' has the type {self._type(name)}",
                f"name columns that {wanted}",
            )


def _is_quantity(kind: pa.DataType) -> bool:
    """Numbers but no truth values."""
    return is_number(kind) and not pa.types.is_boolean(kind)


def _field_of_columns(step: CleanStep) -> str:
    return {"filter": "where", "map": "column"}.get(step.kind, "columns")
