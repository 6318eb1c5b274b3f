"""Steps between two moments at which the ranks talk about more than gradients.

The losses of the steps and the driver's wish to stop travel together in one small all-reduce, about twice a
second, instead of one collective per step. All ranks know the window's length in advance, so none waits for
another at any other time. Imports: torch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from orchestrator.engine import collectives

MAX_STEPS = 256
TARGET_S = 0.5


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step as all ranks saw it: the loss of the whole global batch."""

    step: int
    loss: float
    lr: float
    timestamp_ms: int


@dataclass(frozen=True)
class Agreement:
    """What came out of a window: its steps, whether to stop, and the throughput over it."""

    records: list[StepRecord]
    stop: bool
    samples_per_s: float


class StepWindow:
    """Collects steps until it is full; then `agree` (collective) empties it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._length = 1
        self._steps: list[tuple[int, torch.Tensor, int, float, int]] = []
        self._opened = time.perf_counter()

    def add(self, step: int, loss_sum: torch.Tensor, num_samples: int, lr: float) -> None:
        """Note a step: this rank's sum of sample losses (kept on the device, not waited for), the number of
        samples in the *global* batch, and the learning rate used."""
        self._steps.append((step, loss_sum, num_samples, lr, time.time_ns() // 1_000_000))

    @property
    def full(self) -> bool:
        return len(self._steps) >= self._length

    def restart_clock(self) -> None:
        """Leave an evaluation or a save out of the throughput."""
        self._opened = time.perf_counter()

    def agree(self, *, stop: bool) -> Agreement:
        """Sum the losses over the ranks and learn whether rank 0 was asked to stop. Collective."""
        steps, self._steps = self._steps, []
        elapsed_s = time.perf_counter() - self._opened
        lead = collectives.rank() == 0
        wanted = min(MAX_STEPS, max(1, round(len(steps) * TARGET_S / max(elapsed_s, 1e-6))))
        message = torch.zeros(len(steps) + 2, dtype=torch.float64, device=self._device)
        if steps:
            message[: len(steps)] = torch.stack([entry[1] for entry in steps]).double()
        if lead:
            message[-2], message[-1] = float(stop), float(wanted)
        values = collectives.sum_over_ranks(message).tolist()
        self._length = int(values[-1])
        self._opened = time.perf_counter()
        return Agreement(
            records=[
                StepRecord(step, total / num_samples, lr, timestamp_ms)
                for (step, _, num_samples, lr, timestamp_ms), total in zip(steps, values, strict=False)
            ],
            stop=bool(values[-2]),
            samples_per_s=sum(entry[2] for entry in steps) / max(elapsed_s, 1e-9),
        )
