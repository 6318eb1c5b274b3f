"""Whether a failed attempt is tried again, and when: one budget for each cause.

A budget counts the failures since the newest committed checkpoint last moved on. A run that makes progress between
its failures can go on for ever; one that fails again and again at the same place soon ends. Imports: errors, spec.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.errors import Cause
from orchestrator.spec.cluster import FailureSection


@dataclass(frozen=True)
class Lost:
    """One failed attempt, reduced to its culprit.

    `node` is Ray's node id, empty where it is not known. `time_s` is seconds since the epoch. `saved_step` is that
    of the newest committed checkpoint, 0 without one. `final`: the worker itself knows that no retry can help.
    """

    cause: Cause
    rank: int | None
    node: str
    exit_code: int | None
    reason: str
    time_s: float
    saved_step: int
    final: bool = False


@dataclass(frozen=True)
class Retry:
    """Try again after `after_s` seconds; `why` is a sentence for the user."""

    after_s: float
    why: str


@dataclass(frozen=True)
class GiveUp:
    """End the run. `why` goes behind the culprit's reason in the verdict, `mend` names the field to raise."""

    why: str
    mend: str = ""


@dataclass(frozen=True)
class _Budget:
    """A field of the `failure` section, and the causes that it counts."""

    field: str
    causes: frozenset[Cause]


_BUDGETS = (
    _Budget("max_failures", frozenset({"hardware", "internal"})),
    _Budget("max_preemption_failures", frozenset({"preemption"})),
    _Budget("max_control_plane_failures", frozenset({"control plane"})),
    _Budget("max_out_of_memory_failures", frozenset({"out of memory"})),
    _Budget("max_data_failures", frozenset({"data"})),
)
_NEVER: dict[Cause, str] = {
    "user error": "an error of the job's own code or settings is not retried",
    "time limit": "a run that has reached its time limit is not retried",
}


def decide(section: FailureSection, lost: Sequence[Lost]) -> Retry | GiveUp:
    """What to do after the newest failure.

    `lost` is the whole history of this run's attempts, the newest last; it must not be empty.

    A worker that ended with one of `recover_on_exit_codes` is retried whatever its cause, and is not counted. User
    errors, the time limit and what is `final` are never retried. All else is retried until its budget is spent.
    """
    newest, row = lost[-1], _since_progress(lost)
    after_s = backoff_s(section, len(row))
    soon = f"trying again in {after_s:g} s" if after_s else "trying again at once"
    if _uncounted(section, newest):
        return Retry(after_s, f"{soon}: exit code {newest.exit_code} is one of failure.recover_on_exit_codes")
    if newest.cause in _NEVER:
        return GiveUp(_NEVER[newest.cause])
    if newest.final:
        return GiveUp("another attempt would meet it again")
    budget = next(budget for budget in _BUDGETS if newest.cause in budget.causes)
    allowed: int = getattr(section, budget.field)
    spent = sum(one.cause in budget.causes and not _uncounted(section, one) for one in row)
    since = (
        f"since the checkpoint of step {newest.saved_step}" if newest.saved_step else "before any checkpoint"
    )
    if spent <= allowed:
        return Retry(after_s, f"{soon}: failure {spent} {since}, failure.{budget.field} allows {allowed}")
    if allowed == 0:
        return GiveUp(f"failure.{budget.field} is 0: no retry", f"raise failure.{budget.field}")
    causes = " or ".join(sorted(budget.causes & {one.cause for one in row}))
    return GiveUp(
        f"{spent} failures ({causes}) {since}, and failure.{budget.field} allows {allowed}",
        f"mend what failed and run again: it resumes; or raise failure.{budget.field}",
    )


def backoff_s(section: FailureSection, failures: int) -> float:
    """How long to wait after so many failures in a row: 0 after the first, then the first wait, doubled each time.

    Without jitter: one driver alone retries, and the same history gives the same decision.
    """
    if failures < 2:
        return 0.0
    # 2^64 s is beyond any wait; the bound only keeps the power finite.
    return min(section.initial_backoff * 2.0 ** min(failures - 2, 64), section.max_backoff)


def _since_progress(lost: Sequence[Lost]) -> Sequence[Lost]:
    """The failures since the newest checkpoint moved on beyond all before it, the newest failure included.

    A checkpoint that was damaged and is made again is no progress.
    """
    begin, furthest = 0, lost[0].saved_step
    for index, one in enumerate(lost):
        if one.saved_step > furthest:
            begin, furthest = index, one.saved_step
    return lost[begin:]


def _uncounted(section: FailureSection, one: Lost) -> bool:
    return one.exit_code is not None and one.exit_code in section.recover_on_exit_codes
