"""`train_worker`: what a worker does, from its task to a result, the same for every runner.

Environment, data, model, training, evaluation of the best checkpoint, the model bundle. No ray, no mlflow.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import torch

from orchestrator.checkpoints.store import CheckpointStore
from orchestrator.data.prepared.prepared import Prepared
from orchestrator.engine import collectives
from orchestrator.engine.attempt import Attempt, start_attempt
from orchestrator.engine.causes import failure_of, is_out_of_memory
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.loop import Outcome, train
from orchestrator.engine.microbatch import halve_microbatch
from orchestrator.engine.own import TrainContext, run_own
from orchestrator.engine.profile import StepProfiler
from orchestrator.engine.recipe import Placement, Recipe
from orchestrator.engine.seed import seed_everything
from orchestrator.engine.warmup import too_large
from orchestrator.imports import add_search_paths
from orchestrator.models.init_from import placed_weights
from orchestrator.monitor.log_copy import copied_log
from orchestrator.monitor.rank_log import rank_log
from orchestrator.records import Failure, Progress
from orchestrator.runs.folder import RunFolder
from orchestrator.spec import redact, secret_values
from orchestrator.storage import Folder
from orchestrator.worker.finish import finish, finish_own
from orchestrator.worker.host import keep_freed_memory
from orchestrator.worker.task import WorkerTask, build_recipe, checkpoint_store

_log = logging.getLogger(__name__)


def train_worker(
    task: WorkerTask, link: WorkerLink, *, attempt: int | None = None, keep_prints: bool = True
) -> str:
    """Run one worker to its end: 'completed', 'stopped', or 'left' (a trial that was given up). Collective over the
    world of the link.

    `attempt` is the number that the driver gave this attempt; without one it is the next that is free. What went wrong
    is reported through the link before it is raised. What user code prints goes into the rank's log as well with
    `keep_prints`: not where others print in this process too.
    """
    spec = task.spec
    run = task.run
    secrets = secret_values(spec)
    os.environ.update(secrets)
    hide = functools.partial(redact, secrets=list(secrets.values()))
    add_search_paths(task.search_paths)
    torch.set_num_threads(max(1, int(spec.resources.per_worker()["CPU"])))
    keep_freed_memory()
    if spec.train.deterministic:  # before CUDA starts: cuBLAS needs it to give the same bits twice
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    store = checkpoint_store(spec, run)
    at_last = contextlib.ExitStack()  # what the driver need not wait for to learn of a failure
    try:
        link.attempt = collectives.broadcast_object(store.begin_attempt(attempt) if link.rank == 0 else None)
        logs, name = run.local / "logs", f"attempt-{link.attempt}/rank-{link.rank}.log"
        at_last.enter_context(copied_log(logs, run.logs, name))
        with rank_log(logs / name, hide, printed=keep_prints):
            link.gates = task.gates
            link.start()
            link.progress(Progress(0, spec.train.max_epochs, 0, 0, phase="starting"))
            try:
                return _run(task, link, run, store)
            except BaseException:
                _log.info("rank %d failed", link.rank, exc_info=True)
                raise
    except BaseException as error:
        failure = failure_of(error, rank=link.rank, attempt=link.attempt, hide=hide)
        link.fail(_without_storage(failure, run))
        raise
    finally:
        if not link.close():
            _log.warning(
                "rank %d: %d metric points did not reach the driver", link.rank, len(link.unacknowledged())
            )
        at_last.__exit__(*sys.exc_info())


def _without_storage(failure: Failure, run: RunFolder) -> Failure:
    """The failure as it is, but that code is not to blame that fails while the run's own storage is away: what it
    looked for may lie there too, as the code itself may."""
    if failure.cause != "user error" or not run.folder.is_local or run.folder.local_path().is_dir():
        return failure
    return replace(
        failure,
        error=f"{failure.error} (the storage is away: {run.folder.uri} is not there)",
        cause="hardware",
        mend="see whether its disk is still mounted",
    )


def _run(task: WorkerTask, link: WorkerLink, run: RunFolder, store: CheckpointStore) -> str:
    spec = task.spec
    if link.rank == 0:
        store.sweep(link.attempt)
    prepared = Prepared.load(Folder.at(task.prepared_uri), spec.data.iterate)
    initial = None
    if spec.init_from is not None:
        initial = placed_weights(task.initial or run.init, run.local / "init")
    recipe = build_recipe(spec, prepared, initial, task.train_on)
    if spec.train.function is not None:
        return _run_own(task, link, recipe, prepared, store)
    attempt = start_attempt(recipe, link, store, spec.checkpoint, evidence=run.evidence)
    _log.info(
        "rank %d of %d on %s: attempt %d starts at step %d (%s, %d samples at once)",
        link.rank,
        link.world_size,
        link.device,
        link.attempt,
        attempt.position.step,
        attempt.precision.name,
        attempt.microbatch_size,
    )
    with _profiling(task, link) as profiler, _halving(attempt):
        outcome = train(attempt, profiler)
    if outcome.status == "completed" and task.gates is None:
        finish(task, attempt, prepared, outcome)
    return outcome.status


@contextlib.contextmanager
def _profiling(task: WorkerTask, link: WorkerLink) -> Iterator[StepProfiler | None]:
    section = task.spec.train.profile
    if section is None or link.rank != 0:
        yield None
        return
    profiler = StepProfiler(section, task.run.profile, f"attempt-{link.attempt}")
    try:
        yield profiler
    finally:
        profiler.close()


@contextlib.contextmanager
def _halving(attempt: Attempt) -> Iterator[None]:
    """Out of memory in the middle of the training: let the next attempt compute half as many samples at once."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        if not halve_microbatch(attempt.store.folder):
            raise too_large(1) from error
        raise


def _run_own(
    task: WorkerTask, link: WorkerLink, recipe: Recipe, prepared: Prepared, store: CheckpointStore
) -> str:
    """The user's own train function; what it returns is tested and exported as ours would be."""
    began = time.perf_counter()
    seed_everything(recipe.seed, link.rank + 1)
    context = TrainContext(task.spec, link, prepared, recipe, store, Placement(link.device))
    model = run_own(context)
    if context.should_stop():
        return "stopped"
    step = context.position.step
    finish_own(task, context, model, Outcome("completed", step, 0, time.perf_counter() - began))
    return "completed"
