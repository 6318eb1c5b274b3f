"""After the last step: test the best weights, and write the result and the model. Imports: engine, export."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from orchestrator.data.prepared.prepared import Prepared
from orchestrator.engine.attempt import Attempt
from orchestrator.engine.checkpoint import Manifest
from orchestrator.engine.device.precision import Precision, resolve_precision
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.loop import Outcome
from orchestrator.engine.objective.evaluate import Evaluation, evaluate
from orchestrator.engine.own import TrainContext
from orchestrator.engine.parallel.state import load_ema_state, load_model_state, model_state
from orchestrator.engine.recipe import Placement, Position, Recipe
from orchestrator.errors import CheckpointError
from orchestrator.export.bundle import write_bundle
from orchestrator.records import Progress
from orchestrator.worker.task import WorkerTask

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Ending:
    """How the training came to its end, and the checkpoint that became the model."""

    outcome: Outcome
    position: Position
    best: Manifest | None
    stopped_early: bool


def finish(task: WorkerTask, attempt: Attempt, prepared: Prepared, outcome: Outcome) -> None:
    """Evaluate the best checkpoint, and let rank 0 write the result and the model. Collective."""
    link, recipe = attempt.link, attempt.recipe
    link.progress(
        Progress(
            attempt.position.epoch,
            recipe.train.max_epochs,
            attempt.position.step,
            recipe.total_steps,
            phase="finishing",
            val_loss=attempt.metrics.get("val/loss"),
        )
    )
    step = attempt.position.step
    link.beat("finishing", step)
    best = _load_best(attempt)
    with attempt.ema.swap() if attempt.ema else contextlib.nullcontext():
        test = _test(
            attempt.model,
            recipe,
            prepared,
            attempt.placement,
            attempt.precision,
            attempt.microbatch_size,
            lambda: link.beat("finishing", step),
        )
        weights = model_state(attempt.parallel)
        if attempt.ema:  # the state shares the model's memory, which gets its own weights back
            weights = copy.deepcopy(weights)
    if link.rank == 0:
        ending = _Ending(outcome, attempt.position, best, attempt.stopped_early)
        _write(task, link, prepared, attempt.model, weights, test, ending)


def finish_own(
    task: WorkerTask, context: TrainContext, model: torch.nn.Module | None, outcome: Outcome
) -> None:
    """The same for the model that the user's own train function returned, if any. Collective."""
    link, recipe, prepared = context.link, context.recipe, context.prepared
    test = None
    if model is not None:
        precision = resolve_precision(recipe.train.precision, link.device)
        size = recipe.train.microbatch_size or recipe.train.global_batch_size
        step = context.position.step
        link.beat("finishing", step)
        test = _test(
            model, recipe, prepared, context.placement, precision, size, lambda: link.beat("finishing", step)
        )
    if link.rank == 0:
        weights = model.state_dict() if model is not None else None
        ending = _Ending(outcome, context.position, context.store.best(), stopped_early=False)
        _write(task, link, prepared, model, weights, test, ending)


def _best_metrics(best: Manifest | None, step: int) -> dict[str, float]:
    metrics = {"best/step": float(best.step if best else step)}
    return metrics | {
        f"best/{key.replace('val/', 'val_')}": value for key, value in (best.metrics if best else {}).items()
    }


def _write(
    task: WorkerTask,
    link: WorkerLink,
    prepared: Prepared,
    model: torch.nn.Module | None,
    weights: Mapping[str, torch.Tensor] | None,
    test: Evaluation | None,
    ending: _Ending,
) -> None:
    """The model bundle and `result.json`. Rank 0 only."""
    manifest = prepared.manifest
    position, best = ending.position, ending.best
    metrics = _best_metrics(best, position.step)
    if weights is not None:
        write_bundle(
            task.run.model,
            model=task.spec.model,
            model_state=weights,
            pipeline=prepared.pipeline,
            task=manifest.task,
            num_outputs=manifest.num_outputs,
            input_example=prepared.raw_example(),
            search_paths=task.search_paths,
        )
    result: dict[str, Any] = {
        "metrics": {**metrics, **(test.named("test") if test else {})},
        "best_step": int(metrics["best/step"]),
        "checkpoint": best.name if best else None,
        "confusion_matrix": test.confusion_matrix if test else None,
        "predictions": test.predictions if test else None,
        "num_parameters": sum(tensor.numel() for tensor in model.parameters()) if model else None,
        "world_size": link.world_size,
        "device": str(link.device),
        "step": position.step,
        "epoch": position.epoch,
        "stopped_early": ending.stopped_early,
        "attempt": link.attempt,
        "train": asdict(ending.outcome),
    }
    task.run.write_result(result)


def _load_best(attempt: Attempt) -> Manifest | None:
    """Put the best checkpoint's weights into the model; the newest weights stay where there is none, or where
    it is damaged (every rank reads the same file and comes to the same end)."""
    best = attempt.store.best()
    if best is None or best.step == attempt.position.step:
        return best
    try:
        owners = attempt.store.load(best)
    except CheckpointError as error:
        _log.error("the newest weights are taken instead of the best: %s", error)
        return None
    load_model_state(attempt.parallel, owners["model"])
    if attempt.ema and owners.get("ema"):
        load_ema_state(attempt.parallel, attempt.ema, owners["ema"])
    return best


def _test(
    model: torch.nn.Module,
    recipe: Recipe,
    prepared: Prepared,
    placement: Placement,
    precision: Precision,
    batch_size: int,
    on_batch: Callable[[], None],
) -> Evaluation | None:
    if not prepared.manifest.rows["test"]:
        return None
    return evaluate(
        model,
        prepared.part("test"),
        recipe.pipeline,
        recipe.objective,
        recipe.metric_names,
        num_outputs=recipe.num_outputs,
        placement=placement,
        precision=precision,
        batch_size=batch_size,
        detailed=True,
        on_batch=on_batch,
    )
