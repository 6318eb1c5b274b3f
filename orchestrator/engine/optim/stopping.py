"""Better or not: early stopping and the best checkpoint, as pure decisions. Imports: the standard library."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal


def is_better(
    value: float, best: float | None, *, mode: Literal["min", "max"], min_delta: float = 0.0
) -> bool:
    """Whether a value beats the best so far by more than `min_delta`. NaN never does."""
    if math.isnan(value):
        return False
    if best is None:
        return True
    return value < best - min_delta if mode == "min" else value > best + min_delta


@dataclass
class EarlyStopper:
    """Says stop after `patience` validations in a row without a better value."""

    metric: str
    mode: Literal["min", "max"]
    patience: int
    min_delta: float = 0.0
    best: float | None = None
    waited: int = 0

    def update(self, value: float) -> bool:
        """Take the newest value of the metric; True where the training should end."""
        if is_better(value, self.best, mode=self.mode, min_delta=self.min_delta):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        return self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best, self.waited = state["best"], state["waited"]
