"""Describe the feature columns of raw rows, and turn them into a fixed-width array.

The same code serves preparation and prediction. Imports: numpy, pyarrow.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NoReturn

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.data.columns import (
    array_values,
    is_array,
    is_encoded_image,
    is_number,
    is_text,
    null_rows,
    numbers,
)
from orchestrator.data.features.plan import plan_table
from orchestrator.errors import SourceError
from orchestrator.spec.data import DataSection


@dataclass(frozen=True)
class RawSchema:
    """What raw rows look like.

    `array`: one column of arrays, each of `shape` (height, width), (height, width, channels) or (length,).
    `encoded_image`: one column of image files' bytes. `table`: columns of numbers, or of strings that a transform
    encodes, in this order. `text`: one column of strings, of which a row takes `shape` (tokens,).
    `dtypes` are numpy's names, `bytes` for encoded images, `str` for strings; one per column.
    """

    kind: Literal["array", "encoded_image", "table", "text"]
    columns: tuple[str, ...]
    dtypes: tuple[str, ...]
    shape: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> RawSchema:
        return cls(
            value["kind"],
            tuple(value["columns"]),
            tuple(value["dtypes"]),
            tuple(int(n) for n in value["shape"]),
        )


def describe_features(table: pa.Table, section: DataSection) -> RawSchema:
    """The feature columns of a raw table: those the section names, else all but the target.

    Raises SourceError unless they are one image or array column, or columns of numbers and of strings that a
    transform encodes; with `data.text`, unless they are one column of strings.
    """
    names = section.features or [name for name in table.column_names if name != section.target]
    if not names:
        raise SourceError("the source has no column but the target", "features are needed to learn from")
    kinds = {name: table.schema.field(name).type for name in names}
    if section.text is not None:
        return _describe_text(kinds, section.text.length)
    special = [name for name, kind in kinds.items() if is_encoded_image(kind) or is_array(kind)]
    if len(names) == 1 and special:
        name = names[0]
        if is_encoded_image(kinds[name]):
            return RawSchema("encoded_image", (name,), ("bytes",))
        return _describe_array(table[name], name)
    if special:
        raise SourceError(
            f"column '{special[0]}' holds images or arrays, and cannot be used together with others",
            f"write data.features: [{special[0]}], or name columns of numbers or strings only",
        )
    dtypes = {name: dtype_name(kind) for name, kind in kinds.items()}
    encoders = plan_table(section.transforms, dtypes).encoders
    unfit = [name for name, kind in kinds.items() if not is_number(kind) and name not in encoders]
    if unfit:
        _refuse(unfit, kinds)
    return RawSchema("table", tuple(names), tuple(dtypes.values()))


def _refuse(unfit: list[str], kinds: dict[str, Any]) -> NoReturn:
    """Raises SourceError that names what can be done with columns that are neither numbers nor encoded."""
    rest = [name for name in kinds if name not in unfit]
    shown = f"data.features: [{', '.join(rest[:8])}{', …' if len(rest) > 8 else ''}]"
    mends = [f"leave them out: {shown}" if rest else "name other columns by data.features"]
    texts = [name for name in unfit if is_text(kinds[name])]
    if texts:
        one = f" with data.features: [{texts[0]}]" if len(kinds) > 1 else ""
        mends.append(
            f"encode them by data.transforms: [{{kind: one_hot, columns: [{', '.join(texts[:5])}]}}]"
        )
        mends.append(f"or read '{texts[0]}' as text by data.text{one}")
    raise SourceError(
        "feature columns must be numbers, or strings that data.transforms encodes (or be one column of encoded "
        "images or of arrays): " + ", ".join(f"'{name}' is {kinds[name]}" for name in unfit[:5]),
        ", ".join(mends),
    )


def stored_shape(schema: RawSchema, image_size: tuple[int, int], mode: str) -> tuple[int, ...]:
    """Shape of one encoded row: (height, width, channels) for images, else (columns,) or (tokens,). Encoders of a
    table's columns may make it wider."""
    if schema.kind == "encoded_image":
        return (*image_size, 3 if mode == "rgb" else 1)
    if schema.kind == "table":
        return (len(schema.columns),)
    return (*schema.shape, 1) if len(schema.shape) == 2 else schema.shape


