"""Tensors that are spread by rows over the ranks' files: which file holds what, and reading any rows again.

Each rank writes its rows of every tensor into a file of its own in the safetensors format (`sharded.dump_rows`). Of
which whole tensor they are is in the header's metadata. A row is what one index of the first dimension takes, and
lies in one piece, so any number of readers finds the bytes that it needs: 2 ranks may go on as 3. Nothing is
unpickled. Imports: storage, the standard library.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import CheckpointError
from orchestrator.storage import Folder

METADATA = "orchestrator.rows"
"""Where in a header's metadata it says, as JSON, which rows of which tensor these are: `{name: [shape, first]}`."""
_GAP_BYTES = 1 << 20
_READ_BYTES = 1 << 26


@dataclass(frozen=True)
class Piece:
    """Where a file holds rows `first` to `stop` (exclusive) of a tensor."""

    file: str
    first: int
    stop: int
    offset: int
    """Bytes before them in the file."""
    row_bytes: int


def pieces_of(folder: Folder, files: Iterable[str]) -> dict[str, list[Piece]]:
    """What the ranks' files hold, by the tensors' names; only the headers are read.

    Raises CheckpointError for a file that is missing or is none of these, OSError where the storage fails.
    """
    found: dict[str, list[Piece]] = {}
    for file in files:
        try:
            with folder.open(file) as opened:
                header, start = _header(opened)
            for name, (_, first) in json.loads(header.pop("__metadata__")[METADATA]).items():
                rows, (begin, end) = header[name]["shape"][0], header[name]["data_offsets"]
                if rows:
                    piece = Piece(file, first, first + rows, start + begin, (end - begin) // rows)
                    found.setdefault(name, []).append(piece)
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{file} in {folder.uri} cannot be read as a rank's tensors: {error}"
            ) from error
    return found


def read_rows(
    folder: Folder, pieces: Mapping[str, Sequence[Piece]], wanted: Mapping[str, tuple[int, int]]
) -> dict[str, bytearray]:
    """The bytes of the rows `first` to `stop` (exclusive) of each wanted tensor, whichever files they lie in.

    No more is read than is wanted, but for small gaps. Raises CheckpointError where rows are in no file, OSError
    where the storage fails.
    """
    found: dict[str, bytearray] = {}
    reads: dict[str, list[tuple[int, int, memoryview]]] = {}
    for name, (first, stop) in wanted.items():
        parts = sorted(pieces.get(name, ()), key=lambda piece: piece.first)
        size = parts[0].row_bytes if parts else 0
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
        _read(folder, file, sorted(places, key=lambda place: place[0]))
    return found


def _header(opened: Any) -> tuple[dict[str, Any], int]:
    """A safetensors file's header, and where the numbers begin."""
    length = int.from_bytes(opened.read_at(8, 0), "little")
    if length > opened.size():
        raise ValueError(f"its header would have {length} bytes")
    header: dict[str, Any] = json.loads(opened.read_at(length, 8))
    return header, 8 + length


def _read(folder: Folder, file: str, places: Sequence[tuple[int, int, memoryview]]) -> None:
    """Fill the places with the bytes from start to end that each names; neighbours are read at once."""
    with folder.open(file) as opened:
        done = 0
        while done < len(places):
            (start, end, _), count = places[done], 1
            for first, stop, _ in places[done + 1 :]:
                if first - end >= _GAP_BYTES or stop - start > _READ_BYTES:
                    break
                end, count = max(end, stop), count + 1
            data = memoryview(opened.read_at(end - start, start))
            if len(data) < end - start:
                raise CheckpointError(f"{file} in {folder.uri} ends too early")
            for first, stop, place in places[done : done + count]:
                place[:] = data[first - start : stop - start]
            done += count
