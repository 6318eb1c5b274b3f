"""A group of worker processes by itself, without a run: it takes one piece of work after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
import ray
import torch

from orchestrator.engine.link import WorkerLink
from orchestrator.records import Failure
from orchestrator.runners.ray_workers.group import Group
from orchestrator.runners.ray_workers.placement import ask_for_place
from orchestrator.runners.ray_workers.process import Ended
from orchestrator.spec.cluster import ResourcesSection

TIMEOUT_S = 200


def add_up(link: WorkerLink) -> tuple[int, int, float]:
    """This rank, its process, and the sum of all ranks plus one."""
    total = torch.tensor([float(link.rank + 1)])
    torch.distributed.all_reduce(total)
    return link.rank, os.getpid(), total.item()


def fail_on_rank_1(link: WorkerLink) -> None:
    if link.rank == 1:
        raise ValueError("not me")
    torch.distributed.all_reduce(torch.zeros(1))


def wait_on_rank_1(link: WorkerLink) -> None:
    if link.rank == 1:
        time.sleep(TIMEOUT_S)
    torch.distributed.all_reduce(torch.zeros(1))


@pytest.fixture
def group(ray_cluster: str) -> Iterator[Group]:
    group = Group(ask_for_place(ResourcesSection(), 2))
    try:
        group.start([0, 1])
        wait_until_ready(group)
        yield group
    finally:
        group.close()
    assert [info["State"] for info in ray._private.state.actors().values() if info["State"] != "DEAD"] == []


def wait_until_ready(group: Group) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not group.ready([0, 1], 1.0):
        assert time.monotonic() < deadline


def ends_of(group: Group, work: Any) -> dict[int, Ended | Failure]:
    """How the work ended on each rank."""
    assert group.begin([0, 1], work, 60.0) == {}
    ended: dict[int, Ended | Failure] = {}
    deadline = time.monotonic() + TIMEOUT_S
    while len(ended) < 2:
        assert time.monotonic() < deadline
        for rank, told in group.poll({}, 0.2).items():
            if isinstance(told, Failure):
                ended[rank] = told
            elif told.ended is not None:
                ended[rank] = told.ended
    return ended


def results_of(group: Group) -> list[Any]:
    ends = ends_of(group, add_up)
    assert all(isinstance(end, Ended) and end.failure is None for end in ends.values()), ends
    return [ends[rank].result for rank in (0, 1)]  # type: ignore[union-attr]


def test_processes_take_one_piece_of_work_after_the_other(group: Group) -> None:
    first = results_of(group)
    assert [(rank, total) for rank, _, total in first] == [(0, 3.0), (1, 3.0)]
    assert results_of(group) == first  # in the same processes

    ends = ends_of(group, fail_on_rank_1)
    failures = [end.failure for _, end in sorted(ends.items()) if isinstance(end, Ended)]
    assert [failure and (failure.rank, failure.peer_lost) for failure in failures] == [(0, True), (1, False)]
    assert failures[1] is not None
    assert failures[1].error == "ValueError: not me"
    assert results_of(group) == first  # a broken collective did them no harm

    survivor = group.bundle_of(1)
    group.keep_only([1])
    group.start([0, 1])
    wait_until_ready(group)
    second = results_of(group)
    assert {pid for _, pid, _ in second} & {pid for _, pid, _ in first} == {first[1][1]}
    assert survivor in group.bundles


def test_a_stuck_rank_still_tells_where_it_stands(group: Group) -> None:
    assert group.begin([0, 1], wait_on_rank_1, 60.0) == {}
    deadline = time.monotonic() + TIMEOUT_S
    frames = dict[int, str]()
    while not ("wait_on_rank_1" in frames.get(1, "") and "all_reduce" in frames.get(0, "")):
        assert time.monotonic() < deadline, frames
        frames = {rank: stacks.frame for rank, stacks in group.stacks(5.0).items()}
    assert "test_group.py:" in frames[1]
