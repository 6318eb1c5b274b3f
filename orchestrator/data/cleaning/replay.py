"""Clean raw rows for prediction as the training rows were cleaned. Imports: numpy, pyarrow.

What a fitted program does to values (casts, mappings, clips and fills, in their order) is kept as plain data,
which JSON can hold, and is saved with the model. Rows are never dropped, and never filled forward.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa

from orchestrator.data.cleaning.fills import GapFill, fill_column, filled_type
from orchestrator.data.cleaning.outliers import Clip, clip_column
from orchestrator.data.cleaning.program import Program
from orchestrator.data.cleaning.step import plain_type
from orchestrator.data.cleaning.values import CastColumns, MapColumn, cast_column, map_column
from orchestrator.data.columns import is_number, null_rows
from orchestrator.errors import DataError, SourceError
from orchestrator.spec.data import Map

ValueChange = Mapping[str, Any]
"""`do` (cast, map, clip or fill), the `column`, and what it needs to be done again."""


def value_changes(program: Program, features: Collection[str]) -> list[dict[str, Any]]:
    """What the program does to the values of the features, in order; the program is fitted, or refitted."""
    changes: list[dict[str, Any]] = []
    for step in program.refitted or program.steps:
        for name in step.head.names:
            if name not in features:
                continue
            if isinstance(step, CastColumns):
                rule = step.rule
                changes.append({"do": "cast", "column": name, "to": rule.to, "format": rule.format,
                                "errors": rule.errors})  # fmt: skip
            elif isinstance(step, MapColumn):
                changes.append({"do": "map", "column": name, "values": dict(step.rule.values),
                                "default": step.rule.default})  # fmt: skip
            elif isinstance(step, Clip):
                low, high = (bound if math.isfinite(bound) else None for bound in (step.bounds or {})[name])
                changes.append({"do": "clip", "column": name, "low": low, "high": high})
            elif isinstance(step, GapFill):
                changes.append({"do": "fill", "column": name, "value": (step.values or {})[name]})
    return changes


def replay(table: pa.Table, changes: Sequence[ValueChange]) -> pa.Table:
    """Raw rows with the changes made. Raises DataError where a value cannot be cast or is in no mapping, as it
    failed in training."""
    for change in changes:
        place = table.schema.get_field_index(change["column"])
        table = table.set_column(place, change["column"], _changed(table.column(place), change))
    return table


def _changed(column: pa.ChunkedArray, change: ValueChange) -> pa.ChunkedArray:
    name = change["column"]
    if pa.types.is_null(column.type) and change["do"] in ("map", "clip"):
        return column  # nulls stay
    if change["do"] == "cast":
        made, unfit = cast_column(column, change["to"], change["format"])
        if unfit.any() and change["errors"] == "fail":
            row = int(unfit.argmax())
            raise DataError(f"row {row}: column '{name}' holds {column[row].as_py()!r}, no {change['to']}")
        return made
    if change["do"] == "map":
        rule = Map(kind="map", column=name, values=change["values"], default=change["default"])
        try:
            made, _, unlisted = map_column(column, rule, "data.clean")
        except SourceError as error:
            raise DataError(error.reason, "send values as the training data held them") from error
        if unlisted.any() and change["default"] == "fail":
            row = int(unlisted.argmax())
            raise DataError(
                f"row {row}: column '{name}' holds {column[row].as_py()!r}, which data.clean maps not"
            )
        return made
    if change["do"] == "clip":
        if not is_number(column.type):
            return column  # for the pipeline to refuse
        low, high = change["low"], change["high"]
        return clip_column(column, (-math.inf if low is None else low, math.inf if high is None else high))[0]
    value, missing = change["value"], null_rows(column)
    kind = pa.scalar(value).type if pa.types.is_null(column.type) else plain_type(column.type)
    return fill_column(column, missing, value, filled_type(kind, value))
