"""What is written down about a run's attempts while it goes on: for later drivers, for MLflow, for whoever must find
out why one failed.

The driver tells a `Chronicle` what happens; nothing here waits for storage but `keep` and `close`.
Imports: runs, recovery, tracking (no mlflow itself). No ray.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from orchestrator.records import Failure, Point, Progress
from orchestrator.recovery.goodput import Account, Ledger
from orchestrator.runners.postmortem import write_postmortem
from orchestrator.runners.recording import ATTEMPTS_TAG, record_attempts, record_logs
from orchestrator.runs.folder import RunFolder
from orchestrator.tracking.recorder import Recorder

_log = logging.getLogger(__name__)
_KEEP_EVERY_S = 5.0
_PATIENCE_S = 30.0


class Chronicle:
    """One driver's account of a run. Thread-safe.

    `began_s` is when the driver began, by `clock`. `redact` takes the secrets out of a text.
    """

    def __init__(
        self,
        run: RunFolder,
        tracker: Recorder,
        redact: Callable[[str], str],
        *,
        began_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run, self._tracker, self._redact, self._clock = run, tracker, redact, clock
        age_s = clock() - began_s
        self._record = (
            run.read_record()
        )  # not read again: storage that is briefly gone would seem to have none
        self._ledger = Ledger(run.read_goodput(), began_s=began_s, time_s=time.time() - age_s)
        self._lock = threading.Lock()
        self._attempt = 0
        self._over = 0
        self._world_size = 0
        self._progress: Progress | None = None
        self._metrics: dict[str, float] = {}
        self._keeping = threading.Lock()
        self._kept_s: float | None = None
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._worker: threading.Thread | None = None

    def log_points(self, points: Sequence[Point]) -> None:
        """Record metric points, and keep the newest of each metric in mind."""
        self._tracker.log_points(points)
        self._metrics |= {point.key: point.value for point in points}

    def workers_ready(self, world_size: int) -> None:
        """So many workers will work on the next attempt, whose number they will tell."""
        self._world_size = world_size

    def attempt_began(self, attempt: int) -> None:
        """An attempt is at work. Nothing happens where that is known."""
        self._ledger.attempt_began(attempt, self._clock(), world_size=self._world_size)
        with self._lock:
            known, self._attempt = self._attempt, max(self._attempt, attempt)
        if known < attempt:
            self._tracker.set_tags({ATTEMPTS_TAG: str(attempt)})

    def heard(self, attempt: int, progress: Progress) -> None:
        """An attempt told how far it is. One that nobody announced has begun by that."""
        if attempt < self._attempt:
            return
        self.attempt_began(attempt)
        self._progress = progress
        self._ledger.progress(progress, self._clock())

    def attempt_ended(self, how: str) -> None:
        """The newest attempt ended well: `completed`, `stopped`, `resized to 3 workers`. Nothing where it is over."""
        if self._end() is not None:
            self._ledger.attempt_ended(None, self._clock(), how=how)

    def attempt_failed(
        self,
        culprit: Failure,
        how: str = "",
        *,
        time_known: bool = True,
        failures: Iterable[Failure] = (),
        stacks: Mapping[int, str] | None = None,
        nodes: Iterable[object] = (),
    ) -> bool:
        """The newest attempt failed: note it, and let its post-mortem and its logs be recorded in the background.

        `how` are a few words, as `worker killed` (by default the cause); `time_known` tells whether the culprit's
        `time_s` is when it happened, not when it was noticed. `failures` are all that was reported, of any attempt,
        `stacks` come by rank, `nodes` are dataclasses or plain values. False, and nothing happens, where the attempt
        is over already or no worker has told its number yet.
        """
        attempt = self._end()
        if attempt is None:
            return False
        now_s = self._clock()
        fault_s = now_s - max(0.0, time.time() - culprit.time_s) if culprit.time_s and time_known else None
        self._ledger.attempt_ended(culprit.cause, now_s, how=how, fault_s=fault_s)
        progress, metrics = self._progress, dict(self._metrics)
        reported = [failure for failure in failures if failure.attempt in (0, attempt)] or [culprit]
        given_stacks, given_nodes, rows = dict(stacks or {}), list(nodes), self._ledger.attempts()

        def record() -> None:
            bundle = write_postmortem(
                self._run,
                attempt,
                reported,
                given_stacks,
                given_nodes,
                progress,
                self._run.read_spec() or "",
                self._redact,
                culprit=culprit,
                metrics=metrics,
            )
            self._tracker.log_artifact(bundle, f"postmortem/attempt-{attempt}")
            record_attempts(self._tracker, self._run, rows)
            record_logs(self._tracker, self._run, attempt)

        self._later(record)
        return True

    def keep(self) -> None:
        """Write down what a later driver and onlookers need: now and then, and whenever an attempt has ended.

        Only while this driver holds the run. Raises OSError where the storage cannot be written.
        """
        with self._keeping:
            if self._record is not None:
                record = replace(
                    self._record,
                    attempts=self._attempt or self._record.attempts,
                    mlflow_run_id=self._tracker.run_id or self._record.mlflow_run_id,
                )
                if record != self._record:
                    self._run.write_record(record)
                    self._record = record
            now_s = self._clock()
            if self._kept_s is None or now_s - self._kept_s >= _KEEP_EVERY_S:
                self._run.write_goodput(self._ledger.to_dict(now_s))
                self._kept_s = now_s

    def account(self) -> Account:
        """The figures up to now."""
        return self._ledger.account(self._clock())

    def close(self) -> None:
        """Wait a while for what is still being recorded, and write everything down. Never raises OSError."""
        if self._worker is not None:
            self._work.put(None)
            self._worker.join(_PATIENCE_S)
        self._kept_s = None
        try:
            self.keep()
        except OSError as error:
            _log.warning("the times of %s could not be written: %s", self._run.label, error)

    def _end(self) -> int | None:
        """The number of the attempt that ends now; None where none is at work."""
        with self._lock:
            if self._over >= self._attempt:
                return None
            self._over, self._kept_s = self._attempt, None
            return self._attempt

    def _later(self, work: Callable[[], None]) -> None:
        """Do it in the background: recovery does not wait for storage."""
        self._work.put(work)
        if self._worker is None:
            self._worker = threading.Thread(target=self._work_on, name="chronicle", daemon=True)
            self._worker.start()

    def _work_on(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - what is told about a failure must not become another one
                _log.warning("an attempt's end could not be recorded: %s", error)
