"""Hash values and rows: 64 or 128 bits that are the same on every machine, in every process and version.

A number's hash depends on its value, not on its type: 3, 3.0 and a 3 of 8 bits are one key. The items of arrays and
lists are hashed as they lie in memory, so that their type counts. The hash is not cryptographic: it tells rows
apart, and nothing may depend on it being hard to forge.
Imports: numpy, pyarrow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.data.columns import image_bytes, is_encoded_image, is_list, is_number, is_text
from orchestrator.data.splitmix import STEP, mix

Hashes = NDArray[np.uint64]
"""Shape (rows,), or (rows, 2) where 128 bits are meant."""

_LONG_BYTES = 256
"""Longer values are hashed one by one, by BLAKE2b; shorter ones all together, eight bytes at a time."""
_EXACT = 2.0**53
"""Below, all whole numbers are floats."""
_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}


def hash_text(text: str, seed: int = 0) -> int:
    """64 bits of one string; for names, not for columns."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little")


def hash_column(column: pa.ChunkedArray | pa.Array, seed: int = 0) -> Hashes:
    """A hash per row, shape (rows,); equal values have equal hashes, nulls and NaN have 0."""
    hashes = _hash_pieces(column, seed)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_floating(kind):
        hashes[hashes == _hash(pa.array([np.nan], from_pandas=False), seed)] = 0
    return hashes


def hash_rows(table: pa.Table, names: Sequence[str], seed: int = 0) -> Hashes:
    """A hash per row over the named columns, whatever their order, shape (rows,).

    A null adds nothing: a column that is added later, and is null in the rows there were, leaves their hashes.
    """
    return join_hashes({name: hash_column(table[name], seed) for name in names}, table.num_rows)


def hash_rows_128(table: pa.Table, names: Sequence[str]) -> Hashes:
    """As `hash_rows`, with 128 bits a row, shape (rows, 2), and NaN told apart from null.

    Two of n different rows share a hash with a probability of about n² / 2¹²⁹.
    """
    lanes = [
        join_hashes({name: _hash_pieces(table[name], seed) for name in names}, table.num_rows)
        for seed in (0, 1)
    ]
    return np.stack(lanes, axis=1)


def join_hashes(columns: Mapping[str, Hashes], num_rows: int) -> Hashes:
    """The hashes of rows from those of their columns, by name; what `hash_rows` gives."""
    total = np.zeros(num_rows, np.uint64)
    for name, hashes in columns.items():
        tagged = mix(hashes + np.uint64(hash_text(name)))
        total += np.where(hashes == 0, np.uint64(0), tagged)
    return mix(total + STEP)


def is_hashable(kind: pa.DataType) -> bool:
    """Whether values of this Arrow type are compared by what they hold; those of others by how Python writes them."""
    types = pa.types
    if isinstance(kind, pa.FixedShapeTensorType):
        return True
    if types.is_dictionary(kind) or is_list(kind):
        return is_hashable(kind.value_type)
    if types.is_struct(kind):
        return is_encoded_image(kind) or all(is_hashable(field.type) for field in kind)
    return bool(
        types.is_null(kind)
        or is_number(kind)
        or is_text(kind)
        or _is_bytes(kind)
        or (types.is_temporal(kind) and not types.is_interval(kind))
    )


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    plain = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return bool(plain or types.is_fixed_size_binary(kind))


def _hash_pieces(column: pa.ChunkedArray | pa.Array, seed: int) -> Hashes:
    if not isinstance(column, pa.ChunkedArray):
        return _hash(column, seed)
    return np.concatenate([np.zeros(0, np.uint64), *(_hash(chunk, seed) for chunk in column.chunks)])


