"""A place for a group: a placement group with one bundle per worker. Imports: ray.

Ray reserves all bundles or none. Where a node goes away later, the other bundles stay, and Ray looks for another place
for those that were lost, without being asked.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from orchestrator.runners.ray_workers.answers import answer_within
from orchestrator.spec.cluster import ResourcesSection

_log = logging.getLogger(__name__)
_NODE_ID = "ray.io/node-id"
"""The label that Ray itself gives to each node."""
_ANSWER_S = 10.0


@dataclass
class Place:
    """What was asked for, from the moment on when it was asked. Remove it in the end."""

    size: int
    per_worker: dict[str, float]
    handle: Any = field(repr=False)

    def bundles(self) -> dict[int, str]:
        """The bundles that lie on a node now, each with its node's id; not all of them while some are looked for."""
        try:
            table, nodes = answer_within(_ANSWER_S, lambda: (placement_group_table(self.handle), ray.nodes()))
        except ray.exceptions.RayError as error:  # the control plane is away
            _log.warning("Ray does not tell where the workers' places are: %s", error)
            return {}
        if table["state"] in ("PENDING", "REMOVED"):
            return {}
        alive = {node["NodeID"] for node in nodes if node["Alive"]}
        return {index: node for index, node in table["bundles_to_node_id"].items() if node in alive}

    def held(self) -> dict[str, int]:
        """How many bundles lie on each node, by node id."""
        return dict(Counter(self.bundles().values()))

    def options(self, bundle: int) -> dict[str, Any]:
        """Options of an actor that takes all of a bundle."""
        others = dict(self.per_worker)
        return {
            "num_cpus": others.pop("CPU", 0),
            "num_gpus": others.pop("GPU", 0),
            "memory": others.pop("memory", None),
            "resources": others,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self.handle, placement_group_bundle_index=bundle
            ),
        }

    def remove(self) -> None:
        """Give everything back; what still runs there is ended by Ray."""
        with contextlib.suppress(ray.exceptions.RayError):
            answer_within(_ANSWER_S, lambda: remove_placement_group(self.handle))


def ask_for_place(resources: ResourcesSection, size: int, avoid: Collection[str] = ()) -> Place:
    """Ask Ray for `size` bundles, on none of the nodes `avoid`. Does not wait for them.

    Raises Ray's GetTimeoutError where its head does not answer.
    """
    bundle = resources.bundle()
    selector = {_NODE_ID: f"!in({','.join(sorted(avoid))})"} if avoid else {}
    handle = answer_within(
        _ANSWER_S,
        lambda: placement_group(
            [dict(bundle) for _ in range(size)],
            strategy=resources.placement_strategy,
            bundle_label_selector=[selector] * size if selector else None,
        ),
    )
    per_worker = {name: amount for name, amount in resources.per_worker().items() if amount > 0}
    return Place(size, per_worker, handle)
