"""The processes of a run, over all its attempts: how many, where, and which of them are kept. Imports: ray.

The first group can be opened before there is work, so that the processes import what they need while the data is
prepared. A place is kept as long as it suits, since giving it back means to start every process anew.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection

import ray

from orchestrator.errors import OrchestratorError, PlacementError
from orchestrator.recovery.sizing import NodeFacts, fitting, left_out, why_waiting, worth_waiting
from orchestrator.runners.ray_workers.group import Group
from orchestrator.runners.ray_workers.node_watch import look_at_nodes
from orchestrator.runners.ray_workers.placement import ask_for_place
from orchestrator.runners.verdicts import gist
from orchestrator.spec.cluster import ResourcesSection

_log = logging.getLogger(__name__)
_SAY_EVERY_S = 10.0
_LOOK_AGAIN_S = 2.0
_SLICE_S = 0.2


class Staff:
    """At most one group at a time. `close` it in the end; it may be called twice. `forget`: see `Group`."""

    def __init__(self, resources: ResourcesSection, forget: tuple[str, ...] = ()) -> None:
        self._resources, self._forget = resources, forget
        self._bundle = resources.bundle()
        self._started = False
        self.group: Group | None = None

    @property
    def is_up(self) -> bool:
        """Whether all its processes are there, and have answered."""
        return self.group is not None and self.group.is_up

    def open_early(self) -> None:
        """Ask for a place, and let processes come up as soon as there is one. Does not wait for either."""
        try:
            nodes = look_at_nodes(None)
            if self._fitting(nodes, ()) == self._resources.max_workers:
                self._open(self._resources.max_workers, self._draining(nodes))
        except (ray.exceptions.RayError, OrchestratorError) as error:  # it will be seen when it matters
            _log.info("the workers could not be started early: %s", gist(str(error)))

    def ready(
        self, avoid: Collection[str], check: Callable[[], None], say: Callable[[str], None]
    ) -> tuple[Group, list[int]]:
        """A group, and the bundles of it whose processes are up: as many as the run shall have workers now.

        Nodes `avoid` are left out as long as enough fit elsewhere. `check` is called often and may raise to end the
        wait; now and then `say` tells what is waited for. Raises PlacementError after `resources.start_timeout`,
        StartFailed where a process cannot be started at all.
        """
        began_s = said_s = time.monotonic()
        looked_s, size, nodes = -_LOOK_AGAIN_S, 0, list[NodeFacts]()
        while True:
            check()
            now_s = time.monotonic()
            # Ray's account of what is free lags behind: a place that is there is not given up for it.
            if now_s - looked_s >= _LOOK_AGAIN_S and not (size and self._placed() >= size):
                nodes = look_at_nodes(self.group.place if self.group else None)
                looked_s = now_s
                size = self._size(nodes, avoid, now_s - began_s)
            if size:
                group, bundles = self._group_of(size, nodes, avoid)
                group.start(bundles)
                if group.ready(bundles, _SLICE_S):
                    group.drop([bundle for bundle in group.bundles if bundle not in bundles])
                    self._started = True
                    return group, bundles
            else:
                time.sleep(_SLICE_S)
            if now_s - said_s >= _SAY_EVERY_S or now_s - began_s > self._resources.start_timeout:
                said_s = now_s
                why = self._why(size, nodes, avoid)
                if now_s - began_s > self._resources.start_timeout:
                    raise PlacementError(
                        f"the workers could not be started within {self._resources.start_timeout:g} s: {why}",
                        "see `orchestrator plan`; free resources, lower resources.num_workers, or raise "
                        "resources.start_timeout",
                    )
                say(f"waiting for workers for {now_s - began_s:.0f} s: {why}")

    def keep_only(self, ranks: Collection[int]) -> None:
        """End all processes but those of these ranks; those on GPUs too, as what CUDA still holds is not known."""
        if self.group is not None:
            group = self.group
            group.keep_only([rank for rank in ranks if not group.facts_of(rank).gpus])

    def close(self) -> None:
        """End all processes and give the place back."""
        group, self.group = self.group, None
        if group is not None:
            group.close()

    def abandon(self) -> None:
        """Leave the processes to Ray, which ends them with the cluster: nobody is there to be asked for it."""
        self.group = None

    def _size(self, nodes: list[NodeFacts], avoid: Collection[str], waited_s: float) -> int:
        """How many workers to ask for now; 0 to wait for more nodes.

        Where too few fit, Ray is asked for the fewest: it queues, and an autoscaler sees what is wanted.
        """
        resources = self._resources
        fits = self._fitting(nodes, avoid)
        more = fits < resources.max_workers and not self._started and waited_s < resources.wait_for_max
        if (
            more
            and fits
            and worth_waiting(nodes, self._bundle, resources.limits, avoid, resources.placement_strategy)
        ):
            return 0
        return fits or resources.min_workers

    def _group_of(self, size: int, nodes: list[NodeFacts], avoid: Collection[str]) -> tuple[Group, list[int]]:
        """The group if it suits, else a new one; and which of its bundles to use, those with processes first."""
        out = self._draining(nodes) | left_out(
            nodes, self._bundle, self._resources.limits, avoid, self._resources.placement_strategy
        )
        if self.group is not None:
            group, placed = self.group, self.group.place.bundles()
            live = [bundle for bundle, node in placed.items() if node not in out]
            live.sort(key=lambda bundle: (bundle not in group.bundles, bundle))
            if len(live) >= size:
                return group, live[:size]
            # Ray is still looking for the bundles that are not placed.
            if len(live) == len(placed) and group.place.size == size:
                return group, list(range(size))
            self.close()
        group = self._open(size, out)
        return group, list(range(size))

    def _open(self, size: int, out: Collection[str]) -> Group:
        self.group = Group(ask_for_place(self._resources, size, out), self._forget)
        self.group.start(range(size))
        return self.group

    def _placed(self) -> int:
        return len(self.group.place.bundles()) if self.group is not None else 0

    def _fitting(self, nodes: list[NodeFacts], avoid: Collection[str]) -> int:
        resources = self._resources
        return fitting(nodes, self._bundle, resources.limits, avoid, resources.placement_strategy)

    def _draining(self, nodes: list[NodeFacts]) -> frozenset[str]:
        return frozenset(node.node_id for node in nodes if node.draining)

    def _why(self, size: int, nodes: list[NodeFacts], avoid: Collection[str]) -> str:
        if self._placed() >= size > 0:
            return "their places are there, and their processes are coming up"
        return why_waiting(
            nodes, self._bundle, self._resources.min_workers, avoid, self._resources.placement_strategy
        )
