"""Close the books on runs whose driver died without a verdict.

Imports: runs, records, the standard library. Tracking comes in as a function.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime

from orchestrator.records import Verdict
from orchestrator.runs.claim import Claim, lives, newest_claim, release_claim, silent, take_claim
from orchestrator.runs.folder import VERDICT_FILE, RunFolder, list_runs
from orchestrator.storage import Folder

_log = logging.getLogger(__name__)


def reconcile(
    storage: Folder,
    mark_dead: Callable[[RunFolder, Verdict], None],
    *,
    sleep: Callable[[float], None] = time.sleep,
) -> list[RunFolder]:
    """Give every dead run without a verdict the verdict FAILED; returns those runs.

    `mark_dead` records it in the tracking (and ships what the dead driver left in its journal). The verdict
    is written after it, so where it raises, the next reconcile calls it again for the same run. A run that
    a driver holds, or takes meanwhile, is not touched. Takes some seconds where drivers on other machines seem
    dead by the clock: they are watched.
    """
    now_s = time.time()
    open_runs = [run for run in list_runs(storage) if run.read_verdict() is None]
    claims = [(run, newest_claim(run)) for run in open_runs]
    alive = [(run, claim is not None and lives(run, claim, now_s)) for run, claim in claims]
    still = silent([run for run, lives_on in alive if lives_on is None], sleep)
    dead = [run for run, lives_on in alive if lives_on is False or run in still]
    return [run for run in dead if _close(run, now_s, mark_dead)]


def _close(run: RunFolder, now_s: float, mark_dead: Callable[[RunFolder, Verdict], None]) -> bool:
    verdict = _verdict(run)
    claim: Claim | None = None
    try:
        claim = take_claim(run, now_s, watched=True)
        if claim is None or run.folder.exists(VERDICT_FILE):  # one that cannot be read just now counts, too
            return False
        mark_dead(run, verdict)
        run.write_verdict(verdict)
        return True
    except Exception as error:  # noqa: BLE001 - one run's tracking must not keep the others from their verdict
        _log.warning("%s is dead, but could not be marked so: %s", run.label, error)
        return False
    finally:
        if claim is not None:
            _release(run, claim)


def _release(run: RunFolder, claim: Claim) -> None:
    try:
        release_claim(run, claim)
    except OSError as error:  # this process holds it no longer, and that counts once it has ended
        _log.warning("the claim on %s could not be released: %s", run.label, error)


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
