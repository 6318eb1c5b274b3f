"""What kind of fault an exception of Ray's is. Imports: ray, inside functions, since it takes a second.

Ray 2.60 raises no exception of its own for a head that is gone. Its C++ part turns a broken call to it into
`RpcError`, `GetTimeoutError` or `RaySystemError`, and ends the whole process where the head stays away longer than
`gcs_rpc_server_reconnect_timeout_s`.
"""

from __future__ import annotations

from orchestrator.errors import Cause, OrchestratorError

_AGENT_TROUBLE = ("agent", "timed out", "timeout", "connect")


def cause_of_ray_error(error: BaseException) -> Cause:
    """The class of an error that a call to Ray raised in the driver.

    - `preemption`: the worker's node was drained before it ended.
    - `out of memory`: Ray's memory monitor, or the system, killed the worker.
    - `hardware`: a process or node is gone or out of reach, or a node's disk or object store is full.
    - `control plane`: the head or a service of Ray's does not answer, or undid what had been placed.
    - `user error`: the runtime environment cannot be made, or the token is wrong.
    - What an actor's method raised is taken by itself; what is not Ray's is `internal`.
    """
    from ray import exceptions as ray_errors

    if isinstance(error, OrchestratorError):
        return error.cause
    if isinstance(error, ray_errors.RayTaskError):
        inner = error.cause
        return (
            cause_of_ray_error(inner) if isinstance(inner, Exception) and inner is not error else "internal"
        )
    if killed_for_memory(error):
        return "out of memory"
    if isinstance(error, ray_errors.RayActorError):
        return "preemption" if error.preempted else "internal" if error.actor_init_failed else "hardware"
    if isinstance(error, ray_errors.RuntimeEnvSetupError):
        text = str(error).lower()
        return "control plane" if any(sign in text for sign in _AGENT_TROUBLE) else "user error"
    if isinstance(error, ray_errors.AuthenticationError):
        return "user error"
    if isinstance(
        error,
        ray_errors.NodeDiedError
        | ray_errors.WorkerCrashedError
        | ray_errors.LocalRayletDiedError
        | ray_errors.ObjectLostError
        | ray_errors.ObjectStoreFullError
        | ray_errors.OutOfDiskError,
    ):
        return "hardware"
    if isinstance(
        error,
        ray_errors.RaySystemError
        | ray_errors.RpcError
        | ray_errors.GetTimeoutError
        | ray_errors.ActorUnschedulableError
        | ray_errors.TaskUnschedulableError
        | ray_errors.ActorPlacementGroupRemoved
        | ray_errors.TaskPlacementGroupRemoved
        | ConnectionError,
    ):
        return "control plane"
    return "internal"


def killed_for_memory(error: BaseException) -> bool:
    """Whether Ray's memory monitor killed the worker, or Ray knows that the system did."""
    from ray import exceptions as ray_errors

    return isinstance(error, ray_errors.OutOfMemoryError) or "OUT_OF_MEMORY" in str(error)
