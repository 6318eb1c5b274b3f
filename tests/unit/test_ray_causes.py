"""What Ray's exceptions mean, made here as Ray makes them."""

from __future__ import annotations

import pytest
from ray import exceptions
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo

from orchestrator.errors import Cause, Diverged, PlacementError
from orchestrator.runners.ray_workers.causes import cause_of_ray_error

ID = b"0" * 16


def died(
    reason: int = NodeDeathInfo.UNSPECIFIED, text: str = "The actor is dead."
) -> exceptions.RayActorError:
    context = ActorDiedErrorContext(
        actor_id=ID,
        error_message=text,
        node_death_info=NodeDeathInfo(reason=reason),  # type: ignore[arg-type]
    )
    return exceptions.ActorDiedError(context)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (died(), "hardware"),
        (died(NodeDeathInfo.UNEXPECTED_TERMINATION), "hardware"),
        (died(NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED), "preemption"),
        (died(text="Worker exit type: NODE_OUT_OF_MEMORY"), "out of memory"),
        (exceptions.OutOfMemoryError("the node is running low"), "out of memory"),
        (exceptions.ActorUnavailableError("the link is down", ID), "hardware"),
        (exceptions.NodeDiedError("node"), "hardware"),
        (exceptions.WorkerCrashedError(), "hardware"),
        (exceptions.LocalRayletDiedError(), "hardware"),
        (exceptions.OutOfDiskError("full"), "hardware"),
        (exceptions.RaySystemError("broken"), "control plane"),
        (exceptions.RpcError("unavailable", rpc_code=14), "control plane"),
        (exceptions.GetTimeoutError("late"), "control plane"),
        (exceptions.ActorUnschedulableError("no such node"), "control plane"),
        (exceptions.ActorPlacementGroupRemoved(), "control plane"),
        (ConnectionError("Could not find any running Ray instance"), "control plane"),
        (exceptions.RuntimeEnvSetupError("pip: no matching distribution for torhc"), "user error"),
        (exceptions.RuntimeEnvSetupError("the runtime env agent timed out"), "control plane"),
        (PlacementError("no room"), "control plane"),
        (Diverged("nan"), "user error"),
        (ValueError("what"), "internal"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_each_exception_has_its_cause(error: BaseException, cause: Cause) -> None:
    assert cause_of_ray_error(error) == cause
