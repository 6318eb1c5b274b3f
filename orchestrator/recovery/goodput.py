"""Goodput: which share of a run's time went into steps that counted, and where the rest went.

A `Ledger` notes what the driver sees of each attempt; the figures are worked out from these notes. All of a run's
drivers continue one ledger. The caller gives the time: seconds of a clock that never jumps. The clock on the wall
serves only to say for how long a run had no driver. Imports: records, errors, wording.
"""

from __future__ import annotations

import statistics
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, TypeVar

from orchestrator.errors import Cause
from orchestrator.records import Progress
from orchestrator.recovery.timeline import (
    PLANNED,
    AttemptNotes,
    DriverNotes,
    absence,
    restarts,
    split,
    wasted_steps,
)
from orchestrator.wording import counted

_Notes = TypeVar("_Notes", AttemptNotes, DriverNotes)
_WORTH_SHARE, _WORTH_S = 0.05, 1.0


@dataclass(frozen=True)
class Account:
    """What a ledger comes to: the figures, one line on them (or none), and the attempts as rows of a table."""

    figures: Mapping[str, float] = field(default_factory=dict)
    summary: str = ""
    attempts: Sequence[Mapping[str, Any]] = ()


class Ledger:
    """The time of one run, over all its attempts and drivers. Thread-safe.

    `earlier` is what `to_dict` gave an earlier driver of the run; what cannot be read of it is as good as absent.
    An attempt that it left open ended with that driver. `began_s` is when this driver began, by the clock that all
    `now_s` are read from, and `time_s` the same moment in seconds since the epoch.
    """

    def __init__(self, earlier: Mapping[str, Any] | None = None, *, began_s: float, time_s: float) -> None:
        self._lock = threading.Lock()
        self._began_s = began_s
        self._drivers = _read(DriverNotes, (earlier or {}).get("drivers"))
        self._attempts = [
            note
            for note in _read(AttemptNotes, (earlier or {}).get("attempts"))
            if note.driver < len(self._drivers)
        ]
        for index, note in enumerate(self._attempts):
            if note.ended_s is None:
                died_s = max(note.heard_s, self._drivers[note.driver].seconds)
                self._attempts[index] = replace(
                    note, fault_s=died_s, ended_s=died_s, cause="control plane", ended="driver lost"
                )
        self._drivers.append(DriverNotes(time_s))

    def attempt_began(self, attempt: int, now_s: float, *, world_size: int = 0) -> None:
        """Open an attempt. Nothing happens where it is open already, but that its world size may be told now.

        One that is still open is closed as lost: nobody said how it ended.
        """
        with self._lock:
            passed_s = self._pass(now_s)
            newest = self._attempts[-1] if self._attempts else None
            if newest is not None and newest.number >= attempt:
                if newest.number == attempt and world_size and newest.ended_s is None:
                    self._attempts[-1] = replace(newest, world_size=world_size)
                return
            if newest is not None and newest.ended_s is None:
                self._end(passed_s, "hardware", "lost", None)
            driver = len(self._drivers) - 1
            self._attempts.append(AttemptNotes(attempt, driver, passed_s, passed_s, world_size))

    def progress(self, progress: Progress, now_s: float) -> None:
        """Note how far the open attempt is; nothing happens where none is open."""
        with self._lock:
            passed_s = self._pass(now_s)
            if self._attempts and self._attempts[-1].ended_s is None:
                self._attempts[-1] = _heard(self._attempts[-1], progress, passed_s)

    def attempt_ended(
        self, cause: Cause | None, now_s: float, *, how: str = "", fault_s: float | None = None
    ) -> None:
        """Close the open attempt: by a fault of this cause, or well (completed, stopped, resized).

        `how` says it in a few words. `fault_s` is when the fault happened, by the same clock as `now_s`; where it
        is not known, the fault is taken to have followed the last progress.
        """
        with self._lock:
            passed_s = self._pass(now_s)
            if self._attempts and self._attempts[-1].ended_s is None:
                self._end(passed_s, cause, how, None if fault_s is None else fault_s - self._began_s)

    def figures(self, now_s: float) -> dict[str, float]:
        """The figures up to now, by their names in the tracking. What did not occur is left out."""
        with self._lock:
            self._pass(now_s)
            drivers, attempts = list(self._drivers), list(self._attempts)
        parts = split(drivers, attempts)
        seconds = sum(driver.seconds for driver in drivers)
        figures = {
            "share": parts.steps / seconds if seconds else 0.0,
            "seconds": seconds,
            "restarts": float(len(restarts(attempts))),
            "step_seconds": parts.steps,
            "startup_seconds": parts.startup,
            "checkpoint_stall_seconds": parts.stall,
            "wasted_steps": float(parts.wasted_steps),
            "wasted_seconds": parts.wasted,
            "recovery_seconds": sum(parts.recovery.values()),
            "other_seconds": parts.other,
        }
        if parts.outages:
            figures["recovery_median_seconds"] = statistics.median(parts.outages)
            figures["recovery_max_seconds"] = max(parts.outages)
        if (absent_s := absence(drivers)) > 0:
            figures["absent_seconds"] = absent_s
        for cause in sorted(parts.recovery.keys() | parts.wasted_by.keys()):
            lost_s = parts.recovery.get(cause, 0.0) + parts.wasted_by.get(cause, 0.0)
            figures[f"lost_by/{cause.replace(' ', '_')}"] = lost_s
        return {f"goodput/{name}": value for name, value in figures.items()}

    def summary(self, now_s: float) -> str:
        """One line, as `93%: 2 restarts (worker killed, node lost), 12 steps repeated, 14 s to recover`.

        Empty where there was neither a restart nor a stall worth naming.
        """
        figures = self.figures(now_s)
        with self._lock:
            mended = restarts(self._attempts)
            outages = split(self._drivers, self._attempts).outages
        stall_s = figures["goodput/checkpoint_stall_seconds"]
        told = []
        if mended:
            causes = Counter(note.ended or note.cause or PLANNED for note in mended)
            kinds = ", ".join(how if count == 1 else f"{count} × {how}" for how, count in causes.items())
            told.append(f"{counted(len(mended), 'restart')} ({kinds})")
        if figures["goodput/wasted_steps"]:
            told.append(f"{counted(round(figures['goodput/wasted_steps']), 'step')} repeated")
        if len(outages) == 1:
            told.append(f"{_seconds(outages[0])} to recover")
        elif outages:
            told.append(
                f"{_seconds(statistics.median(outages))} to recover (at most {_seconds(max(outages))})"
            )
        if stall_s >= _WORTH_S and stall_s >= _WORTH_SHARE * figures["goodput/seconds"]:
            told.append(f"{_seconds(stall_s)} waiting for checkpoints")
        return f"{figures['goodput/share']:.0%}: {', '.join(told)}" if told else ""

    def attempts(self) -> list[dict[str, Any]]:
        """The attempts as rows of a table: number, workers, steps, how each ended, seconds."""
        with self._lock:
            notes, drivers = list(self._attempts), list(self._drivers)
        rows = []
        for note, repeated in zip(notes, wasted_steps(notes), strict=True):
            until_s = drivers[note.driver].seconds if note.ended_s is None else note.ended_s
            rows.append(
                {
                    "attempt": note.number,
                    "world_size": note.world_size or None,
                    "from_step": note.started_step,
                    "to_step": note.step,
                    "repeated_steps": repeated,
                    "ended": note.ended or ("running" if note.ended_s is None else note.cause or "ended"),
                    "cause": note.cause or None,
                    "seconds": round(until_s - note.began_s, 3),
                }
            )
        return rows

    def account(self, now_s: float) -> Account:
        return Account(self.figures(now_s), self.summary(now_s), self.attempts())

    def to_dict(self, now_s: float) -> dict[str, Any]:
        """The ledger up to now as plain values, for a later driver."""
        with self._lock:
            self._pass(now_s)
            return {
                "drivers": [asdict(driver) for driver in self._drivers],
                "attempts": [asdict(note) for note in self._attempts],
            }

    def _pass(self, now_s: float) -> float:
        """Let time pass up to now; seconds since this driver began."""
        driver = self._drivers[-1]
        self._drivers[-1] = replace(driver, seconds=max(driver.seconds, now_s - self._began_s))
        return self._drivers[-1].seconds

    def _end(self, passed_s: float, cause: str | None, how: str, fault_s: float | None) -> None:
        note = self._attempts[-1]
        if cause is not None:
            fault_s = note.heard_s if fault_s is None else min(max(fault_s, note.heard_s), passed_s)
        self._attempts[-1] = replace(
            note,
            ended_s=passed_s,
            fault_s=fault_s if cause is not None else None,
            cause=cause or "",
            ended=how or cause or "",
        )


