"""What the cluster's head knows of its nodes: `python -m orchestrator.local_cluster.gcs HEAD:PORT …`.

    … list                          the nodes, as JSON
    … wait SECONDS ADDRESS=STATE …  wait until nodes are ALIVE or DEAD
    … join SECONDS ADDRESS [ID …]   wait until a node lives there that is none of these
    … drain ADDRESS SECONDS         tell a node, and who asks, that it will be gone in so many seconds

A process of its own: a client of Ray's whose head is gone may end the process that it is in.
Imports: ray, in the process of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Collection
from typing import Any

from orchestrator.errors import OrchestratorError

_ANSWER_TIMEOUT_S = 5.0
_POLL_S = 0.2
_SPARE_S = 30.0  # for a loaded machine to start Python


def ask(gcs: str, *question: str, timeout_s: float = 10.0) -> list[dict[str, Any]]:
    """Ask the head; returns its nodes as dicts with `id`, `address`, `state` (ALIVE or DEAD).

    Raises OrchestratorError with what the process says where there is no answer.
    """
    command = [sys.executable, "-m", "orchestrator.local_cluster.gcs", gcs, *question]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            env=environment,
            timeout=timeout_s + _SPARE_S,
        )
    except subprocess.TimeoutExpired as error:
        raise OrchestratorError(f"the head at {gcs} does not answer within {timeout_s:g} s") from error
    if done.returncode:
        told = done.stderr.strip().splitlines()
        raise OrchestratorError(f"the head at {gcs}: {told[-1] if told else 'no answer'}")
    nodes: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return nodes


def _nodes(client: Any) -> list[dict[str, Any]]:
    """One entry per address: the node that lives there, else the last that did."""
    found: dict[str, dict[str, Any]] = {}
    infos = client.get_all_node_info(timeout=_ANSWER_TIMEOUT_S)
    for info in sorted(infos.values(), key=lambda info: (info.state == 0, info.start_time_ms)):
        found[info.node_manager_address] = {
            "id": info.node_id.hex(),
            "address": info.node_manager_address,
            "state": "ALIVE" if info.state == 0 else "DEAD",
        }
    return list(found.values())


def _wait(
    gcs: str, timeout_s: float, wanted: dict[str, str], other_than: Collection[str] = ()
) -> list[dict[str, Any]]:
    from ray.exceptions import RaySystemError, RpcError

    deadline_s = time.monotonic() + timeout_s
    while True:
        states = {}
        with contextlib.suppress(
            RpcError, RaySystemError
        ):  # a head that is just starting listens, but does not answer
            nodes = _nodes(_client(gcs))
            states = {node["address"]: node["state"] for node in nodes if node["id"] not in other_than}
            if all(states.get(address, "DEAD") == state for address, state in wanted.items()):
                return nodes
        if time.monotonic() > deadline_s:
            raise SystemExit(f"after {timeout_s:g} s the nodes are {states or 'not known'}, not {wanted}")
        time.sleep(_POLL_S)


def _drain(client: Any, address: str, deadline_s: float) -> list[dict[str, Any]]:
    from ray.core.generated.autoscaler_pb2 import DrainNodeReason

    nodes = _nodes(client)
    ids = [node["id"] for node in nodes if node["address"] == address and node["state"] == "ALIVE"]
    if not ids:
        raise SystemExit(f"no node lives at {address}")
    deadline_ms = time.time_ns() // 1_000_000 + round(deadline_s * 1000)
    reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    accepted, refusal = client.drain_node(ids[0], reason, "orchestrator cluster drain", deadline_ms)
    if not accepted:
        raise SystemExit(f"the drain notice was refused: {refusal}")
    return nodes


def _client(gcs: str) -> Any:
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # its stub leaves it out

    return GcsClient(address=gcs)


def main(arguments: list[str]) -> list[dict[str, Any]]:
    gcs, verb, *rest = arguments
    if verb == "wait":
        return _wait(gcs, float(rest[0]), dict(pair.split("=") for pair in rest[1:]))
    if verb == "join":
        return _wait(gcs, float(rest[0]), {rest[1]: "ALIVE"}, rest[2:])
    if verb == "drain":
        return _drain(_client(gcs), rest[0], float(rest[1]))
    return _nodes(_client(gcs))


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1:])))
