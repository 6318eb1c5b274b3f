"""One optimizer step on a global batch. Imports: torch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from orchestrator.data.prepared.feed import Fed, Wanted, feed
from orchestrator.data.prepared.order import EpochOrder, rank_slice
from orchestrator.engine.attempt import Attempt
from orchestrator.engine.optim.optimizer import add_l1
from orchestrator.engine.parallel.gradients import clip_gradients, gradient_norm
from orchestrator.engine.parallel.wrap import no_sync
from orchestrator.engine.recipe import augment_plan, learned_targets, training_batch
from orchestrator.engine.trouble import diverged, is_finite


def training_feed(
    attempt: Attempt, order: EpochOrder, first: int
) -> contextlib.AbstractContextManager[Iterator[Fed]]:
    """What this rank needs for each step of an epoch, from batch `first` on, gathered ahead: its rows of each
    microbatch, and where samples are weighed the targets of the global batch; with all that is mixed into them."""
    recipe, link, epoch = attempt.recipe, attempt.link, attempt.position.epoch
    size = min(recipe.train.global_batch_size, recipe.train_part.num_rows)
    whole = rank_slice(size, 0, link.world_size)

    def wanted(k: int) -> Wanted:
        rows = order.batch(k)
        parts = [
            augment_plan(recipe, _stand_in(part, rows), epoch).rows for part in microbatches(attempt, rows)
        ]
        weighed = recipe.objective.weigh is not None
        return Wanted(rows, parts, augment_plan(recipe, rows, epoch).rows if weighed else None)

    return feed(
        recipe.train_part,
        wanted,
        first,
        recipe.steps_per_epoch,
        rows_per_item=whole.stop,
        order=order,
        pin=link.device.type == "cuda",
    )


def train_step(attempt: Attempt, fed: Fed) -> tuple[torch.Tensor, float]:
    """One optimizer step on a global batch; returns this rank's weighted sum of sample losses (detached, on the
    device), and the sum of weights over the *global* batch.

    The gradient is that of (Σ weighted sample losses) / (Σ weights) over all ranks: each rank divides its
    sum by the global weight and multiplies by the world size, which the mean over ranks takes out again.
    A rank without a share, or a part of one, takes part with one sample of weight 0.
    """
    recipe, link, clock, indices = attempt.recipe, attempt.link, attempt.clock, fed.wanted.rows
    parts = microbatches(attempt, indices)
    weight = global_weight(attempt, indices, fed.targets)
    loss_sum = torch.zeros((), device=link.device)
    attempt.optimizer.zero_grad(set_to_none=True)
    for number, (part, batch) in enumerate(zip(parts, fed.batches, strict=True), start=1):
        rows = _stand_in(part, indices)
        scale = link.world_size / weight if len(part) else 0.0
        inputs, targets = training_batch(recipe, attempt.placement, rows, attempt.position.epoch, batch)
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


def microbatches(attempt: Attempt, indices: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """This rank's rows of a global batch, cut into microbatches, of which some may be empty. Equally many on all
    ranks: a sharded model's forward pass is collective."""
    link = attempt.link
    mine = indices[rank_slice(len(indices), link.rank, link.world_size)]
    count = num_microbatches(len(indices), link.world_size, attempt.microbatch_size)
    return np.array_split(mine, count) if count > 1 else [mine]


def _stand_in(part: npt.NDArray[np.int64], indices: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """A rank that has no rows computes one, which counts nothing."""
    return part if len(part) else indices[:1]


def num_microbatches(batch_size: int, world_size: int, microbatch_size: int) -> int:
    """Into how many parts every rank cuts its share of a global batch."""
    return max(1, math.ceil(math.ceil(batch_size / world_size) / microbatch_size))


def global_weight(attempt: Attempt, rows: npt.NDArray[np.int64], targets: torch.Tensor | None) -> float:
    """Σ of the samples' weights over a global batch of these rows; `targets` are those as stored, of the rows and
    of what is mixed into them. Every rank finds them in its own map of the data."""
    recipe = attempt.recipe
    if recipe.objective.weigh is None or targets is None:
        return float(len(rows))
    plan = augment_plan(recipe, rows, attempt.position.epoch)
    weights = recipe.objective.weights(learned_targets(recipe, plan, targets))
    return float(len(rows)) if weights is None else max(float(weights.sum()), 1e-12)


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
