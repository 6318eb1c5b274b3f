"""The driver's side of the link: takes workers' letters, keeps points safe, answers. Imports: no ray."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from orchestrator.errors import TrackingError
from orchestrator.records import Failure, Letter, Point, Progress, Reply

_log = logging.getLogger(__name__)


class Desk:
    """A `Channel` that hands points to `record` and answers with what is safe by then.

    `record` must return only when the points are on disk. Where it cannot (TrackingError, OSError), they stay with
    the worker, who sends them again, and the training goes on. Thread-safe.
    """

    def __init__(
        self,
        record: Callable[[Sequence[Point]], None],
        on_progress: Callable[[Progress], None] | None = None,
        on_notice: Callable[[str], None] | None = None,
    ) -> None:
        self._record = record
        self._on_progress = on_progress
        self._on_notice = on_notice
        self._noticed: set[tuple[int, str]] = set()
        self._lock = threading.Lock()
        self._received: dict[int, int] = {}
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
    def stop_requested(self) -> bool:
        return self._stop

    def exchange(self, letter: Letter) -> Reply:
        with self._lock:
            if self.first_letter_s is None:
                self.first_letter_s = time.time()
            if letter.failure is not None:
                self.failures.append(letter.failure)
            for text in letter.notices:
                if self._on_notice is not None and (letter.attempt, text) not in self._noticed:
                    self._noticed.add((letter.attempt, text))  # a letter may come twice
                    self._on_notice(text)
            if letter.rank == 0:
                self.attempt = max(self.attempt, letter.attempt)
                self._keep(letter)
                if letter.progress is not None and letter.progress != self.progress:
                    self.progress = letter.progress
                    if self._on_progress is not None:
                        self._on_progress(letter.progress)
            return Reply(self._received.get(letter.attempt, 0), self._stop)

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
