"""A user's model for bench_logging: the small CNN, which turns logging off and on in turn and notes the time.

Blocks of `BLOCK_EPOCHS` epochs with every step logged alternate with blocks in which `WorkerLink.log_points`
does nothing. Rank 0 writes the moment at which each epoch began.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from orchestrator.engine import collectives
from orchestrator.engine.link import WorkerLink
from orchestrator.models.networks import Cnn
from orchestrator.records import Point

BLOCK_EPOCHS = 20


def is_logged(epoch: int) -> bool:
    return epoch // BLOCK_EPOCHS % 2 == 0


class TimedCnn(Cnn):
    def __init__(
        self, input_shape: Sequence[int], num_outputs: int, steps_per_epoch: int, steps: int, file: str
    ) -> None:
        super().__init__(input_shape, num_outputs)
        self._began: list[float] = []
        self._forwards = 0
        self._steps_per_epoch, self._steps, self._file = steps_per_epoch, steps, Path(file)
        log_points = WorkerLink.log_points

        def log_in_turn(link: WorkerLink, points: list[Point]) -> None:
            if is_logged((self._forwards - 1) // self._steps_per_epoch):
                log_points(link, points)

        WorkerLink.log_points = log_in_turn  # type: ignore[method-assign,assignment]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # The warm-up's two samples are no step.
        if self.training and len(images) > 2:
            if self._forwards % self._steps_per_epoch == 0:
                self._began.append(time.perf_counter())
            self._forwards += 1
            if self._forwards == self._steps and collectives.rank() == 0:
                self._file.write_text(json.dumps(self._began))
        return super().forward(images)
