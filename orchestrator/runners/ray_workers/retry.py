"""What Ray Train may try again: the part of the retry that runs in its controller process.

Kept apart from the workers' code, so that the controller need not load it. Imports: ray.train.
"""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.train import UserCallback

from orchestrator.engine.microbatch import halve_microbatch
from orchestrator.errors import Cause, OrchestratorError
from orchestrator.storage import Folder


class WorkerFailed(OrchestratorError):
    """A rank's error, as it reaches Ray's controller: its class decides on the retry."""

    def __init__(self, reason: str, cause: Cause, final: bool) -> None:
        super().__init__(reason)
        self.worker_cause: Cause = cause
        self.final = final

    def __reduce__(self) -> tuple[type[WorkerFailed], tuple[str, Cause, bool]]:
        return type(self), (self.reason, self.worker_cause, self.final)


class NoRetry(UserCallback):  # type: ignore[misc]
    """Keeps Ray from repeating what cannot get better: raising here makes an error final.

    A worker that was killed for want of memory could say nothing itself: the next attempt computes half as many
    samples at once.
    """

    def __init__(self, mailbox: Any, checkpoints: Folder) -> None:
        self._mailbox = mailbox
        self._checkpoints = checkpoints

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        for rank, error in worker_exceptions.items():
            failed = getattr(error, "_base_exc", error)
            if isinstance(failed, WorkerFailed) and failed.final:
                raise RuntimeError(
                    f"rank {rank} failed ({failed.worker_cause}), which is not retried: {failed}"
                )
        if any(killed_for_memory(error) for error in worker_exceptions.values()):
            with contextlib.suppress(OSError):
                halve_microbatch(self._checkpoints)
        with contextlib.suppress(ray.exceptions.RayError):
            if ray.get(self._mailbox.ending.remote(), timeout=10):
                raise RuntimeError("the run is being stopped: no retry")


def killed_for_memory(error: Exception) -> bool:
    """Whether Ray's memory monitor killed the worker, or Ray knows that the system did."""
    return isinstance(error, ray.exceptions.OutOfMemoryError) or "OUT_OF_MEMORY" in str(error)
