"""A group of worker processes by itself, without a run: it takes one piece of work after the other."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray

from orchestrator.records import Reply
from orchestrator.runners.ray_workers.group import Group
from orchestrator.runners.ray_workers.placement import ask_for_place
from orchestrator.runners.ray_workers.process import Ended, Report
from orchestrator.spec.cluster import ResourcesSection
from tests.cluster.group_case import (
    TIMEOUT_S,
    add_up,
    ask_at_a_gate,
    ends_of,
    fail_on_rank_1,
    grow,
    met,
    results_of,
    spoil,
    wait_on_rank_1,
    wait_until_ready,
)


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
    assert "group_case.py:" in frames[1]


def test_a_process_group_is_kept_until_a_piece_of_work_fails(group: Group) -> None:
    assert [met(group), met(group), met(group)] == [1, 2, 3]
    ends = ends_of(group, fail_on_rank_1, keep=True)
    failures = [end.failure for _, end in sorted(ends.items()) if isinstance(end, Ended)]
    assert [failure and failure.peer_lost for failure in failures] == [True, False]
    assert [met(group), met(group)] == [1, 2]
    results_of(group, add_up, keep=True)  # and nobody says that it ended well
    assert [met(group), met(group)] == [1, 2]
    group.keep_only([1])
    group.start([0, 1])
    wait_until_ready(group)
    assert met(group) == 1, "one of its processes is new"


def test_each_piece_of_work_finds_its_process_as_new(group: Group, tmp_path: Path) -> None:
    (tmp_path / "own_net.py").write_text("SEEN = []\n")
    group.forget = (str(tmp_path),)
    work = functools.partial(spoil, folder=str(tmp_path))
    for _ in range(3):
        assert results_of(group, work, keep=True) == [(None, "torch.float32", [])] * 2
        group.ended_well()


def test_what_takes_a_decision_is_heard_at_once(group: Group) -> None:
    """Long before the time is over that a poll waits for news."""
    assert group.begin([0, 1], ask_at_a_gate, 60.0, keep=True) == {}
    began_s = time.monotonic()
    reports: list[int] = []
    results: dict[int, str] = {}
    replies: dict[int, Reply] = {}
    while len(results) < 2:
        for rank, told in group.poll(replies, 60.0, eager=True).items():
            assert isinstance(told, Report)
            if rank == 0 and told.letter is not None and told.letter.reports:
                reports = [report.epoch for report in told.letter.reports]
                replies[0] = Reply(0, "leave", 0, max(reports))
            if told.ended is not None:
                results[rank] = told.ended.result
    assert time.monotonic() - began_s < 30.0
    assert (reports, results) == ([1, 2], {0: "leave", 1: ""})

    assert group.begin([0, 1], wait_on_rank_1, 60.0) == {}  # who has no news
    began_s, answers = time.monotonic(), 0
    while answers < 6:
        told = group.poll({}, 1.0, eager=True)
        assert all(isinstance(one, Report) and one.ended is None for one in told.values())
        answers += len(told)
    assert time.monotonic() - began_s > 2.5, "each of the two answers after a second, three times"


def test_what_the_processes_take_is_told(group: Group) -> None:
    for num_bytes in (10**6, 300 * 10**6):
        ends = ends_of(group, functools.partial(grow, num_bytes=num_bytes))
        for end in ends.values():
            assert isinstance(end, Ended)
            assert end.result is not None
            pid, resident_bytes = end.result
            assert end.memory_bytes == pytest.approx(resident_bytes, rel=0.1)
            assert end.memory_bytes == pytest.approx(psutil.Process(pid).memory_info().rss, rel=0.1)
