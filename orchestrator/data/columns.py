"""Look at columns of a raw table: which there are, what they hold, where they are null.

Imports: numpy, pyarrow.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.errors import SourceError


def unknown_column(name: str, known: Sequence[str]) -> str:
    """Says that a column is missing, and which one may have been meant."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    guess = f"did you mean '{close[0]}'? " if close else ""
    shown = ", ".join(known[:12]) + (f", … ({len(known)} in all)" if len(known) > 12 else "")
    return f"{guess}The columns are: {shown}"


def require_columns(known: Sequence[str], wanted: Iterable[str], field: str) -> None:
    """Raises SourceError for the first of `wanted` that is not a column; `field` is the spec's."""
    for name in wanted:
        if name not in known:
            raise SourceError(f"{field}: the source has no column '{name}'", unknown_column(name, known))


def is_number(kind: Any) -> bool:
    """Whether a column of this Arrow type holds one number (or boolean) per row."""
    types = pa.types
    return bool(
        types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind) or types.is_decimal(kind)
    )


def is_text(kind: Any) -> bool:
    """Whether a column of this Arrow type holds one string per row, dictionary-encoded or not."""
    types = pa.types
    if types.is_dictionary(kind):
        kind = kind.value_type
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


def is_encoded_image(kind: Any) -> bool:
    """Bytes, or the `{bytes, path}` structs of Hugging Face."""
    types = pa.types
    if types.is_struct(kind):
        return int(kind.get_field_index("bytes")) >= 0
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def is_array(kind: Any) -> bool:
    """Whether each row is an array: a fixed-shape tensor, or lists (nested or not)."""
    if isinstance(kind, pa.FixedShapeTensorType):
        return True
    while is_list(kind):
        kind = kind.value_type
        if is_number(kind):
            return True
    return False


def is_list(kind: Any) -> bool:
    """Whether each row is a list, of any length and content."""
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def array_values(column: pa.ChunkedArray) -> NDArray[Any]:
    """The rows of an array column without nulls, shape (rows, *shape).

    Raises ValueError where rows differ in shape or hold nulls.
    """
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # an empty column stays chunked
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    if isinstance(array.type, pa.FixedShapeTensorType):
        return np.asarray(array.to_numpy_ndarray())
    shape = [len(array)]
    while is_list(array.type):
        if array.null_count:
            raise ValueError("some rows hold nulls")
        if pa.types.is_fixed_size_list(array.type):
            width = array.type.list_size
        else:
            widths = pc.unique(pc.list_value_length(array)).to_pylist()
            if len(widths) > 1:
                raise ValueError(f"rows differ in length ({min(widths)} to {max(widths)})")
            width = widths[0] if widths else 0
        shape.append(width)
        array = array.flatten()
    if array.null_count:
        raise ValueError("some rows hold nulls")
    return np.asarray(array.to_numpy(zero_copy_only=False)).reshape(shape)


def numbers(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """A number column as float64, NaN where it is null, shape (rows,)."""
    if pa.types.is_boolean(column.type):
        column = column.cast(pa.uint8())
    return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)


def image_bytes(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The bytes of an encoded image column, whichever way it holds them."""
    return pc.struct_field(column, "bytes") if pa.types.is_struct(column.type) else column


def null_rows(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Where a column is null or NaN (an array: holds one), shape (rows,)."""
    kind = column.type
    if is_encoded_image(kind):
        column = image_bytes(column)
    missing = np.array(pc.is_null(column, nan_is_null=pa.types.is_floating(kind)), dtype=bool)
    # Lists of integers hold no NaN, and labels are such lists.
    if is_array(kind) and not is_integer_list(kind):
        missing |= _holding_gaps(column)
    return missing


def _holding_gaps(column: pa.ChunkedArray) -> NDArray[np.bool_]:
    """Which rows of an array column hold a null or NaN among their items, however the rows differ in length."""
    found = [np.zeros(0, dtype=bool)]
    for array in column.chunks:
        items = array.storage if isinstance(array, pa.ExtensionArray) else array
        rows = np.arange(len(items))
        while is_list(items.type):
            rows = rows[pc.list_parent_indices(items).to_numpy(zero_copy_only=False)]
            items = pc.list_flatten(items)
        gaps = pc.is_null(items, nan_is_null=pa.types.is_floating(items.type))
        holding = np.zeros(len(array), dtype=bool)
        holding[rows[np.asarray(gaps, dtype=bool)]] = True
        found.append(holding)
    return np.concatenate(found)


def is_integer_list(kind: Any) -> bool:
    """Whether each row is a list of integers."""
    return is_list(kind) and bool(pa.types.is_integer(kind.value_type))
