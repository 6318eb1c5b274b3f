"""The journal of a run and its children: what is to be recorded, one JSON line each, safe on disk before anybody
relies on it.

The folder holds `journal.jsonl` (append only), `state.json` and `children.jsonl` (how far it was shipped, and to
which runs: see `shipped`), `refused.jsonl` (what the server will never take) and `lock`.
Imports: the standard library, ops.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.errors import TrackingError
from orchestrator.tracking.ops import Op, from_json, to_json

_log = logging.getLogger(__name__)


class JournalBusy(TrackingError):
    """Another process holds the journal."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the journal, between two offsets: an operation of one child of the run, or of the run itself ('').

    `op` is None where a bad disk has damaged the line: nothing of it can be shipped, all the others still can.
    """

    op: Op | None
    child: str
    start: int
    end: int


class Journal:
    """An open journal; one process at a time. `append` may be called by any thread."""

    def __init__(self, folder: Path) -> None:
        """Open or make the journal; raises JournalBusy, or TrackingError where it cannot be written."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock_file = (folder / "lock").open("w")
        except OSError as error:
            raise TrackingError(f"the tracking journal {folder} cannot be written: {error}") from error
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock_file.close()
            raise JournalBusy(
                f"another process records into {folder}",
                "wait until it ended, or start a run of its own: --fresh",
            ) from error
        self._appending = threading.Lock()
        self._path = folder / "journal.jsonl"
        self._handle = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        self.size_bytes = self._drop_torn_line()

    def append(self, op: Op, child: str = "") -> None:
        """Add an operation; it is on the disk when this returns. Raises TrackingError where the disk is full or
        gone, or the journal closed: then nothing of the operation was added."""
        value = {"child": child, **to_json(op)} if child else to_json(op)
        line = json.dumps(value, separators=(",", ":"), default=str).encode() + b"\n"
        with self._appending:
            if self.closed:
                raise TrackingError(f"the tracking journal {self._path} is closed")
            try:
                self._drop_unfinished()
                written = 0
                while written < len(line):
                    written += os.write(self._handle, line[written:])
                os.fsync(self._handle)
            except OSError as error:
                with contextlib.suppress(OSError):  # else the next call does it, before it writes
                    self._drop_unfinished()
                raise TrackingError(
                    f"the tracking journal {self._path} cannot be written: {error}", "make room on that disk"
                ) from error
            self.size_bytes += len(line)

    def read(self, offset: int, limit_bytes: int = 1 << 20) -> list[Entry]:
        """The entries from `offset` on: about `limit_bytes`, at least one."""
        return [_entry(line, start) for line, start in self._lines(offset, limit_bytes)]

    def entries(self, naming: str = "") -> Iterator[Entry]:
        """All entries of the journal from its beginning; or only those, and perhaps a few more, which have this name of
        a metric or a tag: the others are not even parsed."""
        mark = json.dumps(naming).encode() if naming else b""
        offset = 0
        while lines := self._lines(offset):
            for line, start in lines:
                if mark in line:
                    yield _entry(line, start)
                offset = start + len(line)

    def operations(self, child: str = "") -> Iterator[Op]:
        """All readable operations of the run, or of one child."""
        mark = f'{{"child":{json.dumps(child)},' if child else '{"op":'
        offset = 0
        while lines := self._lines(offset):
            for line, start in lines:
                if line.startswith(mark.encode()) and (op := _entry(line, start).op) is not None:
                    yield op
                offset = start + len(line)

    def _lines(self, offset: int, limit_bytes: int = 1 << 20) -> list[tuple[bytes, int]]:
        found = []
        stop = min(self.size_bytes, offset + limit_bytes)
        with self._path.open("rb") as file:
            file.seek(offset)
            while offset < stop:
                line = file.readline()
                found.append((line, offset))
                offset += len(line)
        return found

    def put_aside(self, entry: dict[str, Any], reason: str) -> None:
        """Keep what will not be shipped, with the reason."""
        _log.warning("not recorded: %s", reason)
        with (self.folder / "refused.jsonl").open("a") as file:
            file.write(json.dumps({"reason": reason, **entry}, default=str) + "\n")

    @property
    def closed(self) -> bool:
        return self._handle < 0

    def close(self) -> None:
        with self._appending:  # the number of a closed file soon means another one
            handle, self._handle = self._handle, -1
            if handle >= 0:
                os.close(handle)
            self._lock_file.close()

    def _drop_unfinished(self) -> None:
        """A write that failed in the middle of a line would spoil the next one."""
        if os.fstat(self._handle).st_size > self.size_bytes:
            os.ftruncate(self._handle, self.size_bytes)

    def _drop_torn_line(self) -> int:
        """A crash inside `append` leaves a last line without its end: nobody was told that it was safe."""
        size = os.fstat(self._handle).st_size
        keep = size
        while keep > 0:
            start = max(0, keep - 65536)
            newline = os.pread(self._handle, keep - start, start).rfind(b"\n")
            if newline >= 0:
                keep = start + newline + 1
                break
            keep = start
        if keep < size:
            os.ftruncate(self._handle, keep)
        return keep


def _entry(line: bytes, start: int) -> Entry:
    end = start + len(line)
    try:
        fields = json.loads(line)
        child = str(fields.pop("child", ""))
        return Entry(from_json(fields), child, start, end)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Entry(None, "", start, end)
