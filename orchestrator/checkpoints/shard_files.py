"""Files of tensors that are spread over ranks by rows, and reading any rows of them again. Imports: storage.

Each rank writes its rows of every tensor into a file of its own, in the safetensors format: eight bytes with the
length of a JSON header, the header, the numbers. Any reader of that format reads it; what it holds of which whole
tensors is in the header's metadata. Nothing is ever unpickled. A row is what one index of the first dimension
takes, and lies in one piece, so any number of readers finds the bytes that it needs: 2 ranks may go on as 3.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import CheckpointError
from orchestrator.storage import Folder

ITEM_SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
"""Bytes of a number, by safetensors' name of its type."""
_METADATA = "orchestrator.rows"
_GAP_BYTES = 1 << 20
_READ_BYTES = 1 << 26


@dataclass(frozen=True)
class Rows:
    """Some rows of a tensor: from `first` on, as raw bytes in row-major order."""

    dtype: str
    """One of `ITEM_SIZES`."""
    shape: tuple[int, ...]
    """Of the whole tensor; at least one dimension."""
    first: int
    data: memoryview

    @property
    def count(self) -> int:
        return self.data.nbytes // row_bytes(self.dtype, self.shape) if self.data.nbytes else 0


@dataclass(frozen=True)
class Piece:
    """Where a file holds some rows of a tensor."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    first: int
    stop: int
    offset: int
    """Bytes before them in the file."""


def row_bytes(dtype: str, shape: Sequence[int]) -> int:
    return math.prod(shape[1:]) * ITEM_SIZES[dtype]


def file_of(rows: Mapping[str, Rows]) -> list[memoryview]:
    """The content of a rank's file, in parts to be written one after the other. Nothing is copied."""
    entries: dict[str, Any] = {}
    wholes: dict[str, tuple[list[int], int]] = {}
    end = 0
    for name, one in rows.items():
        start, end = end, end + one.data.nbytes
        shape = [one.count, *one.shape[1:]]
        entries[name] = {"dtype": one.dtype, "shape": shape, "data_offsets": [start, end]}
        wholes[name] = (list(one.shape), one.first)
    header = json.dumps({"__metadata__": {_METADATA: json.dumps(wholes)}, **entries}).encode()
    header += b" " * (-len(header) % 8)  # the numbers begin at a multiple of their size
    return [memoryview(len(header).to_bytes(8, "little") + header), *(one.data for one in rows.values())]


def pieces_of(folder: Folder, files: Iterable[str]) -> dict[str, list[Piece]]:
    """What the ranks' files hold, by the tensors' names; only the headers are read.

    Raises CheckpointError for a file that is missing or is none of these.
    """
    found: dict[str, list[Piece]] = {}
    for file in files:
        try:
            with folder.open(file) as opened:
                length = int.from_bytes(opened.read_at(8, 0), "little")
                if length > opened.size():
                    raise ValueError(f"its header would have {length} bytes")
                header = json.loads(opened.read_at(length, 8))
            wholes = json.loads(header.pop("__metadata__")[_METADATA])
            for name, entry in header.items():
                shape, first = wholes[name]
                offset = 8 + length + entry["data_offsets"][0]
                stop = first + entry["shape"][0]
                piece = Piece(file, entry["dtype"], tuple(shape), first, stop, offset)
                found.setdefault(name, []).append(piece)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{file} in {folder.uri} cannot be read as a rank's tensors: {error}"
            ) from error
    return found


def read_rows(
    folder: Folder, pieces: Mapping[str, Sequence[Piece]], wanted: Mapping[str, tuple[int, int]]
) -> dict[str, bytearray]:
    """The bytes of the rows `first` to `stop` (exclusive) of each wanted tensor, whichever files they lie in.

    No more is read than is wanted, but for small gaps. Raises CheckpointError where rows are in no file.
    """
    found: dict[str, bytearray] = {}
    reads: dict[str, list[tuple[int, int, memoryview]]] = {}
    for name, (first, stop) in wanted.items():
        parts = sorted(pieces.get(name, ()), key=lambda piece: piece.first)
        size = row_bytes(parts[0].dtype, parts[0].shape) if parts else 0
        found[name] = bytearray((stop - first) * size)
        target, row = memoryview(found[name]), first
        for part in parts:
            start, end = max(row, part.first), min(stop, part.stop)
            if start > row or start >= end:
                continue
            offset = part.offset + (start - part.first) * size
            place = target[(start - first) * size : (end - first) * size]
            reads.setdefault(part.file, []).append((offset, offset + len(place), place))
            row = end
        if row < stop:
            raise CheckpointError(f"row {row} of {name} is in no file of {folder.uri}")
    for file, places in reads.items():
        _read(folder, file, places)
    return found


def _read(folder: Folder, file: str, places: list[tuple[int, int, memoryview]]) -> None:
    """Fill the places with the bytes from start to end that each names; neighbours are read at once."""
    places.sort(key=lambda place: place[0])
    with folder.open(file) as opened:
        while places:
            start, end = places[0][:2]
            count = 1
            while (
                count < len(places)
                and places[count][0] - end < _GAP_BYTES
                and places[count][1] - start <= _READ_BYTES
            ):
                end = max(end, places[count][1])
                count += 1
            data = memoryview(opened.read_at(end - start, start))
            if len(data) < end - start:
                raise CheckpointError(f"{file} in {folder.uri} ends too early")
            for first, stop, place in places[:count]:
                place[:] = data[first - start : stop - start]
            places = places[count:]
