"""The driver's side of the link: takes workers' letters, keeps points safe, answers. Imports: no ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from orchestrator.records import Failure, Letter, Point, Progress, Reply, Wish


class Desk:
    """A `Channel` that hands points to `record` and answers with what is safe by then.

    `record` must return only when the points are on disk. Thread-safe.
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
        self._lock = threading.Lock()
        self._received: dict[int, int] = {}
        self._noticed: dict[int, int] = {}
        self._stop = False
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
            if letter.failure is not None and letter.failure not in self.failures:  # a letter may come twice
                self.failures.append(letter.failure)
            if letter.rank == 0:
                self.attempt = max(self.attempt, letter.attempt)
                received = self._received.get(letter.attempt, 0)
                fresh = letter.points[max(0, received - letter.first) :]
                if fresh:
                    self._record(fresh)
                self._received[letter.attempt] = max(received, letter.first + len(letter.points))
                self._show_notices(letter)
                if letter.progress is not None and letter.progress != self.progress:
                    self.progress = letter.progress
                    if self._on_progress is not None:
                        self._on_progress(letter.progress)
            return self._reply(letter.attempt)

    def _show_notices(self, letter: Letter) -> None:
        shown = self._noticed.get(letter.attempt, 0)
        for text in letter.notices[max(0, shown - letter.first_notice) :]:
            if self._on_notice is not None:
                self._on_notice(text)
        self._noticed[letter.attempt] = max(shown, letter.first_notice + len(letter.notices))

    def _reply(self, attempt: int) -> Reply:
        wish: Wish = "stop" if self._stop else "go on"
        return Reply(self._received.get(attempt, 0), wish, self._noticed.get(attempt, 0))
