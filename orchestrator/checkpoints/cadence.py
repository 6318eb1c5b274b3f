"""When the clock asks for a save: every so many seconds, or as often as loses the least time.

Pure: moments are arguments, of one clock that never jumps. Imports: the interval's formula, the saver's records.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Literal

from orchestrator.checkpoints.interval import auto_interval_s
from orchestrator.checkpoints.saver import Saved

FIRST_AUTO_S = 60.0
"""Until the first checkpoint has shown what one costs."""
_REMEMBERED = 5


class Cadence:
    """`every` seconds, or "auto" from what the newest checkpoints cost and the mean time between failures, or never
    (None). Counted from the end of the last wait for a checkpoint, whoever asked for it."""

    def __init__(self, every: float | Literal["auto"] | None, mean_time_between_failures_s: float) -> None:
        self.interval_s = FIRST_AUTO_S if every == "auto" else every
        self._auto = every == "auto"
        self._mtbf_s = mean_time_between_failures_s
        self._costs: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED)
        self._saved_s: float | None = None

    def due(self, now_s: float) -> bool:
        """Whether to save now. The first call starts the clock."""
        if self._saved_s is None:
            self._saved_s = now_s
        return self.interval_s is not None and now_s - self._saved_s >= self.interval_s

    def saved(self, now_s: float) -> None:
        """Training goes on after a save, or begins, at this moment."""
        self._saved_s = now_s

    def learn(self, saved: Saved) -> float | None:
        """Take a checkpoint's cost into account; the interval where it is chosen anew, by more than a tenth."""
        if not self._auto:
            return None
        # Training waits for the stall, and lacks the processor time that the writer takes beside it.
        self._costs.append((saved.stall_s + saved.busy_s / (os.cpu_count() or 1), saved.seconds))
        cost_s = sum(cost for cost, _ in self._costs) / len(self._costs)
        whole_s = max(seconds for _, seconds in self._costs)
        chosen = auto_interval_s(cost_s, max(cost_s, whole_s), self._mtbf_s)
        before, self.interval_s = self.interval_s, chosen
        first = len(self._costs) == 1
        if first or before is None or abs(chosen - before) > 0.1 * before:
            return chosen
        self.interval_s = before
        return None
