"""Optimizers and learning-rate schedules from the spec. Imports: torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from orchestrator.spec.optim import Optimizer, Schedule


def build_optimizer(section: Optimizer, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer over the parameters that take gradients."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if section.kind == "sgd":
        return torch.optim.SGD(
            trained,
            lr=section.lr,
            momentum=section.momentum,
            nesterov=section.nesterov,
            weight_decay=section.weight_decay,
        )
    return torch.optim.AdamW(
        trained, lr=section.lr, betas=section.betas, eps=section.eps, weight_decay=section.weight_decay
    )


def learning_rate_factor(
    section: Schedule, *, base_lr: float, total_steps: int, steps_per_epoch: int
) -> Callable[[int], float]:
    """What the base learning rate is multiplied by at optimizer step 0, 1, 2, …

    Warm-up is linear and reaches 1 at step `warmup_steps`; what follows is counted from its end.
    Cosine: Loshchilov and Hutter 2017 (arXiv:1608.03983), one period, without restarts.
    """
    warmup = section.warmup_steps
    warmup_steps = round(warmup * total_steps) if 0 < warmup < 1 else int(warmup)
    floor = section.min_lr / base_lr

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / (warmup_steps + 1)
        if section.kind == "cosine":
            share = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
            return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * share))
        if section.kind == "step":
            return float(section.gamma ** (step // (section.step_epochs * steps_per_epoch)))
        return 1.0

    return factor


def build_scheduler(
    section: Schedule, optimizer: torch.optim.Optimizer, *, total_steps: int, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """The schedule as a torch scheduler, to be stepped once after each optimizer step."""
    base_lr = optimizer.param_groups[0]["lr"]
    factor = learning_rate_factor(
        section, base_lr=base_lr, total_steps=total_steps, steps_per_epoch=steps_per_epoch
    )
    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
