"""All that was decided in a search, in the order it was: the truth after a crash. Imports: storage."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Mapping
from typing import Any

from orchestrator.storage import Folder

_NAME = re.compile(r"events-\d{4,}-\d{6,}\.jsonl")
_STANDING = "events before that stand"
SEGMENT_BYTES = 256 * 1024
"""A segment that has grown beyond this is followed by a new one: what one flush writes stays small."""


class Journal:
    """The events of a search in files `events-0001-000001.jsonl` and so on, the same on local disks and object stores.

    Files appear whole, so that none is ever torn: after a crash the events up to the last `flush` are there. Each
    driver that opens it writes files of its own, which begin with how many events of those before it stand: one that
    was frozen, believed dead, and comes back changes nothing by what it still writes. A driver's threads may share it.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        names = self._files()
        self._driver = 1 + max((int(name.split("-")[1]) for name in names), default=0)
        self._number = 1
        self._lines: list[bytes] = [_line({_STANDING: len(_standing(self._read(names)))})] if names else []
        self._unsaved = bool(names)
        self._lock, self._writing = threading.Lock(), threading.Lock()

    def append(self, event: Mapping[str, Any]) -> None:
        """Keep an event for the next `flush`. Waits for no storage."""
        line = _line(event)
        with self._lock:
            self._lines.append(line)
            self._unsaved = True

    def flush(self) -> None:
        """Write what was appended; it is on the disk when this returns. Nothing to write costs nothing.

        Raises OSError where it cannot be written; then it stays for the next time.
        """
        with self._writing:
            with self._lock:
                if not self._unsaved:
                    return
                count, content = len(self._lines), b"".join(self._lines)
                self._unsaved = False
            try:
                self._folder.write_bytes(self._file, content)
            except BaseException:
                self._unsaved = True
                raise
            if len(content) > SEGMENT_BYTES:
                with self._lock:
                    self._number += 1
                    del self._lines[:count]

    def events(self) -> list[dict[str, Any]]:
        """All events in their order, those not flushed yet included."""
        before = self._read(name for name in self._files() if name < self._file)
        return _standing([*before, *self._lines])

    @property
    def _file(self) -> str:
        return f"events-{self._driver:04d}-{self._number:06d}.jsonl"

    def _files(self) -> list[str]:
        return sorted(name for name in self._folder.names() if _NAME.fullmatch(name))

    def _read(self, names: Iterable[str]) -> list[bytes]:
        return [line for name in names for line in self._folder.read_bytes(name).splitlines()]


def _standing(lines: Iterable[bytes]) -> list[dict[str, Any]]:
    """The events in these lines, but for those that no later driver knew of."""
    events: list[dict[str, Any]] = []
    for event in map(json.loads, lines):
        if _STANDING in event:
            del events[event[_STANDING] :]
        else:
            events.append(event)
    return events


def _line(event: Mapping[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode() + b"\n"
