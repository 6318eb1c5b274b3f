"""The entries of a journal, put together into as few calls of the sink as mean the same.

The operations of one run stay in their order, but for metrics, tags and params between two others; those of different
runs have nothing to do with each other, so that the reports of many trials at once still make large batches.
Imports: ops, journal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.tracking.journal import Entry
from orchestrator.tracking.ops import LogMetrics, LogParams, Op, SetTags

MAX_POINTS = 1000
"""Points in one call: MLflow's own limit."""
MAX_PAIRS = 100
"""Tags, or params, in one call: MLflow's own limit."""


_UNORDERED = (LogMetrics, SetTags, LogParams)
"""Operations of one run that have nothing to do with those of the other two kinds."""


@dataclass(slots=True)
class Batch:
    """One call of the sink. `start` is the offset of its first entry: once all batches before this one were shipped,
    so was everything that stands before it. `op` is None for a damaged line."""

    op: Op | None
    child: str
    start: int


def batches(entries: Iterable[Entry]) -> list[Batch]:
    """The entries as calls, in the order of their first entries; `start` rises from one to the next."""
    made: list[Batch] = []
    open_batches: dict[tuple[str, type], Batch] = {}
    for entry in entries:
        kind = type(entry.op)
        last = open_batches.get((entry.child, kind))
        together = _together(last.op, entry.op) if last is not None else None
        if last is not None and together is not None:
            last.op = together
            continue
        batch = Batch(entry.op, entry.child, entry.start)
        made.append(batch)
        if kind in _UNORDERED:
            open_batches[entry.child, kind] = batch
        elif entry.op is not None:  # what comes after it must not come before it
            for other in _UNORDERED:
                open_batches.pop((entry.child, other), None)
    return made


def _together(first: Op | None, second: Op | None) -> Op | None:
    """One operation that does what two do, one after the other; None where there is none."""
    match first, second:
        case LogMetrics(), LogMetrics():
            points = len(first.points) + len(second.points)
            return LogMetrics(first.points + second.points) if points <= MAX_POINTS else None
        case SetTags(), SetTags():
            tags = _joined(first.tags, second.tags)
            return SetTags(tags) if tags else None
        case LogParams(), LogParams() if not first.params.keys() & second.params.keys():
            params = _joined(first.params, second.params)
            return LogParams(params) if params else None
    return None


def _joined(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str] | None:
    joined = {**first, **second}
    return joined if len(joined) <= MAX_PAIRS else None
