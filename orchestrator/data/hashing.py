"""Hash values and rows: 64 bits that are the same on every machine, in every process and version.

A number's hash depends on its value, not on its type: 3, 3.0 and a 3 of 8 bits are one key. Nulls and NaN hash
to 0. The hash is not cryptographic: it tells rows apart, and nothing may depend on it being hard to forge.
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

from orchestrator.data.columns import image_bytes, is_encoded_image, is_list, is_number

Hashes = NDArray[np.uint64]

_LONG_BYTES = 256
"""Longer values are hashed one by one, by BLAKE2b; shorter ones all together, eight bytes at a time."""
_NANOSECONDS = {"s": 10**9, "ms": 10**6, "us": 10**3, "ns": 1}
_STEP = np.uint64(0x9E3779B97F4A7C15)


def mix(values: Hashes) -> Hashes:
    """Spread all bits over all bits: the finaliser of SplitMix64 (Steele et al. 2014), one to one."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def hash_text(text: str, seed: int = 0) -> int:
    """64 bits of one string; for names, not for columns."""
    digest = hashlib.blake2b(text.encode(), digest_size=8, key=seed.to_bytes(8, "little")).digest()
    return int.from_bytes(digest, "little")


def hash_column(column: pa.ChunkedArray | pa.Array, seed: int = 0) -> Hashes:
    """A hash per row, shape (rows,); equal values have equal hashes, nulls and NaN have 0."""
    if isinstance(column, pa.ChunkedArray):
        pieces = [_hash(chunk, seed) for chunk in column.chunks]
        return np.concatenate(pieces) if pieces else np.zeros(0, np.uint64)
    return _hash(column, seed)


def hash_rows(table: pa.Table, names: Sequence[str], seed: int = 0) -> Hashes:
    """A hash per row over the named columns, whatever their order, shape (rows,).

    A null adds nothing: a column that is added later, and is null in the rows there were, leaves their hashes.
    """
    return join_hashes({name: hash_column(table[name], seed) for name in names}, table.num_rows)


def join_hashes(columns: Mapping[str, Hashes], num_rows: int) -> Hashes:
    """The hashes of rows from those of their columns, by name; what `hash_rows` gives."""
    total = np.zeros(num_rows, np.uint64)
    for name, hashes in columns.items():
        tagged = mix(hashes + np.uint64(hash_text(name)))
        total += np.where(hashes == 0, np.uint64(0), tagged)
    return mix(total + _STEP)


def _hash(array: pa.Array, seed: int) -> Hashes:
    """Of one Arrow array."""
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
    start = mix(np.array([seed], np.uint64) + _STEP)
    hashes = _values(array, start, seed)
    hashes[hashes == 0] = 1
    if pa.types.is_floating(kind):
        hashes[np.isnan(_filled(array.cast(pa.float64())))] = 0
    if array.null_count:
        hashes[np.asarray(array.is_null().to_numpy(zero_copy_only=False))] = 0
    return hashes


def _values(array: pa.Array, start: Hashes, seed: int) -> Hashes:
    """What `_hash` gives, but for nulls. `start` (1,) comes from the seed."""
    kind, types = array.type, pa.types
    if types.is_null(kind):
        return np.zeros(len(array), np.uint64)
    if (bits := _bits(array)) is not None:
        return mix(mix(bits + start) + _STEP)
    if (
        types.is_fixed_size_list(kind)
        and is_number(kind.value_type)
        and not types.is_decimal(kind.value_type)
    ):
        return _strings(_rows_as_bytes(array), start)
    if is_list(kind):
        return _lists(array, start, seed)
    if types.is_struct(kind):
        total = np.zeros(len(array), np.uint64)
        for position, field in enumerate(kind):
            total += mix(_hash(pc.struct_field(array, position), seed) + np.uint64(hash_text(field.name)))
        return mix(total + start)
    text = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    binary = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    if not (text or binary or types.is_fixed_size_binary(kind)):
        array = pa.array([None if value is None else repr(value) for value in array.to_pylist()], pa.string())
    return _strings(array.cast(pa.large_binary()), start)


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
    whole = (np.abs(values) < 2.0**53) & (values == np.floor(values))
    return np.where(
        whole, np.where(whole, values, 0).astype(np.int64).view(np.uint64), values.view(np.uint64)
    )


def _rows_as_bytes(array: pa.Array) -> pa.Array:
    """Lists of a fixed size as binary values."""
    width = array.type.list_size
    values = array.values.slice(array.offset * width, len(array) * width)  # those of null rows, too
    if pa.types.is_boolean(values.type):
        values = values.cast(pa.uint8())
    numbers = np.ascontiguousarray(_filled(values))
    size = numbers.itemsize * width
    return pa.Array.from_buffers(pa.binary(size), len(array), [None, pa.py_buffer(numbers.tobytes())]).cast(
        pa.large_binary()
    )


def _lists(array: pa.Array, start: Hashes, seed: int) -> Hashes:
    """Lists of any length: the elements' hashes, each with its position, and the length."""
    lengths = np.asarray(pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False), np.int64)
    elements = _hash(array.flatten(), seed)
    begins = np.cumsum(lengths) - lengths
    positions = np.arange(len(elements)) - np.repeat(begins, lengths)
    sums = np.concatenate([[np.uint64(0)], np.cumsum(mix(elements + positions.astype(np.uint64) * _STEP))])
    return mix(sums[begins + lengths] - sums[begins] + lengths.astype(np.uint64) + start)


def _strings(array: pa.Array, start: Hashes) -> Hashes:
    """Of a large_binary array."""
    count = len(array)
    if not count:
        return np.zeros(0, np.uint64)
    offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + count + 1]
    lengths = np.diff(offsets)
    data = array.buffers()[2]
    raw = (
        np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]] if data is not None else np.zeros(0, np.uint8)
    )
    padded = np.concatenate([raw, np.zeros(8, np.uint8)])
    # Eight bytes from each byte on, little-endian on every machine.
    words = np.ndarray((len(raw) + 1,), np.dtype("<u8"), padded, strides=(1,))
    begins = offsets[:-1] - offsets[0]
    hashes = mix(lengths.astype(np.uint64) * _STEP + start)
    short = np.flatnonzero(lengths <= _LONG_BYTES)
    short = short[np.argsort(-lengths[short], kind="stable")]
    for first in range(0, int(lengths[short[0]]) if len(short) else 0, 8):
        live = short[: int(np.searchsorted(-lengths[short], -first, side="left"))]
        unused = np.maximum(0, 8 - (lengths[live] - first)).astype(np.uint64) * np.uint64(8)
        word = words[begins[live] + first].astype(np.uint64) << unused
        hashes[live] = mix((hashes[live] ^ word) + _STEP)
    key = int(start[0]).to_bytes(8, "little")
    for row in np.flatnonzero(lengths > _LONG_BYTES):
        value = raw[begins[row] : begins[row] + lengths[row]]
        digest = hashlib.blake2b(value.tobytes(), digest_size=8, key=key).digest()
        hashes[row] = int.from_bytes(digest, "little")
    return hashes
