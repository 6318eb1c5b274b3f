"""Clean a raw table, step by step as the spec lists them. Imports: numpy, pyarrow.

A mean or median that fills gaps must not look at validation and test rows, yet cleaning comes before the
split. So `clean` fills provisionally, remembers where, and `refit_fills` fills again from the training rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.data.columns import (
    array_values,
    image_bytes,
    is_array,
    is_encoded_image,
    is_list,
    is_number,
    null_rows,
    numbers,
    require_columns,
)
from orchestrator.errors import SourceError
from orchestrator.spec.data import DropDuplicates, DropNulls, DropOutliers, FillNulls

Fill = float | int | str
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Filled:
    """Gaps of a column that were filled: by what, and in which rows of the cleaned table."""

    value: Fill
    rows: Mask


@dataclass(frozen=True)
class Cleaned:
    """A cleaned table; `rows` are its rows' numbers in the source; `report` has one entry per step."""

    table: pa.Table
    rows: NDArray[np.int64]
    filled: dict[str, Filled] = field(default_factory=dict)
    report: tuple[dict[str, Any], ...] = ()

    def keep(self, mask: Mask) -> Cleaned:
        """Only the rows where the mask is true."""
        filled = {name: Filled(fill.value, fill.rows[mask]) for name, fill in self.filled.items()}
        return Cleaned(self.table.filter(pa.array(mask)), self.rows[mask], filled, self.report)


def clean(
    table: pa.Table,
    steps: Sequence[DropNulls | DropDuplicates | DropOutliers | FillNulls],
    *,
    features: Sequence[str],
    target: str | None,
) -> Cleaned:
    """Apply the steps in order. A step without columns sees features and target; one that looks at numbers
    sees the numeric features. Raises SourceError for unknown or unfit columns, and where no row is left."""
    cleaned = Cleaned(table, np.arange(table.num_rows, dtype=np.int64))
    for index, step in enumerate(steps):
        place = f"data.clean[{index}] ({step.kind})"
        require_columns(table.column_names, step.columns or [], f"{place}.columns")
        before = cleaned.table.num_rows
        if isinstance(step, FillNulls):
            cleaned, touched, names = _fill_nulls(cleaned, step, features, target, place)
        else:
            names = _columns(cleaned.table, step, features, target, place)
            cleaned = cleaned.keep(_ROWS_KEPT[step.kind](cleaned.table, names, step))
            touched = before - cleaned.table.num_rows
        entry = {"step": step.kind, "columns": list(step.columns or []), "rows": touched}
        cleaned = Cleaned(cleaned.table, cleaned.rows, cleaned.filled, (*cleaned.report, entry))
        if not cleaned.table.num_rows:
            shown = ", ".join(names[:5])
            raise SourceError(
                f"{place} dropped all {before} rows that were left (columns {shown})",
                "name fewer columns in the step, or put fill_nulls before it",
            )
    return cleaned


def refit_fills(cleaned: Cleaned, train: NDArray[np.int64]) -> tuple[pa.Table, dict[str, Fill]]:
    """The table with gaps filled from its training rows, and the value that each column's gaps take."""
    table, values = cleaned.table, {}
    for name, fill in cleaned.filled.items():
        value = fill.value
        if value in ("mean", "median"):
            known = numbers(table[name])[train][~fill.rows[train]]
            if not len(known):
                raise SourceError(
                    f"data.clean: column '{name}' is null in every training row, so it has no {value}",
                    "leave it out by data.features, or fill it by a number",
                )
            value = float(np.mean(known) if value == "mean" else np.median(known))
            table = _put(table, name, fill.rows, value)
        values[name] = value
    return table, values


def _columns(
    table: pa.Table,
    step: DropNulls | DropDuplicates | DropOutliers,
    features: Sequence[str],
    target: str | None,
    place: str,
) -> list[str]:
    if not isinstance(step, DropOutliers):
        return step.columns or [*features, *([target] if target else [])]
    for name in step.columns or []:
        _require_number(table, name, place)
    return step.columns or [name for name in features if is_number(table.schema.field(name).type)]


def _drop_nulls(table: pa.Table, names: Sequence[str], step: DropNulls) -> Mask:  # noqa: ARG001
    keep = np.ones(table.num_rows, dtype=bool)
    for name in names:
        keep &= ~null_rows(table[name])
    return keep


