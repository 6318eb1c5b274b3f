"""The driver's side of the link: takes workers' letters, keeps points safe, answers. Imports: no ray."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from orchestrator.errors import TrackingError
from orchestrator.records import EpochReport, Failure, Letter, Point, Progress, Reply, Wish

_log = logging.getLogger(__name__)


class Desk:
    """A `Channel` that hands points to `record` and answers with what is safe by then.

    `record` must return only when the points are on disk. Where it cannot (TrackingError, OSError), they stay with
    the worker, who sends them again, and the training goes on. `on_report` decides on a trial after an epoch, once for
    each: an attempt that comes to the epoch again gets the same answer. Thread-safe.
    """

    def __init__(
        self,
        record: Callable[[Sequence[Point]], None],
        on_progress: Callable[[Progress], None] | None = None,
        on_notice: Callable[[str], None] | None = None,
        on_report: Callable[[EpochReport], Wish] | None = None,
    ) -> None:
        self._record = record
        self._on_progress = on_progress
        self._on_notice = on_notice
        self._on_report = on_report
        self._decisions: dict[int, Wish] = {}
        self._reported = 0
        self._decided: Wish = "go on"
        self._lock = threading.Lock()
        self._received: dict[int, int] = {}
        self._noticed: dict[int, int] = {}
        self._stop = False
        self._troubled = False
        self.failures: list[Failure] = []
        self.progress: Progress | None = None
        self.attempt = 0
        self.first_letter_s: float | None = None

    def request_stop(self) -> None:
        """Ask the workers to save and end; they learn of it with their next letter."""
        self._stop = True

    @property
    def decided(self) -> Wish:
        """The newest decision on a trial."""
        return self._decided

    @property
    def stop_requested(self) -> bool:
        return self._stop

    def exchange(self, letter: Letter) -> Reply:
        with self._lock:
            if self.first_letter_s is None:
                self.first_letter_s = time.time()
            if letter.failure is not None and letter.failure not in self.failures:  # a letter may come twice
                self.failures.append(letter.failure)
            if letter.rank == 0:
                another = letter.attempt > self.attempt  # which may stand just where the last one did
                self.attempt = max(self.attempt, letter.attempt)
                if another:
                    self._reported, self._decided = 0, "go on"
                self._keep(letter)
                if letter.attempt == self.attempt:
                    self._decide(letter)
                self._show_notices(letter)
                late = letter.attempt < self.attempt
                if letter.progress is not None and not late and (another or letter.progress != self.progress):
                    self.progress = letter.progress
                    if self._on_progress is not None:
                        self._on_progress(letter.progress)
            return self._reply(letter.attempt)

    def _keep(self, letter: Letter) -> None:
        received = self._received.get(letter.attempt, 0)
        fresh = letter.points[max(0, received - letter.first) :]
        try:
            if fresh:
                self._record(fresh)
        except (TrackingError, OSError) as error:
            if not self._troubled:
                _log.warning("metrics cannot be recorded: %s", error)
                if self._on_notice is not None:
                    self._on_notice(f"metrics cannot be recorded now, the workers keep them: {error}")
            self._troubled = True
            return
        self._troubled = False
        self._received[letter.attempt] = max(received, letter.first + len(letter.points))

    def _decide(self, letter: Letter) -> None:
        for report in letter.reports:
            if report.epoch <= self._reported or self._on_report is None:
                continue
            if report.epoch not in self._decisions:
                self._decisions[report.epoch] = self._on_report(report)
            self._reported, self._decided = report.epoch, self._decisions[report.epoch]

    def _show_notices(self, letter: Letter) -> None:
        shown = self._noticed.get(letter.attempt, 0)
        for text in letter.notices[max(0, shown - letter.first_notice) :]:
            if self._on_notice is not None:
                self._on_notice(text)
        self._noticed[letter.attempt] = max(shown, letter.first_notice + len(letter.notices))

    def _reply(self, attempt: int) -> Reply:
        wish: Wish = "stop" if self._stop and self._decided != "leave" else self._decided
        return Reply(self._received.get(attempt, 0), wish, self._noticed.get(attempt, 0), self._reported)
