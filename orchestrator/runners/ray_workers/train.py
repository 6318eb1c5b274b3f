"""Data-parallel workers placed and restarted by Ray Train. Imports: ray.

Ray only places processes and starts them again: checkpoints are our own, and metrics travel through a small
actor, the mailbox, since `ray.train.report` is throttled and a barrier for all ranks.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import threading
import time
import uuid
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2.api.config import LoggingConfig

from orchestrator.engine.link import WorkerLink
from orchestrator.errors import NOT_RETRIED, OrchestratorError, PlacementError
from orchestrator.records import Failure, Letter, Reply
from orchestrator.runners.desk import Desk
from orchestrator.runners.environment import environment
from orchestrator.runners.ray_workers.mailbox import Mailbox
from orchestrator.runners.ray_workers.retry import NoRetry, WorkerFailed, killed_for_memory
from orchestrator.spec import JobSpec
from orchestrator.worker import WorkerTask, train_worker

_log = logging.getLogger(__name__)
_COLLECTIVE_TIMEOUT_S = 120
_POLL_S = 0.2
_ABORT_S = 15


class _MailboxChannel:
    """A worker's `Channel` through the mailbox."""

    def __init__(self, mailbox: Any) -> None:
        self._mailbox = mailbox

    def exchange(self, letter: Letter) -> Reply:
        reply, abort = ray.get(self._mailbox.exchange.remote(letter), timeout=10)
        if abort:
            # The time to save is over. Ray's controller sees the process end and, told by the callback
            # below not to retry, takes the whole group down.
            _log.error("aborting: the workers did not save within failure.stop_grace")
            os._exit(1)
        result: Reply = reply
        return result


def _worker_main(config: dict[str, Any]) -> str:
    """What each Ray Train worker runs."""
    from ray.train import get_context
    from ray.train.torch import get_device

    context = get_context()
    link = WorkerLink(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        device=get_device(),
        channel=_MailboxChannel(config["mailbox"]),
    )
    try:
        return train_worker(config["task"], link)
    except Exception as error:
        from orchestrator.engine.causes import cause_of, describe

        cause = cause_of(error)
        final = cause in NOT_RETRIED or not getattr(error, "retry", True)
        raise WorkerFailed(describe(error), cause, final) from error


def run_ray_train(task: WorkerTask, desk: Desk, *, embedded: bool) -> str:
    """Train on Ray Train workers; Ray must be initialised. Returns 'completed' or 'stopped'.

    Call it from the main thread: it waits where signal handlers can run. Raises the first worker's error
    as an OrchestratorError once retries are spent, PlacementError where the workers found no place.
    """
    spec = task.spec
    mailbox = ray.remote(num_cpus=0)(Mailbox).remote()
    outcome: dict[str, Any] = {}
    thread = threading.Thread(
        target=_fit,
        args=(task, mailbox, outcome),
        kwargs={"embedded": embedded},
        name="ray-train",
        daemon=True,
    )
    with environment(_settings(spec, embedded), override=False):
        thread.start()
        _watch(task, thread, mailbox, desk, outcome)
    ray.kill(mailbox)
    _remove_ray_folder(task)
    if "error" in outcome:
        raise outcome["error"]
    return str(outcome["status"])


def _watch(
    task: WorkerTask, thread: threading.Thread, mailbox: Any, desk: Desk, outcome: dict[str, Any]
) -> None:
    """Carry letters between the mailbox and the desk until Ray is done, or stop_grace and more has passed."""
    grace_s = task.spec.failure.stop_grace
    stop_asked_s: float | None = None
    answers: dict[int, int] = {}
    while True:
        running = thread.is_alive()
        if desk.stop_requested and stop_asked_s is None:
            stop_asked_s = time.monotonic()
        waited_s = time.monotonic() - stop_asked_s if stop_asked_s is not None else 0.0
        try:
            letters = ray.get(
                mailbox.take.remote(answers, desk.stop_requested, waited_s > grace_s), timeout=30
            )
        except ray.exceptions.RayError as error:
            _log.warning("the mailbox does not answer: %s", error)
            letters = []
        for letter in letters:
            answers[letter.attempt] = desk.exchange(letter).acknowledged
        if not running:
            return
        if waited_s > grace_s + _ABORT_S:
            _log.warning("Ray did not end the workers in time; leaving them to it")
            outcome["status"] = "stopped"
            return
        thread.join(_POLL_S)


