"""`train_worker`: the one place where the parts are put together, the same for every runner.

What a worker does, from its task to a result: environment, data, model, training, evaluation of the best
checkpoint, the model bundle. Imports: everything above it in the layer table; no ray, no mlflow.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from orchestrator.data.prepared import Prepared
from orchestrator.engine import collectives
from orchestrator.engine.attempt import Attempt, Recipe, start_attempt
from orchestrator.engine.causes import cause_of, describe, mend_of
from orchestrator.engine.checkpoint import CheckpointStore, Manifest
from orchestrator.engine.evaluate import Evaluation, evaluate
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.loop import Outcome, train
from orchestrator.engine.metrics import DEFAULTS, check_metrics
from orchestrator.engine.objective import build_objective
from orchestrator.errors import CheckpointError, UsageError
from orchestrator.export.bundle import write_bundle
from orchestrator.imports import add_search_paths
from orchestrator.models.build import build_model
from orchestrator.monitor.rank_log import rank_log
from orchestrator.records import Failure, Progress
from orchestrator.runs.folder import RunFolder
from orchestrator.spec import JobSpec, redact, secret_values
from orchestrator.storage import Folder

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerTask:
    """All a worker needs to know; travels pickled. Relative search paths count from its own folder."""

    spec: JobSpec
    run: RunFolder
    prepared_uri: str
    search_paths: Sequence[str]


def checkpoint_store(spec: JobSpec, run: RunFolder) -> CheckpointStore:
    """The checkpoints of a run, as its spec wants them kept."""
    return CheckpointStore(
        run.checkpoints,
        num_to_keep=spec.checkpoint.num_to_keep,
        score_attribute=spec.checkpoint.checkpoint_score_attribute,
        score_order=spec.checkpoint.checkpoint_score_order,
    )


def build_recipe(spec: JobSpec, prepared: Prepared) -> Recipe:
    """What the spec asks to be trained on the prepared data. Raises UsageError where the two do not fit."""
    manifest = prepared.manifest
    names = DEFAULTS[manifest.task] if spec.train.metrics is None else spec.train.metrics
    check_metrics(manifest.task, names)
    recipe = Recipe(
        train=spec.train,
        seed=spec.seed,
        build=lambda: build_model(spec.model, manifest.input_shape, manifest.num_outputs),
        train_part=prepared.part("train"),
        val_part=prepared.part("val") if manifest.rows["val"] else None,
        pipeline=prepared.pipeline,
        objective=build_objective(manifest.task, spec.train.loss, num_outputs=manifest.num_outputs),
        metric_names=names,
        num_outputs=manifest.num_outputs,
    )
    if recipe.total_steps == 0:
        raise UsageError(
            f"the training part has {manifest.rows['train']} rows, fewer than train.global_batch_size "
            f"({spec.train.global_batch_size}), and drop_last drops them all",
            "lower train.global_batch_size, or set train.drop_last: false",
        )
    return recipe


def train_worker(task: WorkerTask, link: WorkerLink, *, keep_prints: bool = True) -> str:
    """Run one worker to its end: 'completed' or 'stopped'. Collective over the world of the link.

    What went wrong is reported through the link before it is raised. What user code prints goes into the
    rank's log as well with `keep_prints`: not where others print in this process too.
    """
    spec = task.spec
    run = task.run
    secrets = secret_values(spec)
    os.environ.update(secrets)
    hide = functools.partial(redact, secrets=list(secrets.values()))
    add_search_paths(task.search_paths)
    torch.set_num_threads(max(1, int(spec.resources.per_worker()["CPU"])))
    store = checkpoint_store(spec, run)
    try:
        link.attempt = collectives.broadcast_object(store.begin_attempt() if link.rank == 0 else None)
        log_file = run.local / "logs" / f"attempt-{link.attempt}" / f"rank-{link.rank}.log"
        with rank_log(log_file, hide, printed=keep_prints):
            link.start()
            link.progress(Progress(0, spec.train.max_epochs, 0, 0, phase="starting"))
            try:
                return _run(task, link, run, store)
            except BaseException:
                _log.info("rank %d failed", link.rank, exc_info=True)
                raise
    except BaseException as error:
        link.fail(
            Failure(
                rank=link.rank,
                attempt=link.attempt,
                time_s=time.time(),
                error=hide(describe(error)),
                cause=cause_of(error),
                mend=mend_of(error),
                traceback=hide(traceback.format_exc()),
                host=socket.gethostname(),
                exit_code=getattr(error, "exit_code", 1),
            )
        )
        raise
    finally:
        link.close()


def _run(task: WorkerTask, link: WorkerLink, run: RunFolder, store: CheckpointStore) -> str:
    spec = task.spec
    prepared = Prepared.load(Folder.at(task.prepared_uri))
    recipe = build_recipe(spec, prepared)
    attempt = start_attempt(recipe, link, store, spec.checkpoint)
    _log.info(
        "rank %d of %d on %s: attempt %d starts at step %d",
        link.rank,
        link.world_size,
        link.device,
        link.attempt,
        attempt.position.step,
    )
    outcome = train(attempt)
    if outcome.status == "completed":
        _finish(task, attempt, prepared, outcome, run)
    return outcome.status


def _finish(task: WorkerTask, attempt: Attempt, prepared: Prepared, outcome: Outcome, run: RunFolder) -> None:
    """Evaluate the best checkpoint, and let rank 0 write the result and the model. Collective."""
    link, manifest = attempt.link, prepared.manifest
    link.progress(
        Progress(
            attempt.position.epoch,
            task.spec.train.max_epochs,
            attempt.position.step,
            attempt.recipe.total_steps,
            phase="finishing",
            val_loss=attempt.metrics.get("val/loss"),
        )
    )
    best = _load_best(attempt)
    best_step = best.step if best else attempt.position.step
    metrics: dict[str, float] = {"best/step": float(best_step)}
    metrics |= {
        f"best/{key.replace('val/', 'val_')}": value for key, value in (best.metrics if best else {}).items()
    }
    test = _test(attempt, prepared) if manifest.rows["test"] else None
    if test is not None:
        metrics |= test.named("test")
    if link.rank != 0:
        return
    write_bundle(
        run.model,
        model=task.spec.model,
        model_state=attempt.model.state_dict(),
        pipeline=prepared.pipeline,
        task=manifest.task,
        num_outputs=manifest.num_outputs,
        input_example=prepared.raw_example(),
        search_paths=task.search_paths,
    )
    result: dict[str, Any] = {
        "metrics": metrics,
        "best_step": best_step,
        "checkpoint": best.name if best else None,
        "confusion_matrix": test.confusion_matrix if test else None,
        "predictions": test.predictions if test else None,
        "num_parameters": sum(parameter.numel() for parameter in attempt.model.parameters()),
        "world_size": link.world_size,
        "device": str(link.device),
        "step": attempt.position.step,
        "epoch": attempt.position.epoch,
        "stopped_early": attempt.stopped_early,
        "attempt": link.attempt,
        "train": asdict(outcome),
    }
    run.write_result(result)


def _load_best(attempt: Attempt) -> Manifest | None:
    """Put the best checkpoint's weights into the model; the newest weights stay where there is none, or where
    it is damaged (every rank reads the same file and comes to the same end)."""
    best = attempt.store.best()
    if best is None or best.step == attempt.position.step:
        return best
    try:
        attempt.model.load_state_dict(attempt.store.load(best)["model"])
    except CheckpointError as error:
        _log.error("the newest weights are taken instead of the best: %s", error)
        return None
    return best


def _test(attempt: Attempt, prepared: Prepared) -> Evaluation:
    recipe = attempt.recipe
    return evaluate(
        attempt.model,
        prepared.part("test"),
        recipe.pipeline,
        recipe.objective,
        recipe.metric_names,
        num_outputs=recipe.num_outputs,
        device=attempt.link.device,
        batch_size=recipe.train.microbatch_size or recipe.train.global_batch_size,
        detailed=True,
    )
