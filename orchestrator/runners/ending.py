"""What must be written when a run ends, on a storage that may be full or gone: a run that is done stays done, and
what could not be written is said. Imports: runs, checkpoints.patience.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator

from orchestrator.checkpoints.patience import PAUSES_S, patiently, room_may_come
from orchestrator.errors import OrchestratorError
from orchestrator.records import Verdict
from orchestrator.runs.claim import Claim, release_claim
from orchestrator.runs.folder import RunFolder

_log = logging.getLogger(__name__)
_PAUSES_S = PAUSES_S


def _last_words(action: Callable[[], None], what: str) -> None:
    """Write what is written once, at the end: a disk that is full is waited for, as it may be what ended the run."""
    patiently(action, what, _PAUSES_S, passes=room_may_come)


def write_verdict(run: RunFolder, verdict: Verdict, say: Callable[[str], None]) -> None:
    """Write a run's last word, trying for a while."""
    try:
        _last_words(lambda: run.write_verdict(verdict), f"writing the verdict of {run.label}")
    except OSError as error:
        say(
            f"the verdict of {run.label} could not be written to {run.folder.uri}: {error}; running the job again "
            "goes on from the last checkpoint"
        )


def write_record(run: RunFolder, keep: Callable[[], None], say: Callable[[str], None]) -> None:
    """Bring `run.json` and what stands beside it up to date by `keep`, trying for a while."""
    try:
        _last_words(keep, f"writing the record of {run.label}")
    except OSError as error:
        say(f"the record of {run.label} could not be written to {run.folder.uri}: {error}")


def let_go(run: RunFolder, claim: Claim) -> None:
    """Release the claim. Where that cannot be written, it holds until this process has ended."""
    try:
        patiently(lambda: release_claim(run, claim), f"releasing {run.label}")
    except OSError as error:
        _log.warning("%s could not be released: %s", run.label, error)


@contextlib.contextmanager
def on_storage(run: RunFolder) -> Iterator[None]:
    """Say plainly that a run cannot begin because its folder cannot be written. Raises OrchestratorError."""
    try:
        yield
    except OSError as error:
        raise OrchestratorError(
            f"{run.label} cannot begin, as {run.folder.uri} cannot be read or written: {error}",
            "run again when the storage is there and has room: it goes on with this run",
        ) from error