class _EmbeddedTrainer(TorchTrainer):  # type: ignore[misc]
    """A trainer in a Ray that ends with this process: nothing outlives it that would have to be cleaned up.

    Ray's cleaner of placement groups also needs the dashboard, which an embedded Ray goes without.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [callback for callback in callbacks if not isinstance(callback, PlacementGroupCleanerCallback)]


def _fit(task: WorkerTask, mailbox: Any, outcome: dict[str, Any], *, embedded: bool) -> None:
    spec = task.spec
    resources, failures = spec.resources, spec.failure.max_failures
    ray_folder = task.run.folder / "ray"
    try:
        trainer = (_EmbeddedTrainer if embedded else TorchTrainer)(
            _worker_main,
            train_loop_config={"task": task, "mailbox": mailbox},
            torch_config=TorchConfig(timeout_s=_COLLECTIVE_TIMEOUT_S),
            scaling_config=ScalingConfig(
                num_workers=resources.num_workers,
                use_gpu=resources.use_gpu,
                resources_per_worker=resources.per_worker(),
                accelerator_type=resources.accelerator_type,
                placement_strategy=resources.placement_strategy,
            ),
            run_config=RunConfig(
                # A name used before would silently resume that run of Ray's.
                name=uuid.uuid4().hex[:12],
                storage_path=ray_folder.path,
                storage_filesystem=ray_folder.filesystem,
                failure_config=FailureConfig(max_failures=failures, controller_failure_limit=failures),
                callbacks=[NoRetry(mailbox, task.run.checkpoints)],
                logging_config=LoggingConfig(log_level="CRITICAL"),
            ),
        )
        outcome["status"] = trainer.fit().return_value
    except ray.train.TrainingFailedError as error:
        outcome["error"] = _explain(error, resources.start_timeout)
    except Exception as error:  # noqa: BLE001 - handed to the main thread, which raises it
        outcome["error"] = error


def _settings(spec: JobSpec, embedded: bool) -> dict[str, str]:
    """Ray Train's settings, which it takes from the environment of the driver."""
    tries = spec.failure.max_failures + 1
    return {
        # Paths of the user's stay relative to where the job runs.
        "RAY_CHDIR_TO_TRIAL_DIR": "0",
        "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(math.ceil(spec.resources.start_timeout / tries)),
        "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
        # One machine is not taken away in parts, and nobody scrapes it.
        **(
            {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0", "RAY_TRAIN_METRICS_ENABLED": "0"} if embedded else {}
        ),
    }


class RunFailed(OrchestratorError):
    """The workers failed for good; `failure` is what Ray itself saw of the culprit, where it saw more."""

    def __init__(self, reason: str, failure: Failure | None = None) -> None:
        super().__init__(reason)
        self.failure = failure


def _explain(error: Exception, start_timeout_s: float) -> OrchestratorError:
    """What Ray's error means for us. A rank whose process died could not report; Ray saw it."""
    for rank, failure in sorted(getattr(error, "worker_failures", {}).items()):
        if killed_for_memory(failure):
            return RunFailed(
                f"the process of rank {rank} was killed: its node has no memory left",
                Failure(
                    rank=rank,
                    attempt=0,
                    time_s=0.0,
                    error="the worker was killed since its node had no memory left",
                    cause="out of memory",
                    mend="lower train.microbatch_size (the global batch stays), or give the workers more memory",
                ),
            )
        if isinstance(failure, ray.exceptions.RayActorError | ray.exceptions.WorkerCrashedError):
            return RunFailed(
                f"the process of rank {rank} died",
                Failure(
                    rank=rank,
                    attempt=0,
                    time_s=0.0,
                    error="the worker process died: " + " ".join(str(failure).split())[:300],
                    cause="hardware",
                    mend="look for the out-of-memory killer or a lost node; run again: it resumes",
                ),
            )
    if "No module named 'orchestrator'" in str(error):
        return RunFailed(
            "the cluster's nodes cannot import 'orchestrator'; install it there, or ship it: runtime_env.pip"
        )
    inner = getattr(error, "controller_failure", None)
    if type(inner).__name__ in ("WorkerGroupStartupTimeoutError", "WorkerGroupStartupFailedError"):
        return PlacementError(
            f"the workers could not be started within {start_timeout_s:.0f} s: {' '.join(str(inner).split())}",
            "see `orchestrator plan`; free resources, lower resources.num_workers, or raise "
            "resources.start_timeout",
        )
    return RunFailed(" ".join(str(error).split())[:500])


def _remove_ray_folder(task: WorkerTask) -> None:
    with contextlib.suppress(OSError):
        (task.run.folder / "ray").remove()
