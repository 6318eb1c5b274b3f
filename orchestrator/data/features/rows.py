"""Raw rows in the forms a user has them, as a table. Imports: numpy, pyarrow."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.data.columns import unknown_column
from orchestrator.data.sources.read import to_table
from orchestrator.errors import DataError


def rows_table(rows: Any, names: Sequence[str]) -> pa.Table:
    """These columns of a table, a DataFrame, a dict of columns or a list of row dicts; what else the rows hold is
    ignored. Raises DataError where they are none of these, lack a column, or differ in length."""
    if are_dicts(rows):
        known = list(dict.fromkeys(str(name) for row in rows for name in row))
        rows = {name: [row.get(name) for row in rows] for name in names if name in known}
    elif isinstance(rows, pa.Table | pa.RecordBatch):
        known = list(rows.schema.names)
    elif isinstance(rows, Mapping) or _is_frame(rows):
        known = [str(name) for name in rows]
    else:
        raise DataError(
            f"rows are a {type(rows).__name__}",
            "give a table, a DataFrame, a dict of columns or an array",
        )
    for name in names:
        if name not in known:
            raise DataError(f"the rows have no column '{name}'", unknown_column(name, known))
    try:
        if isinstance(rows, pa.Table | pa.RecordBatch):
            return to_table(rows.select(list(names)))
        return to_table({name: rows[name] for name in names})
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"the rows do not make a table: {error}") from error


def named_columns(rows: object, names: Sequence[str], *, strings: bool) -> object:
    """Rows without names, an array or lists of values, as a dict of columns in this order; others as they are.

    `strings`: not all columns are numbers. Raises DataError where they do not have one value per column.
    """
    if isinstance(rows, list) and not are_dicts(rows):
        rows = _rectangle(rows, strings=strings)
    if not isinstance(rows, np.ndarray):
        return rows
    kinds = "biufOU" if strings else "biufO"
    if rows.ndim != 2 or rows.shape[1] != len(names) or rows.dtype.kind not in kinds:
        raise DataError(
            f"rows have the shape {rows.shape} ({rows.dtype}), not (rows, {len(names)}) of "
            f"{'values' if strings else 'numbers'}",
            f"give the columns in this order: {', '.join(names)}",
        )
    return {name: rows[:, i] for i, name in enumerate(names)}


def are_dicts(rows: Any) -> bool:
    return isinstance(rows, list) and bool(rows) and all(isinstance(row, Mapping) for row in rows)


def _is_frame(rows: Any) -> bool:
    pandas = sys.modules.get("pandas")  # a DataFrame cannot come from anywhere else
    return pandas is not None and isinstance(rows, pandas.DataFrame)


def _rectangle(rows: list[Any], *, strings: bool) -> NDArray[Any]:
    try:
        if not strings:
            return np.asarray(rows, dtype=np.float64)
        if not all(isinstance(row, list | tuple | np.ndarray) for row in rows):
            raise TypeError("a row is a single value")
        values = np.empty((len(rows), len(rows[0]) if rows else 0), dtype=object)
        values[:] = rows
        return values
    except (TypeError, ValueError) as error:
        held = "values" if strings else "numbers"
        raise DataError(f"rows must be lists of {held}, all of one length: {error}") from error
