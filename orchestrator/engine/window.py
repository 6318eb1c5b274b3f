"""Steps between two moments at which the ranks talk about more than gradients.

The losses of the steps, the driver's wish to save or to stop and each rank's own pace travel together in one small
all-reduce, about twice a second, instead of one collective per step. All ranks know the window's length in
advance, so none waits for another at any other time. Imports: torch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

import torch

from orchestrator.engine import collectives

MAX_STEPS = 256
TARGET_S = 0.5
Wish = Literal["go on", "save", "stop", "finish", "leave"]
"""What rank 0 wants done: "save" to save and go on, "stop" to save and end, "finish" to end the training, "leave" to
end at once, with nothing saved."""
_WISHES: tuple[Wish, ...] = ("go on", "save", "stop", "finish", "leave")


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step as all ranks saw it: the loss of the whole global batch."""

    step: int
    loss: float
    lr: float
    timestamp_ms: int


@dataclass(frozen=True)
class Agreement:
    """What came out of a window: its steps, what rank 0 wishes, the throughput, and each rank's own seconds."""

    records: list[StepRecord]
    wish: Wish
    samples_per_s: float
    elapsed_s: float
    rank_seconds: list[float]


@dataclass(frozen=True)
class _Step:
    step: int
    loss_sum: torch.Tensor
    weight: float
    num_samples: int
    lr: float
    timestamp_ms: int


class StepWindow:
    """Collects steps until it is full; then `agree` (collective) empties it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._length = 1
        self._steps: list[_Step] = []
        self._opened = time.perf_counter()

    def add(self, step: int, loss_sum: torch.Tensor, weight: float, num_samples: int, lr: float) -> None:
        """Note a step: this rank's weighted sum of sample losses (kept on the device, not waited for), the sum
        of weights and the number of samples of the *global* batch, and the learning rate used."""
        self._steps.append(_Step(step, loss_sum, weight, num_samples, lr, time.time_ns() // 1_000_000))

    @property
    def full(self) -> bool:
        return len(self._steps) >= self._length

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self._opened

    def restart_clock(self) -> None:
        """Leave an evaluation or a save out of the throughput."""
        self._opened = time.perf_counter()

    def agree(self, *, wish: Wish, own_seconds: float) -> Agreement:
        """Sum the losses over the ranks, and learn rank 0's wish and every rank's pace. Collective."""
        steps, self._steps = self._steps, []
        elapsed_s = self.elapsed_s
        rank, world_size, count = collectives.rank(), collectives.world_size(), len(steps)
        wanted = min(MAX_STEPS, max(1, round(count * TARGET_S / max(elapsed_s, 1e-6))))
        message = torch.zeros(count + 2 + world_size, dtype=torch.float64, device=self._device)
        if steps:
            message[:count] = torch.stack([entry.loss_sum for entry in steps]).double()
        if rank == 0:
            message[count], message[count + 1] = float(_WISHES.index(wish)), float(wanted)
        message[count + 2 + rank] = own_seconds
        values = collectives.sum_over_ranks(message).tolist()
        self._length = int(values[count + 1])
        self._opened = time.perf_counter()
        return Agreement(
            records=[
                StepRecord(entry.step, total / entry.weight, entry.lr, entry.timestamp_ms)
                for entry, total in zip(steps, values, strict=False)
            ],
            wish=_WISHES[int(values[count])],
            samples_per_s=sum(entry.num_samples for entry in steps) / max(elapsed_s, 1e-9),
            elapsed_s=elapsed_s,
            rank_seconds=values[count + 2 :],
        )
