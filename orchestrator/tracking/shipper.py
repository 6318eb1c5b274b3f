"""The one thread that carries the journal to the sink, in order, and keeps trying while the sink is down.

Imports: the standard library, ops, journal.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable

from orchestrator.tracking.journal import Journal, load_state, save_state
from orchestrator.tracking.ops import (
    LogMetrics,
    Op,
    RunState,
    Sink,
    SinkRefused,
    SinkUnavailable,
    StartRun,
    halves,
    to_json,
)

_log = logging.getLogger(__name__)

MAX_BATCH = 1000
"""Points in one call: MLflow's own limit."""
MAX_PAUSE_S = 30.0
_FIRST_PAUSE_S = 1.0
_CLOSING_PAUSE_S = 0.5
_NICENESS = 19


def back_off_s(failures: int) -> float:
    """Seconds to wait after that many failures in a row: 1, 2, 4, … 30."""
    return min(MAX_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** min(failures - 1, 10))


class Shipper:
    """Ships a journal. `state`, `last_error` and `refused` may be read by any thread.

    The thread closes the journal when it ends, so that a sink which hangs never meets a second writer.
    """

    def __init__(self, journal: Journal, sink: Sink, interval_s: float) -> None:
        self._journal = journal
        self._sink = sink
        self._interval_s = interval_s
        self.state, self._offset = load_state(journal.folder)
        self._offset = min(self._offset, journal.size_bytes)
        self._unsaved = False
        self._pending: deque[tuple[Op | None, int]] = deque()
        self._read_offset = self._offset
        self.last_error: SinkUnavailable | None = None
        self.refused: list[str] = []
        self._changed = threading.Condition()
        self._nudge = threading.Event()
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._work, name="tracking-shipper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Ship without delay until the condition holds; False where time ran out first."""
        self._nudge.set()
        with self._changed:
            return self._changed.wait_for(condition, timeout_s)

    def done(self) -> bool:
        """Whether everything in the journal was shipped or put aside."""
        return self._offset >= self._journal.size_bytes and not self._unsaved

    def close(self, timeout_s: float) -> bool:
        """Ship the rest within the time, end the thread; True where nothing is left."""
        self._deadline = time.monotonic() + timeout_s
        self._closing.set()
        self._nudge.set()
        self._thread.join(timeout_s + 1.0)
        return self.done()

    def _work(self) -> None:
        failures, yields, began = 0, False, self._offset
        try:
            while True:
                try:
                    self._ship()
                    failures = 0
                    if self._offset > began and not yields:
                        # Not before something was shipped: the sink's imports alone would then take minutes on a
                        # busy machine.
                        _yield_to_training()
                        yields = True
                except (SinkUnavailable, OSError) as error:
                    failures += 1
                    problem = error if isinstance(error, SinkUnavailable) else self._disk_trouble(error)
                    if self.last_error is None:
                        _log.warning("tracking is behind, the run goes on: %s", problem)
                    self.last_error = problem
                if self._closing.is_set() and (self.done() or time.monotonic() >= self._deadline):
                    return
                self._pause(failures)
        finally:
            self._journal.close()

    def _pause(self, failures: int) -> None:
        if self._closing.is_set() and failures:
            time.sleep(min(_CLOSING_PAUSE_S, max(0.0, self._deadline - time.monotonic())))
        elif failures:
            self._closing.wait(back_off_s(failures))
        else:
            self._nudge.wait(self._interval_s)
            self._nudge.clear()

    def _disk_trouble(self, error: OSError) -> SinkUnavailable:
        return SinkUnavailable(
            f"{self._journal.folder} cannot be read or written: {error}", "make room on that disk"
        )

    def _ship(self) -> None:
        """Ship all there is; raises SinkUnavailable or OSError with the rest still pending."""
        while time.monotonic() < self._deadline:
            if self._unsaved:
                self._save(durable=True)
            if not self._pending:
                self._fill()
            if not self._pending:
                return
            op, end = self._pending[0]
            if op is None:
                self._journal.put_aside({"before_byte": end}, "a damaged line of the journal")
                self._pending.popleft()
                self._advance(self.state, end, durable=False)
                continue
            try:
                state = self._apply(op)
            except SinkRefused as error:
                if isinstance(op, StartRun):
                    # Nothing can be recorded without the run: keep it all until somebody mends the cause.
                    raise SinkUnavailable(f"the run cannot be started: {error.reason}", error.mend) from error
                self._refuse(op, end, error)
                continue
            self._pending.popleft()
            self._advance(state, end, durable=isinstance(op, StartRun))

    def _apply(self, op: Op) -> RunState:
        if isinstance(op, LogMetrics) and self.state.last_steps:
            last = self.state.last_steps
            # What stands at step 0 is a summary, which replaces that of an earlier attempt.
            op = LogMetrics(
                tuple(point for point in op.points if not point.step or point.step > last.get(point.key, -1))
            )
            if not op.points:
                return self.state
        try:
            return self._sink.apply(op, self.state)
        except (SinkRefused, SinkUnavailable):
            raise
        except Exception as error:
            # A fault of the sink itself must neither end the thread nor lose data.
            raise SinkUnavailable(f"{type(error).__name__}: {error}") from error

    def _refuse(self, op: Op, end: int, error: SinkRefused) -> None:
        """Cut a refused batch in two, so that only the bad part of it is put aside."""
        parts = halves(op)
        if parts is not None:
            self._pending.popleft()
            self._pending.extendleft([(parts[1], end), (parts[0], self._offset)])
            return
        self._journal.put_aside({"entry": to_json(op)}, error.reason)
        self._pending.popleft()
        self.refused.append(f"{type(op).__name__}: {error.reason}")
        self._advance(self.state, end, durable=False)

    def _advance(self, state: RunState, offset: int, *, durable: bool) -> None:
        # What was shipped is known from now on, even where it cannot be written down yet.
        self.state, self._offset, self._unsaved = state, offset, True
        self._save(durable=durable)

    def _save(self, *, durable: bool) -> None:
        save_state(self._journal.folder, self.state, self._offset, durable=durable)
        with self._changed:
            self._unsaved, self.last_error = False, None
            self._changed.notify_all()

    def _fill(self) -> None:
        found = self._journal.read(self._read_offset)
        if found:
            self._read_offset = found[-1][1]
        for op, end in found:
            if self._pending and isinstance(op, LogMetrics):
                previous = self._pending[-1][0]
                if isinstance(previous, LogMetrics) and len(previous.points) + len(op.points) <= MAX_BATCH:
                    self._pending[-1] = (LogMetrics(previous.points + op.points), end)
                    continue
            self._pending.append((op, end))


def _yield_to_training() -> None:
    """Run this thread only where the workers of the same machine leave time: nobody waits for it."""
    if sys.platform == "linux":  # elsewhere a thread has no niceness of its own
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)
