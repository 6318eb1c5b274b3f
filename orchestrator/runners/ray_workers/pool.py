"""Warm workers for the trials of a search: groups that outlive the trial and take the next one. Imports: none of ray.

A group's own placement group is what reserves its part of the cluster, all of it or nothing: no two trials ever hold a
half each that the other waits for.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

from orchestrator.recovery.sizing import NodeFacts, fitting
from orchestrator.runners.ray_workers.nodes import node_facts
from orchestrator.runners.ray_workers.staff import Staff
from orchestrator.spec.cluster import ResourcesSection
from orchestrator.spec.job import JobSpec

_log = logging.getLogger(__name__)


class Lease:
    """A group of workers in the hands of one trial."""

    def __init__(self, number: int, resources: ResourcesSection, forget: tuple[str, ...]) -> None:
        self.number = number
        self.resources = resources
        self.staff = Staff(resources, forget)
        self.first_bytes = 0
        """What the largest process took after its first trial."""


class Pool:
    """At most `limit` groups at a time. Thread-safe. `close` it in the end.

    Groups of different widths give way to each other: one that waits for its place is not kept from it by idle ones.
    A group whose largest process has grown by `recycle_bytes` since its first trial is ended. `forget`: see `Group`.
    """

    def __init__(self, limit: int, *, recycle_bytes: int, forget: tuple[str, ...] = ()) -> None:
        self.limit = limit
        self._recycle_bytes, self._forget = recycle_bytes, forget
        self._lock = threading.Lock()
        self._idle: list[Lease] = []
        self._busy: list[Lease] = []
        self._made = 0
        self.recycled = 0

    @property
    def held_up(self) -> bool:
        """Whether a group of another width than others waits for its place: what comes free is for that one."""
        with self._lock:
            return any(
                not one.staff.is_up and any(other.resources != one.resources for other in self._busy)
                for one in self._busy
            )

    def take_over(self, staff: Staff, resources: ResourcesSection) -> None:
        """Workers that have been started before; they are the pool's from now on."""
        lease = self._make(resources)
        lease.staff = staff
        self._idle.append(lease)

    def lease(self, resources: ResourcesSection) -> Lease:
        """Workers of this width: those that came free last, or ones that are still to be started."""
        with self._lock:
            fit = [lease for lease in self._idle if lease.resources == resources]
            fit.sort(key=lambda lease: lease.staff.group is not None)
            lease = fit[-1] if fit else self._make(resources)
            if fit:
                self._idle.remove(lease)
            surplus = []
            if lease.staff.group is None:  # idle ones of another width may be where it must go
                surplus = [one for one in self._idle if one.resources != resources]
                self._idle = [one for one in self._idle if one.resources == resources]
            while self._idle and len(self._idle) + len(self._busy) + 1 > self.limit:
                surplus.append(self._idle.pop(0))
            self._busy.append(lease)
        for one in surplus:
            one.staff.close()
        return lease

    def give_back(self, lease: Lease, memory_bytes: int = 0) -> None:
        """The trial is over. `memory_bytes`: what the largest process takes now, 0 where that is not known."""
        lease.first_bytes = lease.first_bytes or memory_bytes
        grown_bytes = memory_bytes - lease.first_bytes
        if grown_bytes > self._recycle_bytes:
            _log.warning(
                "a worker has grown by %d MB since its first trial: its group is started anew",
                grown_bytes // 10**6,
            )
            self.recycled += 1
            lease.staff.close()
            lease.first_bytes = 0
        with self._lock:
            surplus = lease not in self._busy  # the pool was closed meanwhile
            if not surplus:
                self._busy.remove(lease)
                surplus = len(self._busy) + len(self._idle) >= self.limit or any(
                    not other.staff.is_up and other.resources != lease.resources for other in self._busy
                )
            if not surplus:
                self._idle.append(lease)
        if surplus:
            lease.staff.close()

    def swap(self, lease: Lease) -> None:
        """Give a trial whose workers are still to come up those of another that has ended meanwhile: where others hold
        the rest of the cluster, its own might never find a place."""
        with self._lock:
            group = lease.staff.group
            idle = [one for one in self._idle if one.resources == lease.resources and one.staff.is_up]
            if not idle or lease.staff.is_up:
                return
            other = idle[-1]
            lease.staff.group, other.staff.group = other.staff.group, group
            lease.number, other.number = other.number, lease.number
            lease.first_bytes, other.first_bytes = other.first_bytes, 0
            # What has a place already comes up for the next trial.
            waiting = group is not None and not group.place.bundles()
            if waiting:
                self._idle.remove(other)
        if waiting:
            other.staff.close()

    def trim(self, wanted: int) -> None:
        """End idle groups beyond so many groups in all: what is left of the search needs no more."""
        with self._lock:
            surplus = []
            while self._idle and len(self._idle) + len(self._busy) > wanted:
                surplus.append(self._idle.pop(0))
        for lease in surplus:
            lease.staff.close()

    def take_out(self, resources: ResourcesSection) -> Staff:
        """Workers for what comes after the search; all others are ended."""
        lease = self.lease(resources)
        with self._lock:
            self._busy.remove(lease)
        self.close()
        return lease.staff

    def close(self) -> None:
        """End all workers."""
        with self._lock:
            leases, self._idle, self._busy = [*self._idle, *self._busy], [], []
        for lease in leases:
            lease.staff.close()

    def abandon(self) -> None:
        """Leave all workers to Ray: nobody is there to be asked for their end."""
        for lease in [*self._idle, *self._busy]:
            lease.staff.abandon()

    def _make(self, resources: ResourcesSection) -> Lease:
        self._made += 1
        return Lease(self._made, resources, self._forget)


def num_side_by_side(spec: JobSpec) -> int:
    """How many trials run at the same time: as many as the connected cluster holds, and no more than the spec says.

    What the spec says counts alone where the cluster grows as it is asked to, or where trials differ in what they take.
    Raises Ray's errors where the cluster does not answer.
    """
    assert spec.tune is not None
    most = spec.tune.max_concurrent_trials
    differ = any(path.partition(".")[0] == "resources" for path in spec.tune.param_space)
    if most != "auto" and (spec.resources.autoscaling or differ):
        return most
    fit = max(1, groups_that_fit(node_facts(), spec.resources))
    return fit if most == "auto" else min(most, fit)


def groups_that_fit(nodes: list[NodeFacts], resources: ResourcesSection) -> int:
    """How many groups the nodes hold when they are empty; those that are about to go are left out."""
    width, strategy = resources.max_workers, resources.placement_strategy
    free = [replace(node, free=node.total) for node in nodes if not node.draining]
    if strategy == "STRICT_PACK":
        return sum(_workers([node], resources) // width for node in free)
    if strategy != "STRICT_SPREAD":
        return _workers(free, resources) // width
    # k groups fit where the nodes hold k workers for each place in a group, and none counts for more than k of them.
    held, count = [_workers([node], resources) for node in free], 0
    while sum(min(count + 1, on_node) for on_node in held) >= (count + 1) * width:
        count += 1
    return count


def _workers(nodes: list[NodeFacts], resources: ResourcesSection) -> int:
    return sum(fitting([node], resources.bundle(), (1, 100_000), (), "PACK") for node in nodes)
