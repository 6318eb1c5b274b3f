"""What rank 0 tells of a window of steps: losses, pace, where the time and the memory went. Imports: torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from orchestrator.checkpoints.cadence import Cadence
from orchestrator.checkpoints.saver import Saver
from orchestrator.engine.attempt import Attempt
from orchestrator.engine.device.clock import PHASES, peak_memory_bytes
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.window import Agreement
from orchestrator.records import Point, Progress


def log_window(attempt: Attempt, agreement: Agreement, phases: Mapping[str, float]) -> None:
    """Log a window's steps and its pace, and report progress. Rank 0 only."""
    recipe, link, position = attempt.recipe, attempt.link, attempt.position
    every = recipe.train.log_every_n_steps
    newest = agreement.records[-1]
    points = [
        Point("train/loss", record.loss, record.step, record.timestamp_ms)
        for record in agreement.records
        if record.step % every == 0
    ]
    # What changes little, or is known beforehand, once per window: each point costs the driver's CPU time.
    once = {"train/lr": newest.lr}
    once |= {f"perf/{name}": value for name, value in _pace(attempt, agreement, phases).items()}
    points += [Point(key, value, newest.step, newest.timestamp_ms) for key, value in once.items()]
    link.log_points(points)
    slow = attempt.stragglers.update(agreement.rank_seconds)
    if slow is not None:
        rank, times = slow
        link.notice(
            f"rank {rank} is a straggler: it takes {times:.1f} times as long as the others for its work"
        )
    left = (recipe.total_steps - position.step) * recipe.train.global_batch_size
    report(attempt, "training", newest.loss, agreement.samples_per_s, left / agreement.samples_per_s)


def report(
    attempt: Attempt,
    phase: Literal["training", "evaluating", "finishing"],
    loss: float | None = None,
    samples_per_s: float = 0.0,
    eta_s: float | None = None,
) -> None:
    """Tell the driver where the run stands."""
    recipe, position = attempt.recipe, attempt.position
    if eta_s is not None and recipe.train.max_time is not None:
        eta_s = min(eta_s, max(0.0, recipe.train.max_time - position.seconds))
    attempt.link.progress(
        Progress(
            epoch=min(position.epoch + 1, recipe.train.max_epochs),
            max_epochs=recipe.train.max_epochs,
            step=position.step,
            max_steps=recipe.total_steps,
            samples_per_s=samples_per_s,
            train_loss=loss,
            val_loss=attempt.metrics.get("val/loss"),
            eta_s=eta_s,
            phase=phase,
            step_seconds=attempt.step_seconds,
            stall_s=attempt.saver.stall_s,
            saved_step=attempt.saver.saved_step,
            started_step=attempt.started_step,
        )
    )


def log_saves(link: WorkerLink, saver: Saver, cadence: Cadence) -> None:
    """Log what the checkpoints cost that were committed since the last call, and learn from it how often to save.
    Rank 0 only."""
    for saved in saver.take_saved():
        costs = {"seconds": saved.seconds, "stall_seconds": saved.stall_s, "bytes": float(saved.size_bytes)}
        link.log({f"perf/checkpoint_{name}": value for name, value in costs.items()}, saved.step)
        interval_s = cadence.learn(saved)
        if interval_s is not None:
            link.log({"checkpoint/interval_s": interval_s}, saved.step)
            link.notice(
                f"checkpoint.every: auto: a save every {interval_s:.0f} s (the last one took {saved.seconds:.2f} s, "
                f"of which training waited {saved.stall_s:.3f} s)"
            )


def _pace(attempt: Attempt, agreement: Agreement, phases: Mapping[str, float]) -> dict[str, float]:
    """Throughput, milliseconds of a step's phases, bytes sent, memory, and how well a GPU is used."""
    steps = len(agreement.records)
    pace = {"samples_per_s": agreement.samples_per_s}
    pace |= {f"{phase}_ms": 1000 * phases[phase] / steps for phase in PHASES if phase in phases}
    pace["peak_memory_bytes"] = float(peak_memory_bytes(attempt.link.device))
    if attempt.link.world_size > 1:
        pace["sent_bytes_per_step"] = attempt.meter.take() / steps
    if attempt.peak_flops:
        done = agreement.samples_per_s * attempt.sample_flops
        pace["mfu"] = done / (attempt.peak_flops * attempt.link.world_size)
    return pace
