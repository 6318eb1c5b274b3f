"""From what happened to the last word on it: pure functions. Imports: no ray."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from orchestrator.errors import OrchestratorError
from orchestrator.records import Failure, Verdict

COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_LONGEST = 500
_HEADLINE = ("test/accuracy", "test/f1", "test/mse", "test/rmse", "test/r2", "best/val_loss")


def succeeded(metrics: Mapping[str, float], seconds: float) -> Verdict:
    shown = [f"{key} {metrics[key]:.4g}" for key in _HEADLINE if key in metrics][:2]
    return Verdict("SUCCEEDED", 0, f"{', '.join(shown) or 'done'} in {seconds:.0f} s", metrics=dict(metrics))


def stopped(why: str, exit_code: int, step: int, searched: str = "") -> Verdict:
    """`step` is that of the newest checkpoint, 0 without one; `searched` tells how far a search is, if there is one."""
    where = f"saved at step {step}" if step else searched
    return Verdict(
        "STOPPED",
        exit_code,
        f"{why}; {where}" if where else f"{why}, before the first step",
        mend="run the same command again: it goes on from there" if where else "",
    )


def failed(error: BaseException, failures: Sequence[Failure]) -> Verdict:
    """The verdict names the rank that failed first, not the last to notice.

    Where the error knows who it was, as that of a group of workers does, this counts (`error.failure`); else the first
    of the newest attempt's reports.
    """
    culprit: Failure | None = getattr(error, "failure", None)
    if culprit is None and failures:
        last = [failure for failure in failures if failure.attempt == max(f.attempt for f in failures)]
        culprit = min(last, key=lambda failure: failure.time_s)
    if culprit is not None:
        return Verdict(
            "FAILED",
            culprit.exit_code,
            culprit.error,
            cause=culprit.cause,
            rank=culprit.rank if culprit.rank >= 0 else None,
            mend=culprit.mend,
        )
    if isinstance(error, OrchestratorError):
        return Verdict("FAILED", error.exit_code, error.reason, cause=error.cause, mend=error.mend)
    return Verdict("FAILED", 1, f"{type(error).__name__}: {gist(str(error))}", cause="internal")


def as_failure(verdict: Verdict, failures: Sequence[Failure]) -> Failure:
    """The failure that a verdict speaks of: as it was reported, or what the verdict knows of it."""
    for failure in failures:
        if (failure.rank, failure.error, failure.cause) == (verdict.rank, verdict.reason, verdict.cause):
            return failure
    return Failure(
        rank=-1 if verdict.rank is None else verdict.rank,
        attempt=0,
        time_s=0.0,
        error=verdict.reason,
        cause=verdict.cause or "internal",
        mend=verdict.mend,
        exit_code=verdict.exit_code,
    )


def gist(text: str) -> str:
    """What a long message says, without colours; of a traceback that Ray passed on, its last line."""
    lines = [line.strip() for line in COLOUR.sub("", text).splitlines() if line.strip()]
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        lines = lines[-1:]
    joined = " ".join(" ".join(lines).split())
    return joined if len(joined) <= _LONGEST else joined[: _LONGEST - 1] + "…"
