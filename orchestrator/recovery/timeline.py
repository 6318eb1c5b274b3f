"""The notes on a run's attempts and drivers, and what they say about where its time went: pure functions.

Imports: the standard library.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

PLANNED = "resize"
"""What a restart is put down to that was no fault."""
UNSAVED = "not saved"
"""What steps are put down to that a later driver repeats, where no fault is known."""


@dataclass(frozen=True, slots=True)
class AttemptNotes:
    """One attempt as its driver saw it. Times are in seconds since that driver began."""

    number: int
    driver: int
    """Counts the run's drivers from 0."""
    began_s: float
    heard_s: float
    """When it last told how far it was."""
    world_size: int = 0
    started_step: int = 0
    step: int = 0
    saved_step: int = 0
    step_seconds: float = 0.0
    stall_s: float = 0.0
    first_step_s: float | None = None
    """When its first step began."""
    fault_s: float | None = None
    ended_s: float | None = None
    cause: str = ""
    """Of the fault that ended it; empty where none did."""
    ended: str = ""
    """How it ended, in words."""


@dataclass(frozen=True, slots=True)
class DriverNotes:
    """One driver: when it began (seconds since the epoch) and how long it has been at work."""

    began_time_s: float
    seconds: float = 0.0


@dataclass
class Parts:
    """Seconds of a run by what they were spent on. `recovery` is by cause, `outages` in order."""

    steps: float = 0.0
    wasted: float = 0.0
    stall: float = 0.0
    startup: float = 0.0
    other: float = 0.0
    recovery: dict[str, float] = field(default_factory=dict)
    wasted_by: dict[str, float] = field(default_factory=dict)
    wasted_steps: int = 0
    outages: list[float] = field(default_factory=list)
    """From a fault to the first step after it. An attempt that fails before its first step prolongs one."""


def split(drivers: Sequence[DriverNotes], attempts: Sequence[AttemptNotes]) -> Parts:
    """What the time of the drivers was spent on; all parts together are the drivers' seconds."""
    parts = Parts()
    wasted = dict(zip((note.number for note in attempts), wasted_steps(attempts), strict=True))
    open_cause, outage_s = "", 0.0
    for index, driver in enumerate(drivers):
        at_s = 0.0  # up to where this driver's time is told
        for note, following in _with_next(attempts):
            if note.driver != index:
                continue
            until_s = _until(note, driver)
            begun_s = until_s if note.first_step_s is None else min(max(note.first_step_s, at_s), until_s)
            outage_s += _wait(parts, open_cause, begun_s - at_s)
            if note.first_step_s is not None:
                if open_cause:
                    parts.outages.append(outage_s)
                    open_cause, outage_s = "", 0.0
                _work(parts, note, until_s - begun_s, wasted[note.number], following)
            if note.cause:
                open_cause = note.cause
            elif following is not None and following.driver == index:
                open_cause = open_cause or PLANNED
            elif note.ended_s is not None:
                open_cause, outage_s = "", 0.0  # it ended well: what follows is another beginning
            at_s = until_s
        rest_s = driver.seconds - at_s
        if any(note.driver == index for note in attempts) and not open_cause:
            parts.other += rest_s
        else:
            outage_s += _wait(parts, open_cause, rest_s)
    return parts


def _with_next(attempts: Sequence[AttemptNotes]) -> Iterator[tuple[AttemptNotes, AttemptNotes | None]]:
    for index, note in enumerate(attempts):
        yield note, attempts[index + 1] if index + 1 < len(attempts) else None


def _until(note: AttemptNotes, driver: DriverNotes) -> float:
    """When an attempt's work was over: at its fault, at its end, or not yet."""
    over_s = note.fault_s if note.cause else note.ended_s
    return driver.seconds if over_s is None else min(over_s, driver.seconds)


def _wait(parts: Parts, cause: str, seconds: float) -> float:
    """Put time without steps down to the fault that is not mended yet, else to the start; the seconds of an outage."""
    if not cause:
        parts.startup += seconds
        return 0.0
    parts.recovery[cause] = parts.recovery.get(cause, 0.0) + seconds
    return seconds


def _work(
    parts: Parts, note: AttemptNotes, seconds: float, repeated: int, following: AttemptNotes | None
) -> None:
    """Divide the time from an attempt's first step on. The worker's own clock may not tell more than there was."""
    steps_s = min(note.step_seconds, seconds)
    stall_s = min(note.stall_s, seconds - steps_s)
    done = note.step - note.started_step
    wasted_s = steps_s * repeated / done if done > 0 else 0.0
    parts.steps += steps_s - wasted_s
    parts.wasted += wasted_s
    parts.stall += stall_s
    parts.other += seconds - steps_s - stall_s
    if repeated:
        # Steps of an attempt that no fault ended: it had no time to save them, or the checkpoint was damaged.
        planned = following is not None and following.driver == note.driver
        cause = note.cause or (PLANNED if planned else UNSAVED)
        parts.wasted_steps += repeated
        parts.wasted_by[cause] = parts.wasted_by.get(cause, 0.0) + wasted_s


def wasted_steps(attempts: Sequence[AttemptNotes]) -> list[int]:
    """Of each attempt, the steps that did not count, since a later attempt began before them.

    Where no later one has told yet where it began, a failed attempt keeps what it had saved.
    """
    counted: list[int] = []
    kept_step: int | None = None  # what later attempts left standing
    for note in reversed(attempts):
        keep = kept_step
        if keep is None and note.cause:
            keep = max(note.saved_step, note.started_step)
        counted.append(0 if keep is None else max(0, note.step - max(note.started_step, keep)))
        if note.first_step_s is not None:
            kept_step = note.started_step if kept_step is None else min(kept_step, note.started_step)
    return counted[::-1]


def restarts(attempts: Sequence[AttemptNotes]) -> list[AttemptNotes]:
    """The attempts after which another one had to begin; going on after a stop is none."""
    return [
        note
        for note, following in _with_next(attempts)
        if following is not None and (note.cause or following.driver == note.driver)
    ]


def absence(drivers: Sequence[DriverNotes]) -> float:
    """Seconds without a driver, as far as the clock on the wall can be trusted."""
    return sum(
        max(0.0, after.began_time_s - before.began_time_s - before.seconds)
        for before, after in itertools.pairwise(drivers)
    )
