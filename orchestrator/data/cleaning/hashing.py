"""Hashes of rows by their values, of 128 bits: equal rows have equal hashes, in any chunk and on any machine.

Two of n different rows share a hash with a probability of about n² / 2¹²⁹. Imports: numpy, pyarrow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.data.columns import is_encoded_image, is_list, is_text

Hashes = NDArray[np.uint64]
"""Shape (rows, 2)."""

_SEEDS = np.array([0x9E3779B97F4A7C15, 0xD1B54A32D192ED03], np.uint64)
_SHORT = 8
"""Up to how many words of eight bytes a text or list is short."""
_BLOCK = 1 << 16
_NULL = np.array([0x8CB92BA72F3D8DD7, 0xAAAAAAAA55555555], np.uint64)


def mix(values: Hashes | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each number scrambled over its 64 bits, one to one (the finalizer of SplitMix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def is_hashable(kind: pa.DataType) -> bool:
    """Whether `hash_rows` can tell values of this Arrow type apart."""
    types = pa.types
    if isinstance(kind, pa.FixedShapeTensorType):
        return True
    if types.is_dictionary(kind) or (is_list(kind) and not is_encoded_image(kind)):
        return is_hashable(kind.value_type)
    if types.is_struct(kind):
        return is_encoded_image(kind) or all(is_hashable(field.type) for field in kind)
    return bool(
        types.is_null(kind)
        or types.is_boolean(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_decimal(kind)
        or (types.is_temporal(kind) and not types.is_interval(kind))
        or is_text(kind)
        or _is_bytes(kind)
    )


def hash_rows(table: pa.Table, names: Sequence[str]) -> Hashes:
    """Shape (rows, 2). Nulls equal each other and so do NaN; -0.0 equals 0.0; encoded images are compared by
    their bytes, arrays and lists by their items."""
    hashes = np.tile(_SEEDS, (table.num_rows, 1))
    for name in names:
        pieces = [_hash(piece) for piece in table[name].chunks]
        hashes = mix(hashes + np.concatenate([np.empty((0, 2), np.uint64), *pieces]))
    return hashes


def first_of_equals(parts: Sequence[Hashes]) -> list[NDArray[np.bool_]]:
    """For each chunk the rows to keep: those whose hash stands in no row before, over all chunks in order."""
    hashes = np.concatenate([np.empty((0, 2), np.uint64), *parts])
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: of equals, the first row stays first
    ordered = hashes[order]
    keep = np.ones(len(hashes), dtype=bool)
    keep[order[1:]] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return np.split(keep, np.cumsum([len(part) for part in parts])[:-1]) if parts else []


def _hash(array: pa.Array) -> Hashes:
    kind, types = array.type, pa.types
    if not len(array):
        return np.empty((0, 2), np.uint64)
    if isinstance(array, pa.ExtensionArray):
        return _hash(array.storage)
    if types.is_dictionary(kind):
        known: Hashes = np.vstack([_hash(array.dictionary), _NULL])
        indices = array.indices.cast(pa.int64()).fill_null(len(known) - 1)
        return known[np.asarray(indices, dtype=np.int64)]
    if is_encoded_image(kind) and types.is_struct(kind):
        return _hash(pc.struct_field(array, "bytes"))
    if types.is_struct(kind):
        hashes = np.tile(_SEEDS, (len(array), 1))
        for index in range(kind.num_fields):
            hashes = mix(hashes + _hash(pc.struct_field(array, [index])))
        return _with_nulls(hashes, array)
    if is_list(kind):
        return _with_nulls(_hash_lists(array), array)
    if is_text(kind) or types.is_decimal(kind):
        distinct = array.cast(pa.large_string()).dictionary_encode()
        if len(distinct.dictionary) < len(array):  # each text once
            return _hash(distinct)
        array = distinct.dictionary
    if is_text(array.type) or _is_bytes(kind):
        array = array.cast(pa.large_binary())
        offsets = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
        return _with_nulls(_digests(array.buffers()[2], offsets), array)
    if types.is_null(kind):
        return np.tile(_NULL, (len(array), 1))
    bits = _fixed_width(array).astype(np.uint64)
    return _with_nulls(mix(bits[:, None] + _SEEDS), array)


def _is_bytes(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def _with_nulls(hashes: Hashes, array: pa.Array) -> Hashes:
    if array.null_count:
        hashes[array.is_null().to_numpy(zero_copy_only=False)] = _NULL
    return hashes


def _fixed_width(array: pa.Array) -> NDArray[Any]:
    """Numbers and times as unsigned integers of their own width, equal for equal values; 0 where null."""
    types, kind = pa.types, array.type
    if types.is_boolean(kind):
        array = array.cast(pa.uint8())
    elif types.is_temporal(kind):
        array = array.view(pa.int32() if kind.bit_width == 32 else pa.int64())
    values = array.fill_null(0).to_numpy(zero_copy_only=False)
    if values.dtype.kind == "f":
        values = values + values.dtype.type(0)  # -0.0 becomes 0.0
        values[np.isnan(values)] = np.nan  # one of the many NaN
    return np.ascontiguousarray(values).view(f"u{values.dtype.itemsize}")


def _hash_lists(array: pa.Array) -> Hashes:
    """Of lists of any length: a digest of each list's items."""
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.concatenate([[0], np.cumsum(lengths)])
    items = array.flatten()
    if isinstance(items, pa.ExtensionArray) or is_list(items.type) or not _has_fixed_width(items.type):
        return _digests(np.ascontiguousarray(_hash(items)), ends * 16)
    values = _fixed_width(items)
    hashes = _digests(values, ends * values.itemsize)
    if items.null_count:
        # A null stands as 0 among the values; where it stands makes the difference.
        nulls = items.is_null().to_numpy(zero_copy_only=False)
        holding = np.add.reduceat(np.append(nulls, False), ends[:-1], dtype=np.int64) * (lengths > 0) > 0
        hashes[holding] = mix(hashes[holding] + _digests(nulls, ends)[holding])
    return hashes


