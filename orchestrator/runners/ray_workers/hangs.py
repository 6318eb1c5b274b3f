"""Whether a group still moves: a pure function of the ranks' pulses. Imports: records.

A hang of one rank stops all of them at their next collective, so a run hangs when no pulse changes any more. This
holds for any backend and needs nothing of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.records import Pulse

ALLOWANCE = 3
"""How many times longer the phases may take in which one call does all: compiling, warming up, writing a
checkpoint or the model."""
_LONG = frozenset({"starting", "saving", "finishing"})


class HangWatch:
    """Notes the pulses of all ranks. Times are seconds of any one clock; a time-out of 0 waits for ever."""

    def __init__(self, hang_timeout_s: float, now_s: float) -> None:
        self._hang_timeout_s = hang_timeout_s
        self._pulses: dict[int, Pulse] = {}
        self._moved_s = now_s

    def note(self, rank: int, pulse: Pulse, now_s: float) -> None:
        """A rank's pulse, as it answered; one that did not answer is not noted."""
        if self._pulses.get(rank) != pulse:
            self._pulses[rank] = pulse
            self._moved_s = now_s

    def stuck_s(self, now_s: float) -> float | None:
        """For how long no rank has moved, where that is longer than allowed; None where it is not."""
        if not self._hang_timeout_s:
            return None
        still_s = now_s - self._moved_s
        long = not self._pulses or any(pulse.phase in _LONG for pulse in self._pulses.values())
        allowed_s = self._hang_timeout_s * (ALLOWANCE if long else 1)
        return still_s if still_s > allowed_s else None


def where_they_stand(pulses: Mapping[int, Pulse], frames: Mapping[int, str]) -> str:
    """Each rank's phase, step and last frame, in a line. A rank without a frame did not answer."""
    ranks = sorted({*pulses, *frames})
    return "; ".join(
        f"rank {rank}: {pulses.get(rank, 'no sign of life')}, {frames.get(rank, 'does not answer')}"
        for rank in ranks
    )
