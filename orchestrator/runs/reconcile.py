"""Close the books on runs whose driver died without a verdict.

Imports: runs, records, the standard library. Tracking comes in as a function.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from orchestrator.records import Verdict
from orchestrator.runs.claim import live_claim, newest_claim, release_claim, take_claim
from orchestrator.runs.folder import RunFolder, list_runs
from orchestrator.storage import Folder

_log = logging.getLogger(__name__)


def reconcile(storage: Folder, mark_dead: Callable[[RunFolder, Verdict], None]) -> list[RunFolder]:
    """Give every dead run without a verdict the verdict FAILED; returns those runs.

    `mark_dead` records it in the tracking (and ships what the dead driver left in its journal). The verdict
    is written after it, so where it raises, the next reconcile calls it again for the same run. A run that
    a driver holds, or takes meanwhile, is not touched.
    """
    return [run for run in list_runs(storage) if _close(run, mark_dead)]


def _close(run: RunFolder, mark_dead: Callable[[RunFolder, Verdict], None]) -> bool:
    now_s = time.time()
    if run.read_verdict() is not None or live_claim(run, now_s) is not None:
        return False
    verdict = _verdict(run)
    claim = take_claim(run, now_s)
    if claim is None:
        return False
    try:
        if run.read_verdict() is not None:
            return False
        try:
            mark_dead(run, verdict)
        except Exception as error:  # noqa: BLE001 - one run's tracking must not keep the others from their verdict
            _log.warning("%s is dead, but could not be marked so in the tracking: %s", run.label, error)
            return False
        run.write_verdict(verdict)
        return True
    finally:
        release_claim(run, claim)


def _verdict(run: RunFolder) -> Verdict:
    beat, claim, record = run.read_beat(), newest_claim(run), run.read_record()
    signs_s = [
        beat.time_s if beat else 0.0,
        claim.since_s if claim else 0.0,
        record.created_s if record else 0.0,
    ]
    died = datetime.fromtimestamp(max(signs_s), UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    reached = f" (it had reached step {beat.progress.step})" if beat and beat.progress else ""
    return Verdict(
        status="FAILED",
        exit_code=1,
        reason=f"the driver died at {died}",
        cause="control plane",
        mend=f"run again: it resumes from its last checkpoint{reached}",
    )
