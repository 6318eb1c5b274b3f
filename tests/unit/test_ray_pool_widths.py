"""Groups of workers for trials of different widths, none of which keeps another from its place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from orchestrator.recovery.sizing import NodeFacts
from orchestrator.runners.ray_workers import pool as pools
from orchestrator.runners.ray_workers.pool import Lease, Pool, num_side_by_side
from orchestrator.spec import load_spec
from orchestrator.spec.cluster import ResourcesSection
from tests.unit.spec_helpers import minimal


@dataclass
class Staff:
    """Workers that are there, or wait for their place."""

    group: object | None = None
    is_up: bool = False
    closed: int = 0

    def up(self) -> Staff:
        self.group, self.is_up = object(), True
        return self

    def close(self) -> None:
        self.group, self.is_up, self.closed = None, False, self.closed + 1


def wide(workers: int) -> ResourcesSection:
    return load_spec(minimal(resources={"num_workers": workers})).spec.resources


def leased(pool: Pool, workers: int, *, up: bool = True) -> tuple[Lease, Staff]:
    lease = pool.lease(wide(workers))
    staff: Any = Staff()
    lease.staff = staff.up() if up else staff
    return lease, staff


def test_a_warm_group_is_taken_before_one_that_must_be_started_anew() -> None:
    pool = Pool(2, recycle_bytes=1)
    (warm, _), (cold, staff) = leased(pool, 1), leased(pool, 1)
    pool.give_back(warm)
    staff.close()
    pool.give_back(cold)
    assert pool.lease(wide(1)) is warm
    assert pool.lease(wide(1)) is cold


def test_idle_groups_of_another_width_are_ended_for_one_that_must_be_placed() -> None:
    pool = Pool(3, recycle_bytes=1)
    narrow, staff = leased(pool, 1)
    pool.give_back(narrow)
    pool.lease(wide(2))
    assert staff.closed == 1


def test_a_group_that_comes_free_is_ended_where_one_of_another_width_waits() -> None:
    pool = Pool(3, recycle_bytes=1)
    narrow, staff = leased(pool, 1)
    _, waiting = leased(pool, 2, up=False)
    assert pool.held_up
    pool.give_back(narrow)
    assert staff.closed == 1
    waiting.up()
    assert not pool.held_up


def test_groups_of_one_width_stay_warm_while_others_of_it_come_up() -> None:
    pool = Pool(3, recycle_bytes=1)
    first, staff = leased(pool, 1)
    leased(pool, 1, up=False)
    assert not pool.held_up
    pool.give_back(first)
    assert staff.closed == 0
    assert pool.lease(wide(1)) is first


def test_a_group_that_has_grown_is_ended_and_may_be_started_again() -> None:
    pool = Pool(1, recycle_bytes=100)
    lease, staff = leased(pool, 1)
    pool.give_back(lease, 1000)
    assert pool.lease(wide(1)) is lease
    pool.give_back(lease, 1101)
    assert (staff.closed, pool.recycled, lease.first_bytes) == (1, 1, 0)


@pytest.mark.parametrize(
    ("most", "resources", "space", "expected"),
    [
        ("auto", {}, {}, 4),
        ("auto", {"num_workers": 3}, {}, 1),
        ("auto", {"num_workers": 9}, {}, 1),  # it waits for its place
        (2, {}, {}, 2),
        (16, {}, {}, 4),
        (16, {"autoscaling": True}, {}, 16),
        (16, {"num_workers": 2}, {"resources.num_workers": {"choice": [1, 2]}}, 16),
    ],
)
def test_no_more_trials_run_side_by_side_than_find_a_place(
    monkeypatch: pytest.MonkeyPatch,
    most: int | str,
    resources: dict[str, Any],
    space: dict[str, Any],
    expected: int,
) -> None:
    nodes = [NodeFacts(name, {"CPU": 2.0, "memory": 1e12}, {"CPU": 0.0}) for name in ("one", "other")]
    monkeypatch.setattr(pools, "node_facts", lambda: nodes)
    tune = {"param_space": {"train.optimizer.lr": {"uniform": [0.1, 0.2]}, **space}}
    spec = minimal(resources=resources, tune={**tune, "max_concurrent_trials": most})
    assert num_side_by_side(load_spec(spec).spec) == expected