def _has_fixed_width(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(
        types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind) or types.is_temporal(kind)
    )


def _digests(data: Any, offsets: NDArray[np.int64]) -> Hashes:
    """Of each run of bytes from one offset to the next; there is one offset more than there are runs. Short runs
    are done many at a time, by words of eight bytes, others one by one."""
    if isinstance(data, np.ndarray):
        data = data.reshape(-1).view(np.uint8)
    else:
        data = np.frombuffer(data, np.uint8) if data is not None and data.size else np.zeros(0, np.uint8)
    starts, lengths = offsets[:-1], np.diff(offsets)
    hashes: Hashes = np.empty((len(starts), 2), np.uint64)
    words = (lengths + 7) // 8
    for count in np.unique(words[words <= _SHORT]).tolist():
        rows = np.flatnonzero(words == count)
        for block in np.split(rows, range(_BLOCK, len(rows), _BLOCK)):
            hashes[block] = _short_digests(data, starts[block], lengths[block], count)
    view = memoryview(data)
    for row in np.flatnonzero(words > _SHORT).tolist():
        run = view[int(starts[row]) : int(starts[row] + lengths[row])]
        hashes[row] = np.frombuffer(hashlib.blake2b(run, digest_size=16).digest(), np.uint64)
    return hashes


def _short_digests(
    data: NDArray[np.uint8], starts: NDArray[np.int64], lengths: NDArray[np.int64], words: int
) -> Hashes:
    """Of runs of as many words, the last one padded by zeros."""
    places = np.arange(8 * words)
    held = data[np.minimum(starts[:, None] + places, len(data) - 1)]
    held[places >= lengths[:, None]] = 0
    hashes = mix(lengths.astype(np.uint64)[:, None] + _SEEDS)
    for word in held.view(np.uint64).T:
        hashes = mix(hashes + word[:, None])
    return hashes