def _heard(note: AttemptNotes, progress: Progress, passed_s: float) -> AttemptNotes:
    """The notes with what an attempt told."""
    if progress.phase == "starting" or (progress.phase == "finishing" and not progress.step_seconds):
        return replace(note, heard_s=passed_s)  # it tells no steps
    started_step, step_seconds = progress.started_step, progress.step_seconds
    if progress.step > started_step and not step_seconds:
        # A train function of the user's own does not say where it began and how long its steps took.
        begun = note.first_step_s is not None
        started_step = note.started_step if begun else progress.step
        step_seconds = note.step_seconds + (passed_s - note.heard_s if begun else 0.0)
    first_step_s = note.first_step_s
    if first_step_s is None and progress.step > progress.started_step:
        first_step_s = passed_s - step_seconds - progress.stall_s
    return replace(
        note,
        heard_s=passed_s,
        started_step=started_step,
        step=max(note.step, progress.step),
        saved_step=max(note.saved_step, progress.saved_step),
        step_seconds=max(note.step_seconds, step_seconds),
        stall_s=max(note.stall_s, progress.stall_s),
        first_step_s=first_step_s,
    )


def _read(kind: type[_Notes], rows: object) -> list[_Notes]:
    known = {item.name for item in fields(kind)}
    try:
        return [kind(**{key: row[key] for key in row if key in known}) for row in rows or ()]  # type: ignore[attr-defined]
    except TypeError:
        return []


def _seconds(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:,.0f} s"
