"""The training loop: epochs, steps, validation, checkpoints, a stop that loses nothing. Imports: torch."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from orchestrator.data.order import batch_indices, epoch_permutation, rank_slice
from orchestrator.engine.attempt import Attempt
from orchestrator.engine.evaluate import evaluate
from orchestrator.errors import Diverged, UserCodeError
from orchestrator.records import Point, Progress


@dataclass(frozen=True)
class Outcome:
    """How the loop ended, and over how much of what this attempt did."""

    status: Literal["completed", "stopped"]
    steps: int
    samples: int
    seconds: float


def train(attempt: Attempt) -> Outcome:
    """Train to the end, or until the driver asks to stop; in both cases a checkpoint is left. Collective."""
    recipe, position = attempt.recipe, attempt.position
    began, first_step, samples = time.perf_counter(), position.step, 0
    stopped = False
    attempt.window.restart_clock()
    while not _finished(attempt) and not stopped:
        order = epoch_permutation(recipe.train_part.num_rows, recipe.seed, position.epoch)
        while position.batch < recipe.steps_per_epoch and position.step < recipe.total_steps and not stopped:
            indices = batch_indices(order, position.batch, recipe.train.global_batch_size)
            loss_sum = train_step(attempt, indices)
            samples += len(indices)
            attempt.window.add(
                position.step + 1, loss_sum, len(indices), attempt.optimizer.param_groups[0]["lr"]
            )
            attempt.scheduler.step()
            position.step += 1
            position.batch += 1
            position.evaluated = False
            last = position.batch == recipe.steps_per_epoch or position.step == recipe.total_steps
            every = attempt.saving.every_n_steps
            due = every is not None and position.step % every == 0
            # A checkpoint carries the points of all steps before it, so the window is emptied first.
            if attempt.window.full or last or due:
                stopped = _agree(attempt)
            if stopped or (due and not last):
                attempt.save()
                attempt.window.restart_clock()
        if not stopped:
            _end_epoch(attempt)
    return Outcome(
        status="stopped" if stopped else "completed",
        steps=position.step - first_step,
        samples=samples,
        seconds=time.perf_counter() - began,
    )


def train_step(attempt: Attempt, indices: npt.NDArray[np.int64]) -> torch.Tensor:
    """One optimizer step on a global batch; returns this rank's sum of sample losses, detached.

    The gradient is that of (sum of sample losses) / (number of samples) over all ranks: each rank
    divides its sum by the global number and multiplies by the world size, which DDP's mean takes out again.
    A rank without a share takes part with one sample of weight 0.
    """
    recipe, link = attempt.recipe, attempt.link
    mine = indices[rank_slice(len(indices), link.rank, link.world_size)]
    weight = 1.0
    if not len(mine):
        mine, weight = indices[:1], 0.0
    size = recipe.train.microbatch_size or len(mine)
    loss_sum = torch.zeros((), device=link.device)
    attempt.optimizer.zero_grad(set_to_none=True)
    for start in range(0, len(mine), size):
        batch = recipe.train_part.gather(mine[start : start + size])
        features = recipe.pipeline.transform(batch.features.to(link.device))
        targets = recipe.pipeline.transform_targets(batch.targets.to(link.device))
        ends = start + size >= len(mine)
        with contextlib.nullcontext() if ends else _no_sync(attempt.parallel):
            outputs = recipe.objective.shape_outputs(attempt.parallel(features))
            losses = recipe.objective.losses(outputs, targets)
            loss = losses.sum() if weight else losses.sum() * 0.0
            (loss * link.world_size / len(indices)).backward()
        loss_sum += loss.detach()
    if recipe.train.clip_grad_norm:
        torch.nn.utils.clip_grad_norm_(attempt.model.parameters(), recipe.train.clip_grad_norm)
    attempt.optimizer.step()
    return loss_sum


def _no_sync(parallel: torch.nn.Module) -> contextlib.AbstractContextManager[None]:
    if isinstance(parallel, torch.nn.parallel.DistributedDataParallel):
        context: contextlib.AbstractContextManager[None] = parallel.no_sync()
        return context
    return contextlib.nullcontext()


def _finished(attempt: Attempt) -> bool:
    recipe, position = attempt.recipe, attempt.position
    done = position.epoch >= recipe.train.max_epochs or position.step >= recipe.total_steps
    return attempt.stopped_early or (done and position.evaluated)


def _agree(attempt: Attempt) -> bool:
    """Let the ranks talk, log the window's steps, report progress; True where the run is to stop."""
    recipe, link, position = attempt.recipe, attempt.link, attempt.position
    agreement = attempt.window.agree(stop=link.stop_requested())
    for record in agreement.records:
        if not math.isfinite(record.loss):  # all ranks see the same and end together
            raise Diverged(
                f"the training loss became {record.loss} at step {record.step} (learning rate {record.lr:g})",
                "lower train.optimizer.lr, add train.schedule.warmup_steps or train.clip_grad_norm, or look for "
                "wrong values in the data",
            )
    if link.rank == 0 and agreement.records:
        every = recipe.train.log_every_n_steps
        newest = agreement.records[-1]
        points = [
            point
            for record in agreement.records
            if record.step % every == 0
            for point in (
                Point("train/loss", record.loss, record.step, record.timestamp_ms),
                Point("train/lr", record.lr, record.step, record.timestamp_ms),
            )
        ]
        points.append(Point("perf/samples_per_s", agreement.samples_per_s, newest.step, newest.timestamp_ms))
        link.log_points(points)
        left = (recipe.total_steps - position.step) * recipe.train.global_batch_size
        _report(attempt, "training", newest.loss, agreement.samples_per_s, left / agreement.samples_per_s)
    return agreement.stop


