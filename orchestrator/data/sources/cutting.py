"""Cut large files of lines at the ends of records, hashing the pieces in the same pass over the bytes.

Imports: numpy.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

_BLOCK_BYTES = 2**20


Cut = tuple[int, int, str]
"""A piece of a file: first byte, byte behind the last, SHA-256 (hex) of what is between."""


def cut_lines(stream: Any, chunk_bytes: int) -> list[Cut]:
    """Cut a stream of lines. Each piece is the shortest that holds at least `chunk_bytes` and ends with a line feed;
    the last ends with the stream. So lines that are added behind change the last piece at most."""
    return [_cut(*piece) for piece in _pieces(stream, chunk_bytes, _line_end)]


def cut_csv(stream: Any, chunk_bytes: int, delimiter: str) -> list[Cut]:
    """As `cut_lines`, but never within a quoted field, which may hold line feeds.

    A place is outside of quotes where an even number of quotes lies before it. That holds as long as quotes
    stand around whole fields, doubled inside; a file with others (`5" pipe`) is not cut: no pieces are given.
    """
    cuts = []
    for start, data in _pieces(stream, chunk_bytes, _record_end):
        if not _quotes_stand_around_fields(data, delimiter):
            return []
        cuts.append(_cut(start, data))
    return cuts


def _cut(start: int, data: bytes) -> Cut:
    return start, start + len(data), hashlib.sha256(data).hexdigest()


def _pieces(
    stream: Any, chunk_bytes: int, find_end: Callable[[bytes, int], int]
) -> Iterator[tuple[int, bytes]]:
    """Consecutive pieces of a stream with the places where they begin."""
    start, data = 0, b""
    while data := data + stream.read(max(chunk_bytes - len(data), 0)):
        while not (end := find_end(data, chunk_bytes)):
            more = stream.read(max(_BLOCK_BYTES, len(data) // 4))
            if not more:
                end = len(data)
                break
            data += more
        yield start, data[:end]
        start, data = start + end, data[end:]


def _line_end(data: bytes, at_least: int) -> int:
    return data.find(b"\n", at_least - 1) + 1


def csv_header(stream: Any) -> bytes:
    """The first record of a CSV file that is not blank, its line feed included."""
    data, begin = b"", 0
    while True:
        more = bytes(stream.read(_BLOCK_BYTES))
        data += more
        while end := _record_end(data[begin:], 1):
            if data[begin : begin + end].strip(b"\r\n"):
                return data[begin : begin + end]
            begin += end
        if not more:
            return data[begin:]


def _record_end(data: bytes, at_least: int) -> int:
    """The first end of a record, as a number of bytes, that is not before `at_least`; 0 where there is none."""
    inside = data.count(b'"', 0, at_least - 1) % 2 == 1
    position = at_least - 1
    while (found := data.find(b"\n", position)) >= 0:
        inside ^= data.count(b'"', position, found) % 2 == 1
        if not inside:
            return found + 1
        position = found + 1
    return 0


def _quotes_stand_around_fields(data: bytes, delimiter: str) -> bool:
    """Whether each quote that opens does so at the begin of a field or right behind one that closed (doubled)."""
    values = np.frombuffer(data, np.uint8)
    opening = np.flatnonzero(values == ord('"'))[::2]
    before = values[opening[opening > 0] - 1]
    allowed = np.frombuffer(b'\n\r"' + delimiter.encode(), np.uint8)
    # A byte order mark may stand before the very first one.
    wrong = ~np.isin(before, allowed)
    return not wrong.any() or (int(wrong.sum()) == 1 and data.startswith(b'\xef\xbb\xbf"') and bool(wrong[0]))
