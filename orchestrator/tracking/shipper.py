"""The one thread of a driver that carries the journal to the sink, and keeps trying while the sink is down.

What a run and each of its children recorded arrives in its order; see `batches` for how they mix.
Imports: the standard library, ops, journal, shipped, batches, conventions.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from orchestrator.tracking.batches import Batch, batches
from orchestrator.tracking.conventions import PARENT_TAG
from orchestrator.tracking.journal import Journal
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
from orchestrator.tracking.shipped import load_shipped, save_shipped

_log = logging.getLogger(__name__)

MAX_PAUSE_S = 30.0
_SHARE, _LONGEST_REST_S = 0.1, 10.0
"""Shipping takes CPU that trainings on the same machine want: at most this part of the time goes into it, as long as it
need not rest longer than so many seconds for that."""
_FIRST_PAUSE_S = 1.0
_CLOSING_PAUSE_S = 0.5


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
        self._shipped = load_shipped(journal.folder)
        self._shipped.offset = min(self._shipped.offset, journal.size_bytes)
        self._unsaved = False
        self._pending: deque[Batch] = deque()
        self._read_offset = self._shipped.offset
        self.last_error: SinkUnavailable | None = None
        self.refused: list[str] = []
        self._changed = threading.Condition()
        self._nudge = threading.Event()
        self._closing = threading.Event()
        self._deadline = float("inf")
        self._thread = threading.Thread(target=self._work, name="tracking-shipper", daemon=True)

    @property
    def state(self) -> RunState:
        """The state of the run."""
        return self._shipped.run

    def run_id_of(self, child: str) -> str | None:
        """The id on the server of the run (''), or of a child of it; None until it was shipped."""
        return self._shipped.state_of(child).run_id

    def start(self) -> None:
        self._thread.start()

    def wait_until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Ship without delay until the condition holds; False where time ran out first."""
        self._nudge.set()
        with self._changed:
            return self._changed.wait_for(condition, timeout_s)

    def done(self) -> bool:
        """Whether everything in the journal was shipped or put aside."""
        return self._shipped.offset >= self._journal.size_bytes and not self._unsaved

    def close(self, timeout_s: float) -> bool:
        """Ship the rest within the time, end the thread; True where nothing is left."""
        self._deadline = time.monotonic() + timeout_s
        self._closing.set()
        self._nudge.set()
        self._thread.join(timeout_s + 1.0)
        return self.done()

    def _work(self) -> None:
        failures = 0
        try:
            while True:
                began_s = time.monotonic()
                try:
                    self._ship()
                    failures = 0
                except (SinkUnavailable, OSError) as error:
                    failures += 1
                    problem = error if isinstance(error, SinkUnavailable) else self._disk_trouble(error)
                    if self.last_error is None:
                        _log.warning("tracking is behind, the run goes on: %s", problem)
                    self.last_error = problem
                if self._closing.is_set() and (self.done() or time.monotonic() >= self._deadline):
                    return
                self._pause(failures, time.monotonic() - began_s)
        finally:
            self._journal.close()

    def _pause(self, failures: int, worked_s: float) -> None:
        if self._closing.is_set():
            if failures:
                time.sleep(min(_CLOSING_PAUSE_S, max(0.0, self._deadline - time.monotonic())))
        elif failures:
            self._closing.wait(back_off_s(failures))
        else:
            rest_s = min(_LONGEST_REST_S, worked_s * (1 - _SHARE) / _SHARE)
            self._nudge.wait(max(self._interval_s, rest_s))
            self._nudge.clear()

    def _disk_trouble(self, error: OSError) -> SinkUnavailable:
        return SinkUnavailable(
            f"{self._journal.folder} cannot be read or written: {error}", "make room on that disk"
        )

    def _ship(self) -> None:
        """Ship all that is there now; raises SinkUnavailable or OSError with the rest still pending."""
        size_bytes = self._journal.size_bytes
        while time.monotonic() < self._deadline:
            if self._unsaved:
                self._save(durable=True)
            if not self._pending and self._read_offset < size_bytes:
                self._fill()
            if not self._pending:
                return
            batch = self._pending[0]
            if batch.op is None:
                self._journal.put_aside({"before_byte": self._behind()}, "a damaged line of the journal")
                self._advance(batch, self._shipped.state_of(batch.child))
                continue
            try:
                state = self._apply(batch.op, batch.child)
            except SinkRefused as error:
                if isinstance(batch.op, StartRun) and not batch.child:
                    # Nothing can be recorded without the run: keep it all until somebody mends the cause.
                    raise SinkUnavailable(f"the run cannot be started: {error.reason}", error.mend) from error
                self._refuse(batch, error)
                continue
            self._advance(batch, state)

    def _apply(self, op: Op, child: str) -> RunState:
        state = self._shipped.state_of(child)
        if isinstance(op, StartRun) and child and self.state.run_id is not None:
            op = replace(op, tags={**op.tags, PARENT_TAG: self.state.run_id})
        if isinstance(op, LogMetrics) and state.last_steps:
            last = state.last_steps
            # What stands at step 0 is a summary, which replaces that of an earlier attempt.
            op = LogMetrics(
                tuple(point for point in op.points if not point.step or point.step > last.get(point.key, -1))
            )
            if not op.points:
                return state
        try:
            return self._sink.apply(op, state)
        except (SinkRefused, SinkUnavailable):
            raise
        except Exception as error:
            # A fault of the sink itself must neither end the thread nor lose data.
            raise SinkUnavailable(f"{type(error).__name__}: {error}") from error

    def _refuse(self, batch: Batch, error: SinkRefused) -> None:
        """Cut a refused batch in two, so that only the bad part of it is put aside."""
        assert batch.op is not None
        parts = halves(batch.op)
        if parts is not None:
            self._pending.popleft()
            self._pending.extendleft(Batch(part, batch.child, batch.start) for part in reversed(parts))
            return
        whose = {"child": batch.child} if batch.child else {}
        self._journal.put_aside({**whose, "entry": to_json(batch.op)}, error.reason)
        of = f" of {batch.child}" if batch.child else ""
        self.refused.append(f"{type(batch.op).__name__}{of}: {error.reason}")
        self._advance(batch, self._shipped.state_of(batch.child))

    def _behind(self) -> int:
        """The offset before which all was shipped, once the first pending batch is."""
        return self._pending[1].start if len(self._pending) > 1 else self._read_offset

    def _advance(self, batch: Batch, state: RunState) -> None:
        """The first pending batch was shipped, or put aside."""
        # What was shipped is known from now on, even where it cannot be written down yet.
        self._shipped.offset = self._behind()
        self._pending.popleft()
        self._shipped.applied(batch.op, batch.child, state)
        self._unsaved = True
        self._save(durable=isinstance(batch.op, StartRun))

    def _save(self, *, durable: bool) -> None:
        save_shipped(self._journal.folder, self._shipped, durable=durable)
        with self._changed:
            self._unsaved, self.last_error = False, None
            self._changed.notify_all()

    def _fill(self) -> None:
        found = self._journal.read(self._read_offset)
        if found:
            self._read_offset = found[-1].end
        self._pending.extend(batches(found))
