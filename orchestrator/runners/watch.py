"""What the driver's threads share: who looks on, how far the run is, and whether it shall stop. Imports: no ray."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.monitor.progress_lines import format_progress
from orchestrator.monitor.search_lines import format_search
from orchestrator.records import Progress
from orchestrator.runs.heartbeat import Heartbeat

if TYPE_CHECKING:
    from orchestrator.runners.chronicle import Chronicle
    from orchestrator.runners.desk import Desk

_log = logging.getLogger(__name__)
_LOG_PROGRESS_EVERY_S = 10.0


class Observer(Protocol):
    """Whoever watches a run: a terminal, a log, a notebook."""

    def message(self, text: str) -> None: ...

    def progress(self, progress: Progress) -> None: ...

    def search(self, summary: Mapping[str, Any]) -> None:
        """How a search stands, about once a second: what `search/summary.json` holds."""


class Silent:
    """Watches nothing."""

    def message(self, text: str) -> None:
        pass

    def progress(self, progress: Progress) -> None:
        pass

    def search(self, summary: Mapping[str, Any]) -> None:
        pass


class Watch:
    """One run as it is watched. `redact` takes the secrets out of a text."""

    def __init__(self, observer: Observer, redact: Callable[[str], str]) -> None:
        self._observer = observer
        self._logged_s = 0.0
        self._search_logged_s = 0.0
        self._unseen = False
        self.redact = redact
        self.desk: Desk | None = None
        self.heartbeat: Heartbeat | None = None
        self.chronicle: Chronicle | None = None
        self.stop: tuple[str, int] | None = None

    def say(self, text: str) -> None:
        """Tell the onlooker and the driver's log."""
        _log.info("%s", text)
        self._tell(lambda: self._observer.message(self.redact(text)))

    def show(self, progress: Progress) -> None:
        """Note progress and pass it on; now and then a line of it goes into the log."""
        if self.chronicle is not None and self.desk is not None:
            self.chronicle.heard(self.desk.attempt, progress)
        self._tell(lambda: self._observer.progress(progress))
        if time.monotonic() - self._logged_s >= _LOG_PROGRESS_EVERY_S:
            self._logged_s = time.monotonic()
            _log.info("%s", format_progress(progress))

    def show_search(self, summary: Mapping[str, Any]) -> None:
        """Pass on how a search stands; now and then a line of it goes into the log."""
        self._tell(lambda: self._observer.search(summary))
        if time.monotonic() - self._search_logged_s >= _LOG_PROGRESS_EVERY_S:
            self._search_logged_s = time.monotonic()
            _log.info("%s", format_search(summary))

    def _tell(self, tell: Callable[[], None]) -> None:
        """A run does not end because nobody can see it: a closed terminal, an output on a disk that is full."""
        try:
            tell()
        except OSError as error:
            if not self._unseen:
                _log.warning("what happens cannot be shown: %s", error)
            self._unseen = True
        else:
            self._unseen = False

    def last_progress(self) -> Progress | None:
        if self.desk is None:
            return None
        if self.heartbeat is not None:
            self.heartbeat.attempt = max(1, self.desk.attempt)
        return self.desk.progress

    def ask_to_stop(self, why: str, exit_code: int = 143) -> None:
        """Let the workers save and end; the first reason counts."""
        if self.stop is None:
            self.stop = (why, exit_code)
            self.say(f"{why}: the workers save their state and end")
            if self.desk is not None:
                self.desk.request_stop()
