"""What the connected cluster's nodes have, what of it is free, and which of them are about to go.

Ray tells the last two only through its inner modules: this is the one file that uses them.
Imports: ray, inside functions, since it takes a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.recovery.sizing import NodeFacts
from orchestrator.runners.ray_workers.answers import answer_within


def node_facts(
    group: Mapping[str, int] | None = None,
    per_worker: Mapping[str, float] | None = None,
    *,
    timeout_s: float = 10.0,
) -> list[NodeFacts]:
    """The live nodes of the connected cluster, the head's first, then by node id.

    `group` is how many workers of our own hold `per_worker` each, by node id: what they hold counts as free. Ray's
    account of what is free is up to a second old; after a change of ours it can be wrong for so long.

    Raises Ray's GetTimeoutError where the head does not answer within `timeout_s`, and other RayErrors.
    """
    nodes, free, draining = answer_within(timeout_s, _asked)
    alive = [node for node in nodes if node["Alive"]]
    head_first = sorted(
        alive, key=lambda node: ("node:__internal_head__" not in node["Resources"], node["NodeID"])
    )
    return [
        _facts(
            node,
            free.get(node["NodeID"], {}),
            draining,
            (group or {}).get(node["NodeID"], 0),
            per_worker or {},
        )
        for node in head_first
    ]


def _asked() -> tuple[list[dict[str, Any]], dict[str, dict[str, float]], dict[str, int]]:
    """Ray's node table; what is free, by node; the deadlines of draining nodes, in ms, 0 for none."""
    import ray
    from ray._private.state import available_resources_per_node, state

    return ray.nodes(), available_resources_per_node(), state.get_draining_nodes()


def _facts(
    node: Mapping[str, Any],
    free: Mapping[str, float],
    draining: Mapping[str, int],
    workers: int,
    per_worker: Mapping[str, float],
) -> NodeFacts:
    node_id, total = node["NodeID"], {name: float(amount) for name, amount in node["Resources"].items()}
    return NodeFacts(
        node_id=node_id,
        total=total,
        free={
            name: min(free.get(name, 0.0) + workers * per_worker.get(name, 0.0), amount)
            for name, amount in total.items()
        },
        draining=node_id in draining,
        deadline_s=draining[node_id] / 1000 if draining.get(node_id) else None,
        name=_name(node),
        address=f"{node['NodeManagerAddress']}:{port}" if (port := node.get("NodeManagerPort")) else "",
    )


def _name(node: Mapping[str, Any]) -> str:
    """The host's name; with its address, where several nodes may share the name."""
    host, address = str(node.get("NodeManagerHostname", "")), str(node.get("NodeManagerAddress", ""))
    return f"{host} ({address})" if host and address and host != address else host or address
