"""A run as plain facts to print. Imports: runs, records, the standard library."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal

from orchestrator.runs.claim import WATCH_S, lives, newest_claim, signs
from orchestrator.runs.folder import RunFolder

State = Literal["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED", "DEAD"]
ENDED: frozenset[State] = frozenset({"SUCCEEDED", "FAILED", "STOPPED", "DEAD"})


def run_state(run: RunFolder, now_s: float) -> State:
    """PENDING: a driver is at work but has no progress to tell yet. DEAD: it went without a verdict.

    From one look, which takes a driver on another machine for dead whose last sign of life is not of this time
    by this machine's clock: `Onlooker` looks twice.
    """
    state, sure = _look(run, now_s)
    return state if sure else "DEAD"


class Onlooker:
    """Follows a run's state, and trusts no clock: a driver on another machine counts as dead once it has given
    no sign of life for some seconds of our own.

    `wall` is the time in seconds since the epoch, `steady` one that only goes on.
    """

    def __init__(
        self,
        run: RunFolder,
        *,
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run = run
        self._wall = wall
        self._steady = steady
        self._signs: object = None
        self._moved_s = steady()

    def state(self) -> State:
        """As `run_state`; a driver whose clock is not ours counts as alive until it was watched long enough."""
        state, sure = _look(self._run, self._wall())
        found = signs(self._run)
        if found != self._signs:
            self._signs, self._moved_s = found, self._steady()
        return state if sure or self._steady() - self._moved_s < WATCH_S else "DEAD"


def _look(run: RunFolder, now_s: float) -> tuple[State, bool]:
    """The state, and whether one look is enough to know it: where not, it holds if the driver is alive."""
    verdict = run.read_verdict()
    if verdict is not None and verdict.status != "RUNNING":
        return verdict.status, True
    claim = newest_claim(run)
    alive = claim is not None and lives(run, claim, now_s)
    if claim is None or alive is False:
        return "DEAD", True
    beat = run.read_beat()
    told = (
        beat is not None
        and beat.claim == claim.number
        and (beat.progress is not None or bool(run.read_search()))
    )
    return "RUNNING" if told else "PENDING", alive is not None


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
