"""What Ray's own errors, with the texts that Ray 2.60 was seen to write, come to mean for a rank."""

from __future__ import annotations

from typing import Any

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext, NodeDeathInfo
from ray.exceptions import ActorDiedError, RayError

from orchestrator.runners.ray_workers.deaths import death_of
from orchestrator.runners.ray_workers.seats import Facts
from orchestrator.runners.verdicts import gist

FACTS = Facts("node-id", "h1", "10.0.0.1", 7)
KILLED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "unexpectedly exits with a connection error code 2. End of file. Some common causes include: (1) the process was "
    "killed by the OOM killer due to high memory usage, (2) ray stop --force was called, or (3) the worker crashed"
)
EXITED = (
    "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: Worker "
    "exits unexpectedly. Worker exits with an exit code 9."
)
NODE_DIED = (
    "The actor died because its node has died. Node Id: 02d0. The actor's node was terminated unexpectedly"
)


def died(text: str, **node: Any) -> ActorDiedError:
    context = ActorDiedErrorContext(error_message=text, class_name="WorkerProcess", pid=7, actor_id=b"x" * 16)
    if node:
        context.node_death_info.CopyFrom(NodeDeathInfo(**node))
    return ActorDiedError(context)


@pytest.mark.parametrize(
    ("error", "cause", "code", "reason"),
    [
        (
            died(KILLED),
            "hardware",
            None,
            "the worker process on h1 died: it ended without a word, as after SIGKILL or a crash",
        ),
        (died(EXITED), "hardware", 9, "the worker process on h1 died: it ended with exit code 9"),
        (died(NODE_DIED), "hardware", None, "the worker process on h1 died: its node was lost"),
        (
            died(NODE_DIED, reason=NodeDeathInfo.AUTOSCALER_DRAIN_PREEMPTED),
            "preemption",
            None,
            "the node of the worker on h1 was taken away",
        ),
        (
            died("Worker exit type: NODE_OUT_OF_MEMORY"),
            "out of memory",
            None,
            "the worker process on h1 was killed since its node had no memory left",
        ),
    ],
)
def test_a_death_is_told_with_its_cause(error: RayError, cause: str, code: int | None, reason: str) -> None:
    failure = death_of(error, 3, FACTS, 12.5)
    assert (failure.cause, failure.process_exit) == (cause, code)
    assert failure.error.startswith(reason)
    assert (failure.rank, failure.time_s, failure.node, failure.peer_lost) == (3, 12.5, "node-id", False)


def test_the_gist_of_a_traceback_is_its_last_line() -> None:
    lines = [
        "\x1b[36mray::begin()\x1b[39m (pid=7)",
        "Traceback (most recent call last):",
        "  File 'a.py'",
        "OSError: full",
    ]
    passed_on = "\n".join(lines)
    assert gist(passed_on) == "OSError: full"
    assert len(gist("x" * 9000)) <= 500
