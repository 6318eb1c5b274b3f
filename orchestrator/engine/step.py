"""One optimizer step on a global batch. Imports: torch."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch

from orchestrator.data.prepared.order import rank_slice
from orchestrator.engine.attempt import Attempt
from orchestrator.engine.optim.optimizer import add_l1
from orchestrator.engine.parallel.gradients import clip_gradients, gradient_norm
from orchestrator.engine.parallel.wrap import no_sync
from orchestrator.engine.recipe import augment_plan, learned_targets, training_batch
from orchestrator.engine.trouble import diverged, is_finite


def train_step(attempt: Attempt, indices: npt.NDArray[np.int64]) -> tuple[torch.Tensor, float]:
    """One optimizer step; returns this rank's weighted sum of sample losses (detached, on the device), and the
    sum of weights over the *global* batch.

    The gradient is that of (Σ weighted sample losses) / (Σ weights) over all ranks: each rank divides its
    sum by the global weight and multiplies by the world size, which the mean over ranks takes out again.
    A rank without a share, or a part of one, takes part with one sample of weight 0.
    """
    recipe, link, clock = attempt.recipe, attempt.link, attempt.clock
    clock.start()
    mine = indices[rank_slice(len(indices), link.rank, link.world_size)]
    # Equally many on all ranks: a sharded model's forward pass is collective.
    parts = np.array_split(mine, num_microbatches(len(indices), link.world_size, attempt.microbatch_size))
    weight = global_weight(attempt, indices)
    loss_sum = torch.zeros((), device=link.device)
    attempt.optimizer.zero_grad(set_to_none=True)
    for number, part in enumerate(parts, start=1):
        rows = part if len(part) else indices[:1]
        scale = link.world_size / weight if len(part) else 0.0
        inputs, targets = training_batch(recipe, attempt.placement, rows, attempt.position.epoch)
        clock.lap("data")
        more = number < len(parts)
        with no_sync(attempt.parallel, enabled=more):
            with attempt.precision.autocast():
                outputs = attempt.parallel(inputs)
            losses = recipe.objective.losses(recipe.objective.shape_outputs(outputs.float()), targets)
            loss = losses.sum()
            clock.lap("forward")
            if attempt.watches_losses and not is_finite(loss) and recipe.train.nonfinite == "stop":
                raise diverged(
                    attempt.model,
                    inputs,
                    targets,
                    rows=rows,
                    step=attempt.position.step + 1,
                    lr=attempt.lr,
                    loss=loss.item(),
                    evidence=attempt.evidence,
                    rank=link.rank,
                )
            scaled = loss * scale
            (attempt.scaler.scale(scaled) if attempt.scaler else scaled).backward()
            # The meter ended the backward phase when the last gradients were on their way.
            clock.lap("communication" if attempt.averages and not more else "backward")
        if len(part):
            loss_sum += loss.detach()
    _update(attempt)
    clock.lap("optimizer")
    return loss_sum, weight


def num_microbatches(batch_size: int, world_size: int, microbatch_size: int) -> int:
    """Into how many parts every rank cuts its share of a global batch."""
    return max(1, math.ceil(math.ceil(batch_size / world_size) / microbatch_size))


def global_weight(attempt: Attempt, indices: npt.NDArray[np.int64]) -> float:
    """Σ of the samples' weights over a global batch. Every rank finds it in its own map of the data."""
    objective, part = attempt.recipe.objective, attempt.recipe.train_part
    if objective.weigh is None:
        return float(len(indices))
    plan = augment_plan(attempt.recipe, indices, attempt.position.epoch)
    weights = objective.weights(learned_targets(attempt.recipe, plan, part.gather(plan.rows).targets))
    return float(len(indices)) if weights is None else max(float(weights.sum()), 1e-12)


def _update(attempt: Attempt) -> None:
    """Bring the gradients into the weights, unless they are not finite and such steps are to be left out."""
    section, optimizer, scaler = attempt.recipe.train, attempt.optimizer, attempt.scaler
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm = clip_gradients(attempt.trained, section.clip_grad_norm, section.clip_grad_value)
    if section.nonfinite == "skip" and scaler is None:  # fp16's scaler leaves such steps out itself
        norm = gradient_norm(attempt.trained) if norm is None else norm
        if not is_finite(norm):  # all ranks hold the same gradients, so all decide the same
            attempt.position.skipped += 1
            attempt.link.notice(
                f"step {attempt.position.step + 1} was left out: its gradients are not finite"
            )
            return
    add_l1(optimizer)
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
    else:
        optimizer.step()
    if attempt.ema is not None:
        attempt.ema.update()
