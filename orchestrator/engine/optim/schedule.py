"""The learning rate's course: what each group's own rate is multiplied by, step by step. Imports: the standard
library only."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from orchestrator.engine.optim.stopping import is_better
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    import torch

    from orchestrator.spec.optim import Schedule

PLATEAU_THRESHOLD = 1e-4
"""A metric has got better when it changed by more than this share of the best so far, as in torch."""


def learning_rate_factor(
    section: Schedule, *, base_lr: float, total_steps: int, steps_per_epoch: int
) -> Callable[[int], float]:
    """What the base learning rate is multiplied by at optimizer step 0, 1, 2, …; for a plateau schedule that
    which the steps alone decide, its warm-up.

    Warm-up is linear and reaches 1 at step `warmup_steps`; cosine and linear are counted from its end, the
    epochs of `step` from the beginning. Cosine: Loshchilov and Hutter 2017 (arXiv:1608.03983), one period,
    without restarts. One-cycle: Smith and Topin 2019 (arXiv:1708.07120) in torch's form, two cosines; only
    the learning rate takes part, not the momentum. Raises UsageError where `min_lr` is above `base_lr`.
    """
    warmup = section.warmup_steps
    warmup_steps = round(warmup * total_steps) if 0 < warmup < 1 else int(warmup)
    floor = _floor(section, base_lr)

    def factor(step: int) -> float:
        if section.kind == "one_cycle":
            return _one_cycle(section, step, total_steps)
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        share = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        if section.kind == "cosine":
            return _cosine(1.0, floor, share)
        if section.kind == "linear":
            return 1 + (floor - 1) * share
        if section.kind == "step":
            return float(section.gamma ** (step // (section.step_epochs * steps_per_epoch)))
        return 1.0

    return factor


def _floor(section: Schedule, base_lr: float) -> float:
    if section.min_lr > base_lr:
        raise UsageError(
            f"train.schedule.min_lr ({section.min_lr:g}) is above train.optimizer.lr ({base_lr:g})",
            "lower it",
        )
    return section.min_lr / base_lr


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * share))


def _one_cycle(section: Schedule, step: int, total_steps: int) -> float:
    """Up from `1 / div_factor` to 1 at the peak, and down to the `final_div_factor`-th part of that start."""
    start = 1 / section.div_factor
    peak = max(0.0, section.pct_start * total_steps - 1)
    if step < peak:
        return _cosine(start, 1.0, step / peak)
    down = total_steps - 1 - peak
    share = min(1.0, (step - peak) / down) if down > 0 else 0.0
    return _cosine(1.0, start / section.final_div_factor, share)


class Scheduler:
    """Sets the learning rates of an optimizer: each group's own rate, times one factor for all.

    Made before the optimizer's state is loaded, since it takes the rates that it finds for the groups' own.
    `min_lr` is a floor for the optimizer's rate; a group's floor is the same share of its own rate.
    """

    def __init__(
        self,
        section: Schedule,
        optimizer: torch.optim.Optimizer,
        *,
        total_steps: int,
        steps_per_epoch: int,
    ) -> None:
        lr = float(optimizer.defaults["lr"])
        self._section = section
        self._optimizer = optimizer
        self._base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self._factor = learning_rate_factor(
            section, base_lr=lr, total_steps=total_steps, steps_per_epoch=steps_per_epoch
        )
        self._floor = _floor(section, lr)
        self._num_steps = 0
        self._scale = 1.0
        self._best: float | None = None
        self._waited = 0
        self._apply()

    @property
    def metric(self) -> str | None:
        """The metric that `plateau` wants after each validation; None where the schedule needs none."""
        return self._section.metric if self._section.kind == "plateau" else None

    @property
    def factor(self) -> float:
        """What every group's own learning rate is multiplied by now."""
        return self._factor(self._num_steps) * self._scale

    def step(self) -> None:
        """To be called once after each optimizer step."""
        self._num_steps += 1
        self._apply()

    def plateau(self, value: float) -> None:
        """Take the newest value of `metric`. Multiplies the learning rate by `gamma` when, `patience`
        validations having passed without a better one, the next has none either, and begins to count anew:
        torch's ReduceLROnPlateau. NaN is never better. Other kinds of schedules take no notice.
        """
        if self.metric is None:
            return
        section = self._section
        least = PLATEAU_THRESHOLD * abs(self._best or 0.0)
        if is_better(value, self._best, mode=section.mode, min_delta=least):
            self._best, self._waited = value, 0
        else:
            self._waited += 1
        if self._waited > section.patience:
            self._scale = max(self._scale * section.gamma, self._floor)
            self._waited = 0
            self._apply()

    def state_dict(self) -> dict[str, Any]:
        return {
            "num_steps": self._num_steps,
            "scale": self._scale,
            "best": self._best,
            "waited": self._waited,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave, the optimizer's learning rates included."""
        self._num_steps, self._scale = state["num_steps"], state["scale"]
        self._best, self._waited = state["best"], state["waited"]
        self._apply()

    def _apply(self) -> None:
        # Loading its state gives the optimizer new dicts of groups: they are asked for each time.
        for group, base_lr in zip(self._optimizer.param_groups, self._base_lrs, strict=True):
            group["lr"] = base_lr * self.factor