def model_shape(stored: tuple[int, ...]) -> tuple[int, ...]:
    """What a model takes of a row so stored: (channels, height, width), (columns,) or (tokens,)."""
    return (stored[2], stored[0], stored[1]) if len(stored) == 3 else stored


def categorical_columns(section: DataSection, schema: RawSchema) -> frozenset[str]:
    """The columns of a table that a transform encodes; in them a null is a category as any other."""
    if schema.kind != "table":
        return frozenset()
    return frozenset(
        plan_table(section.transforms, dict(zip(schema.columns, schema.dtypes, strict=True))).encoders
    )


def require_complete(table: pa.Table, names: Sequence[str], target: str | None) -> None:
    """Raises SourceError where these features or the target hold a null, NaN or infinity after cleaning."""
    for name in (*names, *([target] if target else [])):
        missing = int(null_rows(table[name]).sum())
        number = is_number(table.schema.field(name).type)
        role = "the target" if name == target else "feature"
        if missing:
            mend = f"add a step to data.clean: {{kind: drop_nulls, columns: ['{name}']}}"
            if name != target:
                fill = f" or {{kind: fill_nulls, columns: ['{name}']}}" if number else ""
                mend = f"{mend}{fill}, or leave the column out by data.features"
            raise SourceError(
                f"{role} '{name}' is null or NaN in {missing} of {table.num_rows} rows after cleaning", mend
            )
        if number and name != target:
            with np.errstate(over="ignore"):
                infinite = int((~np.isfinite(numbers(table[name]).astype(np.float32))).sum())
            if infinite:
                raise SourceError(
                    f"feature '{name}' is infinite (as float32) in {infinite} of {table.num_rows} rows",
                    "mend the source, or leave the column out by data.features",
                )


def number_matrix(table: pa.Table, names: tuple[str, ...]) -> NDArray[np.float32]:
    """Number columns side by side, shape (rows, columns); NaN where they are null."""
    matrix = np.empty((table.num_rows, len(names)), dtype=np.float32)
    with np.errstate(over="ignore"):
        for i, name in enumerate(names):
            matrix[:, i] = numbers(table[name])
    return matrix


def array_matrix(values: NDArray[Any], stored: tuple[int, ...]) -> NDArray[Any]:
    """Arrays as they are stored: uint8 stays, all else becomes float32; shape (rows, *stored)."""
    dtype = np.uint8 if values.dtype == np.uint8 else np.float32
    return np.ascontiguousarray(values, dtype=dtype).reshape(len(values), *stored)


def _describe_text(kinds: dict[str, Any], length: int) -> RawSchema:
    name, *others = kinds
    texts = [name for name, kind in kinds.items() if is_text(kind)]
    if others:
        raise SourceError(
            f"data.text reads one column of strings, and the features are {', '.join(list(kinds)[:5])}"
            + (", …" if len(kinds) > 5 else ""),
            f"write data.features: [{texts[0] if texts else name}]",
        )
    if not texts:
        raise SourceError(
            f"data.text: feature '{name}' is {kinds[name]}, not text",
            "name a column of strings by data.features, or leave data.text out",
        )
    return RawSchema("text", (name,), ("str",), (length,))


def _describe_array(column: pa.ChunkedArray, name: str) -> RawSchema:
    known = column.filter(pa.array(~np.asarray(column.is_null())))
    try:
        values = array_values(known)
    except ValueError as error:
        raise SourceError(
            f"feature '{name}': {error}", "give every row an array of the same shape"
        ) from error
    if not len(values):
        raise SourceError(f"feature '{name}' is null in every row", "name another column by data.features")
    shape = values.shape[1:]
    if len(shape) > 3 or not all(shape):
        raise SourceError(
            f"feature '{name}' holds arrays of shape {shape}",
            "give (height, width), (height, width, channels) or (length,)",
        )
    return RawSchema("array", (name,), (values.dtype.name,), tuple(int(n) for n in shape))


def dtype_name(kind: Any) -> str:
    """What a schema calls an Arrow type: numpy's name, or `str`."""
    if not is_number(kind):
        return "str" if is_text(kind) else str(kind)
    return "float64" if pa.types.is_decimal(kind) else np.dtype(kind.to_pandas_dtype()).name