def _drop_duplicates(table: pa.Table, names: Sequence[str], step: DropDuplicates) -> Mask:  # noqa: ARG001
    groups = np.zeros(table.num_rows, dtype=np.int64)
    for name in names:
        codes = _codes(table[name])
        # Renumbered after each column, so that the product never overflows.
        groups = np.unique(groups * (int(codes.max()) + 1) + codes, return_inverse=True)[1]
    keep = np.zeros(table.num_rows, dtype=bool)
    keep[np.unique(groups, return_index=True)[1]] = True
    return keep


def _drop_outliers(table: pa.Table, names: Sequence[str], step: DropOutliers) -> Mask:
    keep = np.ones(table.num_rows, dtype=bool)
    for name in names:
        values = numbers(table[name])
        known = values[np.isfinite(values)]
        spread = known.std() if len(known) else 0.0
        if spread > 0:
            keep &= ~(np.abs(values - known.mean()) > step.z * spread)  # a NaN stays: it is no outlier
    return keep


_ROWS_KEPT: dict[str, Any] = {
    "drop_nulls": _drop_nulls,
    "drop_duplicates": _drop_duplicates,
    "drop_outliers": _drop_outliers,
}


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Equal numbers for equal values; nulls equal each other, and so do NaN."""
    if is_array(column.type) and not column.null_count:
        with contextlib.suppress(ValueError):  # lists of labels differ in length
            values = np.ascontiguousarray(array_values(column)).reshape(len(column), -1)
            rows = values.view(np.dtype((np.void, values.shape[1] * values.dtype.itemsize))).ravel()
            return np.asarray(np.unique(rows, return_inverse=True)[1], dtype=np.int64)
    if is_list(column.type):
        column = pa.chunked_array([pa.array([repr(value) for value in column.to_pylist()], pa.string())])
    if is_encoded_image(column.type):
        column = image_bytes(column)
    try:
        encoded = pc.dictionary_encode(column.combine_chunks(), null_encoding="encode")
    except pa.ArrowNotImplementedError as error:
        raise SourceError(
            f"data.clean (drop_duplicates) cannot compare values of the type {column.type}",
            "name other columns in the step",
        ) from error
    return np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)


def _fill_nulls(
    cleaned: Cleaned, step: FillNulls, features: Sequence[str], target: str | None, place: str
) -> tuple[Cleaned, int, list[str]]:
    table, filled = cleaned.table, dict(cleaned.filled)
    statistic = step.value in ("mean", "median")
    text = isinstance(step.value, str) and not statistic
    names = step.columns or [
        name for name in features if not text and is_number(table.schema.field(name).type)
    ]
    touched = np.zeros(table.num_rows, dtype=bool)
    for name in names:
        if text != (not is_number(table.schema.field(name).type)):
            _require_number(table, name, place)
            raise SourceError(f"{place}: '{name}' holds numbers, not '{step.value}'", "fill it by a number")
        if statistic and name == target:
            raise SourceError(
                f"{place}: a made-up {step.value} is no value to learn",
                f"use drop_nulls for the target '{target}'",
            )
        missing = null_rows(table[name])
        value = step.value
        if statistic:
            known = numbers(table[name])[~missing]
            value = float(np.mean(known) if step.value == "mean" else np.median(known)) if len(known) else 0.0
        if missing.any():
            table = _put(table, name, missing, value)
        if name not in filled:
            filled[name] = Filled(step.value, missing)
        touched |= missing
    return Cleaned(table, cleaned.rows, filled, cleaned.report), int(touched.sum()), list(names)


def _put(table: pa.Table, name: str, rows: Mask, value: Fill) -> pa.Table:
    column = table[name]
    if isinstance(value, float) and not pa.types.is_floating(column.type):
        column = column.cast(pa.float64(), safe=False)
    column = pc.if_else(pa.array(rows), pa.scalar(value).cast(column.type), column)
    return table.set_column(table.column_names.index(name), name, column)


def _require_number(table: pa.Table, name: str, place: str) -> None:
    kind = table.schema.field(name).type
    if not is_number(kind):
        raise SourceError(f"{place}: column '{name}' has the type {kind}", "name columns of numbers")
