"""A run as plain facts to print. Imports: runs, records, the standard library."""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any, Literal

from orchestrator.runs.claim import live_claim
from orchestrator.runs.folder import RunFolder

State = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED", "DEAD"]
ENDED: frozenset[State] = frozenset({"SUCCEEDED", "FAILED", "STOPPED", "DEAD"})


def run_state(run: RunFolder, now_s: float) -> State:
    """PENDING: a driver is at work but has no progress to tell yet. DEAD: it went without a verdict."""
    verdict = run.read_verdict()
    if verdict is not None and verdict.status != "RUNNING":
        return verdict.status
    claim = live_claim(run, now_s)
    if claim is None:
        return "DEAD"
    beat = run.read_beat()
    return "RUNNING" if beat and beat.claim == claim.number and beat.progress else "PENDING"


def describe_run(run: RunFolder) -> dict[str, Any]:
    """What `list` and `status` show, JSON-able; keys that do not apply are None.

    `progress` and `verdict` have the fields of these records, `started_s` is in seconds since the epoch,
    `duration_s` lasts from there to the last sign of life, `metrics` are the figures under `best/`, `test/`.
    """
    now_s = time.time()
    state = run_state(run, now_s)
    record, beat, verdict = run.read_record(), run.read_beat(), run.read_verdict()
    progress = beat.progress if beat else None
    started_s = record.created_s if record else None
    until_s = now_s if state not in ENDED else beat.time_s if beat else started_s or now_s
    metrics = dict((run.read_result() or {}).get("metrics") or {}) | dict(verdict.metrics if verdict else {})
    return {
        "name": run.label,
        "state": state,
        "progress": asdict(progress) if progress else None,
        "eta_s": progress.eta_s if progress and state == "RUNNING" else None,
        "metrics": {key: value for key, value in metrics.items() if key.startswith(("best/", "test/"))},
        "verdict": verdict.to_dict() if verdict else None,
        "started_s": started_s,
        "duration_s": max(0.0, until_s - started_s) if started_s else None,
        "attempts": record.attempts if record else 0,
        "mlflow_run_id": record.mlflow_run_id if record else None,
        "tracking_uri": record.tracking_uri if record else None,
        "folder": run.folder.uri,
    }
