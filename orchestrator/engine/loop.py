"""The training loop: epochs, steps, validation, checkpoints, a stop that loses nothing. Imports: torch."""

from __future__ import annotations

import contextlib
import math
import time
from dataclasses import dataclass
from typing import Literal

from orchestrator.engine import collectives
from orchestrator.engine.attempt import Attempt
from orchestrator.engine.objective.evaluate import evaluate
from orchestrator.engine.profile import StepProfiler
from orchestrator.engine.reporting import log_saves, log_window, report
from orchestrator.engine.step import train_step, training_feed
from orchestrator.engine.window import Wish
from orchestrator.errors import Diverged, UserCodeError
from orchestrator.records import EpochReport


@dataclass(frozen=True)
class Outcome:
    """How the loop ended, and over how much of what this attempt did."""

    status: Literal["completed", "stopped", "left"]
    steps: int
    samples: int
    seconds: float


def train(attempt: Attempt, profiler: StepProfiler | None = None) -> Outcome:
    """Train to the end, or until the driver asks to stop; in both cases a checkpoint is left. A trial that is given up
    leaves none. Collective.

    Raises CheckpointError where that one, or too many before it, could not be written.
    """
    try:
        outcome = _train(attempt, profiler)
        attempt.link.beat("saving", attempt.position.step)
        attempt.saver.finish()
        collectives.barrier()  # only now the last checkpoint is there for all
        log_saves(attempt.link, attempt.saver, attempt.cadence)
    finally:
        attempt.saver.close()
    return outcome


def _train(attempt: Attempt, profiler: StepProfiler | None) -> Outcome:
    recipe, position = attempt.recipe, attempt.position
    began, first_step, samples = time.perf_counter(), position.step, 0
    stopped = left = False
    attempt.window.restart_clock()
    attempt.cadence.saved(time.monotonic())
    while not _finished(attempt) and not (stopped or left):
        wish: Wish = "go on"
        due = False
        with training_feed(attempt, recipe.order(position.epoch), position.batch) as steps:
            while (
                position.batch < recipe.steps_per_epoch
                and not _budget_spent(attempt)
                and not (stopped or left)
            ):
                lr = attempt.lr
                attempt.clock.start()
                fed = next(steps)
                loss_sum, weight = train_step(attempt, fed)
                num_samples = len(fed.wanted.rows)
                samples += num_samples
                attempt.window.add(position.step + 1, loss_sum, weight, num_samples, lr)
                attempt.schedule.step()
                position.step += 1
                attempt.link.beat("training", position.step)
                position.batch += 1
                position.evaluated = False
                if profiler is not None:
                    profiler.step(position.step)
                last = position.batch == recipe.steps_per_epoch or position.step == recipe.total_steps
                every = attempt.saving.every_n_steps
                due = every is not None and position.step % every == 0
                # A checkpoint carries the points of all steps before it, so the window is emptied first.
                if attempt.window.full or last or due:
                    wish = _agree(attempt)
                    stopped, left = wish == "stop", wish == "leave"
                    due = due or wish == "save"
                if stopped or (due and not last and not left):
                    attempt.link.beat("saving", position.step)
                    attempt.save()
                    attempt.window.restart_clock()
        if not (stopped or left):
            wish = _end_epoch(attempt, due)
            stopped, left = wish == "stop", wish == "leave"
    return Outcome(
        status="left" if left else "stopped" if stopped else "completed",
        steps=position.step - first_step,
        samples=samples,
        seconds=time.perf_counter() - began,
    )


def _budget_spent(attempt: Attempt) -> bool:
    return attempt.out_of_time or attempt.position.step >= attempt.recipe.total_steps


def _finished(attempt: Attempt) -> bool:
    done = attempt.position.epoch >= attempt.recipe.train.max_epochs or _budget_spent(attempt)
    return attempt.stopped_early or (done and attempt.position.evaluated)


