"""Where the time of a training step goes: data, forward, backward, communication, optimizer. Imports: torch.

On a CPU by the host's clock; on a GPU, which runs behind the host, by events that are read once per window.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch

PHASES = ("data", "forward", "backward", "communication", "optimizer")


class StepClock:
    """Adds up the seconds of each phase. `start` opens a step, `lap` ends a phase, `take` empties the sums."""

    def __init__(self, device: torch.device) -> None:
        self._events: list[tuple[str, Any, Any]] | None = [] if device.type == "cuda" else None
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._last: Any = None

    def start(self) -> None:
        self._last = self._now()

    def lap(self, phase: str) -> None:
        now = self._now()
        if self._events is not None:
            self._events.append((phase, self._last, now))
        else:
            self._seconds[phase] += now - self._last
        self._last = now

    def take(self) -> dict[str, float]:
        """Seconds by phase since the last call. Waits for the GPU."""
        if self._events:
            torch.cuda.synchronize()
            for phase, began, ended in self._events:
                self._seconds[phase] += began.elapsed_time(ended) / 1000
            self._events.clear()
        seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds

    def _now(self) -> Any:
        if self._events is None:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory that this process held at once: of the GPU's, or of the machine's."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
