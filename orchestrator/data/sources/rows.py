"""Rows in the forms that Python code has them in, as a pyarrow Table. Imports: numpy, pyarrow."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa


def to_table(rows: object) -> pa.Table:
    """A pyarrow Table of a Table, a pandas DataFrame, a dict of arrays or a list of row dicts.

    Arrays of two or more dimensions become fixed-shape tensor columns. Raises TypeError for anything else,
    ValueError and ArrowException for columns that do not fit together.
    """
    if isinstance(rows, pa.Table):
        return rows
    if isinstance(rows, pa.RecordBatch):
        return pa.Table.from_batches([rows])
    pandas = sys.modules.get("pandas")  # a DataFrame cannot come from anywhere else
    if pandas is not None and isinstance(rows, pandas.DataFrame):
        rows = {name: rows[name] for name in rows.columns}
    if isinstance(rows, Mapping):
        return pa.table({str(name): _column(values) for name, values in rows.items()})
    if isinstance(rows, list) and rows and all(isinstance(row, Mapping) for row in rows):
        return pa.Table.from_pylist([dict(row) for row in rows])
    raise TypeError(f"a {type(rows).__name__} is neither a table, a DataFrame nor a dict of arrays")


def _column(values: Any) -> Any:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if isinstance(values, list) and values and isinstance(values[0], np.ndarray):
        values = np.stack(values)
    array = values if isinstance(values, list | tuple) else np.asarray(values)
    if isinstance(array, np.ndarray) and array.dtype == object and array.size:
        if isinstance(array.flat[0], np.ndarray):  # a DataFrame holds arrays as objects
            array = np.stack(list(array))
        else:
            return pa.array(array, from_pandas=True)
    if isinstance(array, np.ndarray) and array.ndim > 1:
        return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(array))
    return pa.array(array)
