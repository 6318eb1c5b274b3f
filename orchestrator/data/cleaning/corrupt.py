"""Records that cannot be read and images that cannot be decoded: kept in a log, checked against the share that
may be skipped, listed in a file. Imports: the standard library only."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from orchestrator.errors import DataError

LISTED = 10_000
"""How many records a log holds at most; all are counted."""


@dataclass(frozen=True)
class CorruptRecord:
    """One record that is skipped: the row, counted from 0 in the source, where it is known; the file; and why."""

    row: int | None
    path: str
    reason: str

    def __str__(self) -> str:
        if self.row is None:
            return f"{self.path}: {self.reason}"
        return f"row {self.row}{f' ({self.path})' if self.path else ''}: {self.reason}"

    def moved(self, rows: int) -> CorruptRecord:
        """The same record, counted from so many rows earlier."""
        return self if self.row is None else replace(self, row=self.row + rows)


@dataclass(frozen=True)
class CorruptLog:
    """The corrupt records among `seen` ones: their number, and the first LISTED of them."""

    seen: int = 0
    count: int = 0
    records: tuple[CorruptRecord, ...] = ()

    @classmethod
    def of(cls, seen: int, records: Iterable[CorruptRecord]) -> CorruptLog:
        """Of one chunk of so many records, good ones and corrupt ones."""
        found = tuple(records)
        return cls(seen, len(found), found[:LISTED])

    def require_share(self, allowed: float, what: str = "records") -> None:
        """Raises DataError where more than the allowed share of all is corrupt, or everything is; `what` says
        what they are, as in `3 of 40 images`."""
        if self.count == 0 or (self.count < self.seen and self.count <= allowed * self.seen):
            return
        shown = "; ".join(str(record) for record in self.records[:3])
        raise DataError(
            f"{self.count} of {self.seen} {what} cannot be read, and data.max_corrupt_share is {allowed:g}: "
            f"{shown}{'; …' if self.count > 3 else ''}",
            f"replace these {what}, or allow a share of them to be skipped",
        )

    def write(self, file: Path) -> None:
        """A CSV file with the columns path, row and reason; the last line says how many more there are."""
        with file.open("w", newline="", encoding="utf-8") as out:
            writer = csv.writer(out)
            writer.writerow(["path", "row", "reason"])
            writer.writerows([record.path, record.row, record.reason] for record in self.records)
            if self.count > len(self.records):
                writer.writerow(["", "", f"and {self.count - len(self.records)} more"])


def merge_logs(logs: Iterable[CorruptLog]) -> CorruptLog:
    """The logs of all chunks, in their order."""
    seen, count, records = 0, 0, ()  # type: int, int, tuple[CorruptRecord, ...]
    for log in logs:
        seen, count = seen + log.seen, count + log.count
        records = (*records, *log.records[: LISTED - len(records)])
    return CorruptLog(seen, count, records)
