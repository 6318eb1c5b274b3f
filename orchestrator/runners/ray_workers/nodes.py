"""What the connected cluster's nodes have, what of it is free, and which of them are about to go.

Ray tells the last two only through its inner modules: this is the one file that uses them.
Imports: ray, inside functions, since it takes a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.recovery.sizing import NodeFacts


def node_facts(
    group: Mapping[str, int] | None = None, per_worker: Mapping[str, float] | None = None
) -> list[NodeFacts]:
    """The live nodes of the connected cluster, the head's first, then by node id.

    `group` is how many workers of our own hold `per_worker` each, by node id: what they hold counts as free. Ray's
    account of what is free is up to a second old; after a change of ours it can be wrong for so long.

    While Ray's head is away the call waits for it, up to Ray's `gcs_rpc_server_reconnect_timeout_s` (60 s). Raises
    what `cause_of_ray_error` knows.
    """
    import ray
    from ray._private.state import available_resources_per_node, state

    alive = [node for node in ray.nodes() if node["Alive"]]
    free, draining = available_resources_per_node(), state.get_draining_nodes()
    facts = []
    for node in sorted(
        alive, key=lambda node: ("node:__internal_head__" not in node["Resources"], node["NodeID"])
    ):
        node_id, total = node["NodeID"], node["Resources"]
        ours = (group or {}).get(node_id, 0)
        facts.append(
            NodeFacts(
                node_id=node_id,
                total={name: float(amount) for name, amount in total.items()},
                free={
                    name: min(
                        free.get(node_id, {}).get(name, 0.0) + ours * (per_worker or {}).get(name, 0.0),
                        amount,
                    )
                    for name, amount in total.items()
                },
                draining=node_id in draining,
                # Ray's "no deadline" is 0.
                deadline_s=draining[node_id] / 1000 if draining.get(node_id) else None,
                name=_name(node),
            )
        )
    return facts


def _name(node: Mapping[str, Any]) -> str:
    """The host's name; with its address, where several nodes may share the name."""
    host, address = str(node.get("NodeManagerHostname", "")), str(node.get("NodeManagerAddress", ""))
    return f"{host} ({address})" if host and address and host != address else host or address
