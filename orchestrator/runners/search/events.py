"""The events of a search, as its journal holds them: dicts that JSON can hold, made here and read back here.

Imports: records, runners.search.trial.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Literal

from orchestrator.records import EpochReport, Failure
from orchestrator.runners.search.trial import Decision, Ending, HandOver, Trial

Event = dict[str, Any]
EndedBy = Literal["time", "caller", "trials"]
"""What ended a search before its last trial: its time budget, whoever runs it, or what its trials came to."""


def made(trial: Trial, sampled: Mapping[str, Any]) -> Event:
    """A new trial: what the searcher suggested, and what it trains with."""
    return {"event": "made", "trial": trial.trial_id, "sampled": dict(sampled), "params": trial.params}


def started(trial: Trial, spent_s: float) -> Event:
    """It begins, or goes on; so many seconds of the time budget were spent by then."""
    return {"event": "started", "trial": trial.trial_id, "spent_s": spent_s}


def reported(trial: Trial, report: EpochReport, decision: Decision) -> Event:
    return {
        "event": "report",
        "trial": trial.trial_id,
        "epoch": report.epoch,
        "step": report.step,
        "metrics": {name: float(value) for name, value in report.metrics.items()},
        "seconds": report.seconds,
        "final": report.final,
        "decision": decision,
        "verdict": trial.verdict,
    }


def report_of(event: Mapping[str, Any]) -> EpochReport:
    return EpochReport(
        event["epoch"], event["step"], event["metrics"], event["seconds"], event.get("final", False)
    )


def ended(trial: Trial, how: Ending, failure: Failure | None) -> Event:
    """It has left its workers."""
    event: Event = {"event": "ended", "trial": trial.trial_id, "how": how}
    return event if failure is None else event | {"failure": asdict(failure)}


def failure_of(event: Mapping[str, Any]) -> Failure | None:
    failure = event.get("failure")
    return Failure(**failure) if failure else None


def pruned(trial: Trial) -> Event:
    """The scheduler gave it up while it was paused, or about to be."""
    return {"event": "pruned", "trial": trial.trial_id}


def exploited(trial: Trial, source: HandOver, sampled: Mapping[str, Any]) -> Event:
    """It goes on from another one's checkpoint, with these values."""
    return {
        "event": "exploited",
        "trial": trial.trial_id,
        "from": source.trial_id,
        "epoch": source.epoch,
        "sampled": dict(sampled),
        "params": trial.params,
    }


def search_ended(why: str, by: EndedBy, spent_s: float) -> Event:
    return {"event": "search ended", "why": why, "spent_s": spent_s, "by": by}