def _agree(attempt: Attempt) -> Wish:
    """Let the ranks talk, log the window's steps, report progress; what rank 0 wishes."""
    link, position, train = attempt.link, attempt.position, attempt.recipe.train
    phases = attempt.clock.take()
    over = train.max_time is not None and position.seconds + attempt.window.elapsed_s >= train.max_time
    wish: Wish = link.wish()
    if wish not in ("stop", "leave") and over:
        wish = "finish"
    elif wish == "go on" and attempt.cadence.due(time.monotonic()):
        wish = "save"
    # What a rank does alone: in the backward pass it waits for the others.
    agreement = attempt.window.agree(
        wish=wish, own_seconds=phases.get("data", 0.0) + phases.get("forward", 0.0)
    )
    position.seconds += agreement.elapsed_s
    attempt.step_seconds += agreement.elapsed_s
    if train.nonfinite == "stop":
        for record in agreement.records:
            if not math.isfinite(record.loss):  # all ranks see the same and end together
                raise Diverged(
                    f"the training loss became {record.loss} at step {record.step} (learning rate "
                    f"{record.lr:g})",
                    "lower train.optimizer.lr, add train.schedule.warmup_steps or train.clip_grad_norm, or look "
                    "for wrong values in the data",
                )
    if agreement.records:
        attempt.train_loss = agreement.records[-1].loss
    if link.rank == 0 and agreement.records:
        log_saves(link, attempt.saver, attempt.cadence)
        log_window(attempt, agreement, phases)
    attempt.reserve()
    if agreement.wish == "finish":
        attempt.out_of_time = True
    return agreement.wish


def _end_epoch(attempt: Attempt, save_due: bool) -> Wish:
    """Validate, decide on early stopping, ask what becomes of a trial, save (where a save is due, in any case); then
    the next epoch is at batch 0. Gives "stop" or "leave" where the trial ends here before its end."""
    recipe, link, position = attempt.recipe, attempt.link, attempt.position
    if position.batch >= recipe.steps_per_epoch:
        position.epoch, position.batch = position.epoch + 1, 0
    final = position.epoch >= recipe.train.max_epochs or _budget_spent(attempt)
    due = position.epoch % recipe.train.evaluate_every_n_epochs == 0
    attempt.metrics = {}
    if recipe.val_part is not None and (due or final):
        validate(attempt)
    position.evaluated = True
    if link.rank == 0:  # before the save, which carries it: whoever goes on from there does not say it again
        link.log({"epoch": float(position.epoch)}, position.step)
    final = final or attempt.stopped_early
    wish: Wish = "go on"
    if link.gates is not None and (due or final):
        wish = _tell(attempt, final)
    save_due = save_due or position.epoch % attempt.saving.every_n_epochs == 0
    if wish != "leave" and (save_due or final or wish == "stop"):
        link.beat("saving", position.step)
        attempt.save()
    attempt.window.restart_clock()
    return wish


def _tell(attempt: Attempt, final: bool) -> Wish:
    """Report a trial's epoch; what the driver decides, where it decides here. Collective."""
    link, position = attempt.link, attempt.position
    wish: Wish = "go on"
    metrics = {"train/loss": attempt.train_loss, **attempt.metrics}
    epoch = position.epoch + (position.batch > 0)  # the last one counts where a budget cut it short
    link.report(EpochReport(epoch, position.step, metrics, position.seconds, final))
    if not final and link.gates is not None and position.epoch in link.gates:
        wish = collectives.broadcast_object(link.decision(position.epoch) if link.rank == 0 else None)
    return wish if wish in ("stop", "leave") else "go on"


def validate(attempt: Attempt) -> None:
    """Evaluate the validation part, log it, ask the early stopper and the schedule. Collective."""
    recipe, link = attempt.recipe, attempt.link
    assert recipe.val_part is not None
    with attempt.ema.swap() if attempt.ema else contextlib.nullcontext():
        evaluation = evaluate(
            attempt.model,
            recipe.val_part,
            recipe.pipeline,
            recipe.objective,
            recipe.metric_names,
            num_outputs=recipe.num_outputs,
            precision=attempt.precision,
            placement=attempt.placement,
            batch_size=attempt.microbatch_size,
            on_batch=lambda: link.beat("evaluating", attempt.position.step),
        )
    attempt.metrics = evaluation.named("val")
    link.log(attempt.metrics, attempt.position.step)
    report(attempt, "evaluating")
    if attempt.schedule.metric is not None:
        attempt.schedule.plateau(_wanted(attempt, attempt.schedule.metric, "train.schedule.metric"))
    if attempt.stopper is not None:
        value = _wanted(attempt, attempt.stopper.metric, "train.early_stopping.metric")
        attempt.stopped_early = attempt.stopper.update(value)


def _wanted(attempt: Attempt, metric: str, field: str) -> float:
    value = attempt.metrics.get(metric)
    if value is None:
        raise UserCodeError(f"{field}: there is no '{metric}'", f"write one of: {', '.join(attempt.metrics)}")
    return value