def _end_epoch(attempt: Attempt) -> None:
    """Validate, decide on early stopping, save; then the next epoch is at batch 0."""
    recipe, link, position = attempt.recipe, attempt.link, attempt.position
    ended = position.batch >= recipe.steps_per_epoch
    if ended:
        position.epoch, position.batch = position.epoch + 1, 0
    final = position.epoch >= recipe.train.max_epochs or position.step >= recipe.total_steps
    due = position.epoch % recipe.train.evaluate_every_n_epochs == 0
    attempt.metrics = {}
    if recipe.val_part is not None and (due or final):
        validate(attempt)
    position.evaluated = True
    if final or attempt.stopped_early or position.epoch % attempt.saving.every_n_epochs == 0:
        attempt.save()
    if link.rank == 0:
        link.log({"epoch": float(position.epoch)}, position.step)
    attempt.window.restart_clock()


def validate(attempt: Attempt) -> None:
    """Evaluate the validation part, log it, and ask the early stopper. Collective."""
    recipe, link = attempt.recipe, attempt.link
    assert recipe.val_part is not None
    evaluation = evaluate(
        attempt.model,
        recipe.val_part,
        recipe.pipeline,
        recipe.objective,
        recipe.metric_names,
        num_outputs=recipe.num_outputs,
        device=link.device,
        batch_size=recipe.train.microbatch_size or recipe.train.global_batch_size,
    )
    attempt.metrics = evaluation.named("val")
    link.log(attempt.metrics, attempt.position.step)
    _report(attempt, "evaluating", None, 0.0, None)
    if attempt.stopper is not None:
        value = attempt.metrics.get(attempt.stopper.metric)
        if value is None:
            raise UserCodeError(
                f"train.early_stopping.metric: there is no '{attempt.stopper.metric}'",
                f"write one of: {', '.join(attempt.metrics)}",
            )
        attempt.stopped_early = attempt.stopper.update(value)


def _report(
    attempt: Attempt,
    phase: Literal["training", "evaluating"],
    loss: float | None,
    rate: float,
    eta_s: float | None,
) -> None:
    recipe, position = attempt.recipe, attempt.position
    attempt.link.progress(
        Progress(
            epoch=min(position.epoch + 1, recipe.train.max_epochs),
            max_epochs=recipe.train.max_epochs,
            step=position.step,
            max_steps=recipe.total_steps,
            samples_per_s=rate,
            train_loss=loss,
            val_loss=attempt.metrics.get("val/loss"),
            eta_s=eta_s,
            phase=phase,
        )
    )