def _hash(array: pa.Array, seed: int) -> Hashes:
    """Of one Arrow array; nulls have 0, and NaN is a value."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    kind = array.type
    if is_encoded_image(kind) and pa.types.is_struct(kind):
        array = image_bytes(array)
        kind = array.type
    if pa.types.is_dictionary(kind):
        hashes = np.append(_hash(array.dictionary, seed), np.uint64(0))
        indices = array.indices.cast(pa.int64()).fill_null(len(hashes) - 1)
        return hashes[np.asarray(indices.to_numpy(zero_copy_only=False), np.int64)]
    start = mix(np.array([seed], np.uint64) + STEP)
    hashes = _values(array, start, seed)
    hashes[hashes == 0] = 1
    if array.null_count:
        hashes[np.asarray(array.is_null().to_numpy(zero_copy_only=False))] = 0
    return hashes


def _values(array: pa.Array, start: Hashes, seed: int) -> Hashes:
    """What `_hash` gives, but for nulls. `start` (1,) comes from the seed."""
    kind, types = array.type, pa.types
    if types.is_null(kind):
        return np.zeros(len(array), np.uint64)
    if (bits := _bits(array)) is not None:
        return mix(mix(bits + start) + STEP)
    if is_list(kind):
        return _lists(array, start, seed)
    if types.is_struct(kind):
        total = np.zeros(len(array), np.uint64)
        for position, field in enumerate(kind):
            total += mix(_hash(pc.struct_field(array, position), seed) + np.uint64(hash_text(field.name)))
        return mix(total + start)
    if types.is_decimal(kind):
        array = array.cast(pa.large_string())
    elif not (is_text(kind) or _is_bytes(kind)):
        array = pa.array([None if value is None else repr(value) for value in array.to_pylist()], pa.string())
    array = array.cast(pa.large_binary())
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    data = array.buffers()[2]
    return _runs(np.frombuffer(data, np.uint8) if data else np.zeros(0, np.uint8), offsets, start)


def _bits(array: pa.Array) -> Hashes | None:
    """64 bits per row of numbers and times; None for other types."""
    kind, types = array.type, pa.types
    if types.is_boolean(kind) or (types.is_integer(kind) and kind != pa.uint64()):
        return _filled(array.cast(pa.int64())).astype(np.int64).view(np.uint64)
    if kind == pa.uint64():
        return _filled(array).astype(np.uint64)
    if types.is_floating(kind):
        return _float_bits(_filled(array.cast(pa.float64())).astype(np.float64))
    if types.is_timestamp(kind) or types.is_duration(kind) or types.is_time64(kind):
        unit = np.uint64(_NANOSECONDS[kind.unit])
        return _filled(array.cast(pa.int64())).astype(np.int64).view(np.uint64) * unit
    if types.is_date(kind) or types.is_time32(kind):
        stored = array if types.is_date64(kind) else array.cast(pa.int32())
        return _filled(stored.cast(pa.int64())).astype(np.int64).view(np.uint64)
    return None


def _filled(array: pa.Array) -> NDArray[Any]:
    return np.asarray((array.fill_null(0) if array.null_count else array).to_numpy(zero_copy_only=False))


def _float_bits(values: NDArray[np.float64]) -> Hashes:
    """Whole numbers as integers, so that a column read as 3 today and as 3.0 tomorrow is the same."""
    bits = np.where(np.isnan(values), np.nan, values).view(np.int64)  # of the many NaN, one
    whole = (np.abs(values) < _EXACT) & (values == np.floor(values))
    found = np.where(whole, np.where(whole, values, 0).astype(np.int64), bits)
    # Tiny numbers' bits are those of small integers; they get the bits that these numbers have no use for.
    taken = ~whole & (np.abs(bits) < int(_EXACT))
    if taken.any():
        found[taken] = bits[taken].astype(np.float64).view(np.int64)
    return found.view(np.uint64)


def _lists(array: pa.Array, start: Hashes, seed: int) -> Hashes:
    """Lists of any length, and arrays: the bytes of their items, or of the items' hashes."""
    lengths = np.asarray(pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False), np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    items = array.flatten()
    kind, types = items.type, pa.types
    if not (types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind)):
        return _runs(_hash(items, seed), ends, start)
    values = _filled(items.cast(pa.uint8()) if types.is_boolean(kind) else items)
    if values.dtype.kind == "f":
        values = values + values.dtype.type(0)  # a copy, in which -0.0 is 0.0
        values[np.isnan(values)] = np.nan
    hashes = _runs(values, ends, start)
    if items.null_count:
        # A null stands as 0 among the values; where it stands makes the difference.
        nulls = np.asarray(items.is_null().to_numpy(zero_copy_only=False))
        counts = np.concatenate([[0], np.cumsum(nulls)])
        holding = counts[ends[1:]] > counts[ends[:-1]]
        hashes[holding] = mix(hashes[holding] + _runs(nulls, ends, start)[holding])
    return hashes


def _runs(items: NDArray[Any], offsets: NDArray[np.int64], start: Hashes) -> Hashes:
    """Of each run of items from one offset to the next, by their bytes; there is one offset more than runs."""
    count = len(offsets) - 1
    if not count:
        return np.zeros(0, np.uint64)
    offsets = offsets * items.itemsize
    lengths = np.diff(offsets)
    little = items.astype(items.dtype.newbyteorder("<"), copy=False)
    raw = np.ascontiguousarray(little).view(np.uint8)[offsets[0] : offsets[-1]]
    begins = offsets[:-1] - offsets[0]
    hashes = mix(lengths.astype(np.uint64) * STEP + start)
    short = np.flatnonzero(lengths <= _LONG_BYTES)
    if len(short):
        # Eight bytes from each byte on, little-endian on every machine.
        padded = np.concatenate([raw, np.zeros(8, np.uint8)])
        words = np.ndarray((len(raw) + 1,), np.dtype("<u8"), padded, strides=(1,))
        short = short[np.argsort(-lengths[short], kind="stable")]
        for first in range(0, int(lengths[short[0]]), 8):
            live = short[: int(np.searchsorted(-lengths[short], -first, side="left"))]
            unused = np.maximum(0, 8 - (lengths[live] - first)).astype(np.uint64) * np.uint64(8)
            word = words[begins[live] + first].astype(np.uint64) << unused
            hashes[live] = mix((hashes[live] ^ word) + STEP)
    key, view = int(start[0]).to_bytes(8, "little"), raw.data
    for row in np.flatnonzero(lengths > _LONG_BYTES).tolist():
        value = view[int(begins[row]) : int(begins[row] + lengths[row])]
        digest = hashlib.blake2b(value, digest_size=8, key=key).digest()
        hashes[row] = int.from_bytes(digest, "little")
    return hashes
