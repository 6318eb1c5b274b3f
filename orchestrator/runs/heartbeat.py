"""The driver's sign of life: a thread that writes `heartbeat.json` and watches for requests to stop.

Imports: runs.claim, runs.folder, records, the standard library.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType

from orchestrator.records import Progress
from orchestrator.runs.claim import Claim, holds, lives, newest_claim
from orchestrator.runs.folder import Beat, RunFolder

_log = logging.getLogger(__name__)
INTERVAL_S = 2.0


def is_alive(run: RunFolder, now_s: float) -> bool:
    """Whether a driver may be at work on the run: only a released claim, or a process that is gone, say no."""
    newest = newest_claim(run)
    return newest is not None and lives(run, newest, now_s) is not False


class Heartbeat:
    """Writes a beat every `interval_s` seconds between `start` and `stop`; also a context manager.

    `progress` is asked for the run's progress at each beat. `on_stop` is called at most once, from the
    thread, with the reason: someone asked the run to stop, or another driver has taken it over (then `lost`
    is True and the run's folder must not be written to any more). Faults of the storage are logged once and
    survived.
    `attempt` may be set at any time and is written with the next beat. So may `keep`: it is called with each beat,
    by the thread, as long as this driver holds the run, and may raise OSError.
    """

    def __init__(
        self,
        run: RunFolder,
        claim: Claim,
        progress: Callable[[], Progress | None],
        on_stop: Callable[[str], None],
        *,
        attempt: int = 1,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self.attempt = attempt
        self.keep: Callable[[], None] | None = None
        self.lost = False
        self._run = run
        self._claim = claim
        self._progress = progress
        self._on_stop = on_stop
        self._interval_s = interval_s
        self._count = 0
        self._told = False
        self._troubled = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat_on, name="heartbeat", daemon=True)

    def start(self) -> Heartbeat:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Write a last beat and end. It does not release the claim."""
        self._end.set()
        if self._thread.is_alive():
            self._thread.join()

    def __enter__(self) -> Heartbeat:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _beat_on(self) -> None:
        ending = False
        while not ending:
            self._beat()
            ending = self._end.wait(self._interval_s)
        self._beat()

    def _beat(self) -> None:
        if self.lost:
            return
        try:
            if not holds(self._run, self._claim):
                self.lost = True
                self._tell("another driver has taken over this run")
                return
            self._count += 1
            self._run.write_beat(
                Beat(
                    time_s=time.time(),
                    host=socket.gethostname(),
                    pid=os.getpid(),
                    claim=self._claim.number,
                    count=self._count,
                    attempt=self.attempt,
                    progress=self._progress(),
                )
            )
            if self._run.stop_requested():
                self._tell("stop requested")
            if self.keep is not None:
                self.keep()
            self._troubled = False
        except Exception as error:  # noqa: BLE001 - a driver whose heart stopped would be replaced while it lives
            if not self._troubled:
                _log.warning(
                    "the heartbeat of %s cannot be written: %s: %s",
                    self._run.label,
                    type(error).__name__,
                    error,
                )
            self._troubled = True

    def _tell(self, reason: str) -> None:
        if not self._told:
            self._told = True
            self._on_stop(reason)
