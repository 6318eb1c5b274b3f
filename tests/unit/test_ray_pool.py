"""The pool of warm workers: whom a trial gets, who is ended, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from orchestrator.runners.ray_workers import pool as pool_file
from orchestrator.runners.ray_workers.pool import Lease, Pool
from orchestrator.spec.cluster import ResourcesSection

ONE, TWO = ResourcesSection(num_workers=1), ResourcesSection(num_workers=2)
MB = 10**6


@dataclass
class Group:
    """Processes that are up, or come up, or wait for their place."""

    is_up: bool
    placed: bool = True

    @property
    def place(self) -> Group:
        return self

    def bundles(self) -> dict[int, str]:
        return {0: "a node"} if self.placed else {}


class Staff:
    """Workers that only know how often they were ended."""

    made: list[Staff]

    def __init__(self, resources: ResourcesSection, forget: tuple[str, ...] = ()) -> None:
        self.resources, self.forget = resources, forget
        self.closed = self.abandoned = 0
        self.group: Any = Group(is_up=True)
        Staff.made.append(self)

    @property
    def is_up(self) -> bool:
        return self.group is not None and self.group.is_up

    def close(self) -> None:
        self.closed += 1
        self.group = None

    def abandon(self) -> None:
        self.abandoned += 1


@pytest.fixture(autouse=True)
def fake_staff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_file, "Staff", Staff)
    monkeypatch.setattr(Staff, "made", [], raising=False)


def pool_of(limit: int, recycle_bytes: int = 100 * MB) -> Pool:
    return Pool(limit, recycle_bytes=recycle_bytes, forget=("code",))


def staff_of(lease: Lease) -> Any:
    return lease.staff


def closed() -> list[int]:
    return [staff.closed for staff in Staff.made]


def test_a_group_that_comes_back_takes_the_next_trial() -> None:
    pool = pool_of(2)
    first = pool.lease(ONE)
    assert (staff_of(first).resources, staff_of(first).forget) == (ONE, ("code",))
    second = pool.lease(ONE)
    assert second is not first
    pool.give_back(second)
    assert pool.lease(ONE) is second
    pool.give_back(first)
    pool.give_back(second)
    assert pool.lease(ONE) is second, "the one that came free last is warmest"
    assert (len(Staff.made), closed()) == (2, [0, 0])


def test_leases_of_equal_width_are_equal_though_made_apart() -> None:
    pool = pool_of(1)
    lease = pool.lease(ResourcesSection(num_workers=2))
    pool.give_back(lease)
    assert pool.lease(ResourcesSection(num_workers=2)) is lease


def test_another_width_gets_workers_of_its_own_and_those_in_its_way_are_ended() -> None:
    pool = pool_of(2)
    leases = [pool.lease(ONE), pool.lease(ONE)]
    for lease in leases:
        pool.give_back(lease)
    wide = pool.lease(TWO)
    assert staff_of(wide).resources == TWO
    assert [staff_of(lease).closed for lease in leases] == [1, 0], "that which was idle for longest"
    narrow = pool.lease(ONE)
    assert narrow is leases[1]
    pool.give_back(wide)
    assert pool.lease(TWO) is wide
    assert closed() == [1, 0, 0]


def test_there_are_never_more_groups_than_the_limit() -> None:
    """Also where it was lowered meanwhile: then whoever comes back too many is ended."""
    pool = pool_of(3)
    leases = [pool.lease(ONE) for _ in range(3)]
    pool.limit = 1
    pool.give_back(leases[0])
    pool.give_back(leases[1])
    pool.give_back(leases[2])
    assert closed() == [1, 1, 0]
    assert pool.lease(ONE) is leases[2]


def test_workers_that_were_up_before_are_the_first_to_work() -> None:
    pool = pool_of(1)
    early: Any = Staff(TWO)
    pool.take_over(early, TWO)
    lease = pool.lease(TWO)
    assert lease.staff is early
    pool.give_back(lease)
    pool.lease(ONE)
    assert early.closed == 1


@pytest.mark.parametrize(("grown", "recycled"), [(100 * MB, 0), (100 * MB + 1, 1)])
def test_a_group_that_grows_too_much_is_started_anew(grown: int, recycled: int) -> None:
    """By what its first trial took; and after it was started anew, by what that trial takes."""
    pool = pool_of(1)
    for memory_bytes in (500 * MB, 0, 560 * MB, 500 * MB + grown):
        pool.give_back(pool.lease(ONE), memory_bytes)
    assert (pool.recycled, closed()) == (recycled, [recycled])
    if recycled:
        for memory_bytes in (700 * MB, 700 * MB + grown - 1):
            pool.give_back(pool.lease(ONE), memory_bytes)
        assert closed() == [1]
        pool.give_back(pool.lease(ONE), 700 * MB + grown)
        assert (pool.recycled, closed(), len(Staff.made)) == (2, [2], 1)


def test_workers_that_are_taken_out_live_on_and_no_others() -> None:
    pool = pool_of(3)
    leases = [pool.lease(resources) for resources in (ONE, TWO, ONE)]
    pool.give_back(leases[0])
    pool.give_back(leases[1])
    assert pool.take_out(TWO) is leases[1].staff
    assert closed() == [1, 0, 1]
    pool.close()
    assert closed() == [1, 0, 1], "what was taken out is the taker's"


def test_the_end_of_the_pool_is_the_end_of_all_workers() -> None:
    """Also of those that a trial still has; it gives them back afterwards."""
    pool = pool_of(2)
    idle, busy = pool.lease(ONE), pool.lease(ONE)
    pool.give_back(idle)
    pool.close()
    assert closed() == [1, 1]
    pool.give_back(busy)
    assert staff_of(busy).closed >= 1


def test_workers_of_a_head_that_is_gone_are_left_alone() -> None:
    pool = pool_of(2)
    idle = pool.lease(ONE)
    pool.lease(ONE)
    pool.give_back(idle)
    pool.abandon()
    assert [(staff.closed, staff.abandoned) for staff in Staff.made] == [(0, 1), (0, 1)]


@pytest.mark.parametrize("placed", [False, True])
def test_a_trial_that_waits_for_a_place_gets_the_group_of_one_that_has_ended(placed: bool) -> None:
    """Two searches that hold all of a cluster would wait for each other's places else. What has a place already comes
    up for the next trial; what has none is not asked for any more."""
    pool = pool_of(2)
    waits, works = pool.lease(ONE), pool.lease(ONE)
    coming, warm = Group(is_up=False, placed=placed), staff_of(works).group
    staff_of(waits).group = coming
    number = works.number
    pool.swap(waits)
    assert staff_of(waits).group is coming, "nobody has ended"
    pool.give_back(works)
    pool.swap(waits)
    assert staff_of(waits).group is warm
    assert waits.number == number
    assert staff_of(works).group is (coming if placed else None)
    pool.swap(waits)
    assert staff_of(waits).group is warm, "it has what it needs"
    assert (pool.lease(ONE) is works) == placed


def test_groups_that_the_rest_of_the_search_does_not_need_are_ended() -> None:
    pool = pool_of(3)
    leases = [pool.lease(ONE) for _ in range(3)]
    for lease in leases[:2]:
        pool.give_back(lease)
    pool.trim(3)
    assert closed() == [0, 0, 0]
    pool.trim(2)
    assert closed() == [1, 0, 0]
    pool.trim(1)
    assert closed() == [1, 1, 0]
