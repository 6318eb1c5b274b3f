"""How many groups of workers an empty cluster holds, against trying all ways to place them, device by device."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from orchestrator.recovery.sizing import NodeFacts
from orchestrator.runners.ray_workers.pool import groups_that_fit
from orchestrator.spec.cluster import ResourcesSection

Room = tuple[int, tuple[int, ...]]
"""What a node has left: CPUs, and tenths of each of its GPUs."""
Rooms = tuple[Room, ...]
STRATEGIES = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


def with_one_more(room: Room, cpus: int, tenths: int) -> Iterator[Room]:
    """The node after each way to put a worker there."""
    left, devices = room
    if left < cpus:
        return
    if tenths == 0:
        yield left - cpus, devices
    elif tenths >= 10:  # whole devices
        whole = [number for number, one in enumerate(devices) if one == 10]
        if len(whole) >= tenths // 10:
            taken = whole[: tenths // 10]
            yield left - cpus, tuple(0 if number in taken else one for number, one in enumerate(devices))
    else:  # a share of one of them
        for number, one in enumerate(devices):
            if one >= tenths:
                rest = (*devices[:number], one - tenths, *devices[number + 1 :])
                yield left - cpus, tuple(sorted(rest))


def with_a_group(rooms: Rooms, width: int, cpus: int, tenths: int, strategy: str) -> set[Rooms]:
    """The cluster after each way to place a group's workers, one after the other."""
    found: set[tuple[Rooms, frozenset[int]]] = {(rooms, frozenset())}
    for _ in range(width):
        found = {
            ((*now[:number], after, *now[number + 1 :]), used | {number})
            for now, used in found
            for number in range(len(now))
            if not (strategy == "STRICT_SPREAD" and number in used)
            if not (strategy == "STRICT_PACK" and used - {number})
            for after in with_one_more(now[number], cpus, tenths)
        }
    return {tuple(sorted(now)) for now, _ in found}


@functools.cache
def most_groups(rooms: Rooms, width: int, cpus: int, tenths: int, strategy: str) -> int:
    ways = with_a_group(rooms, width, cpus, tenths, strategy)
    return max((1 + most_groups(way, width, cpus, tenths, strategy) for way in ways), default=0)


def found(
    nodes: list[tuple[int, int, bool]], width: int | tuple[int, int], cpus: int, tenths: int, strategy: Any
) -> int:
    """What we say of nodes, as their CPUs, GPUs, and whether they are about to go. Much of them is in use."""
    facts = [
        NodeFacts(f"node-{number}", {"CPU": cpu, "GPU": gpu}, {"CPU": 0.0, "GPU": 0.0}, draining=draining)
        for number, (cpu, gpu, draining) in enumerate(nodes)
    ]
    resources = ResourcesSection(
        num_workers=width,
        use_gpu=tenths > 0,
        resources_per_worker={"CPU": cpus} | ({"GPU": tenths / 10} if tenths else {}),
        placement_strategy=strategy,
    )
    return groups_that_fit(facts, resources)


@pytest.mark.parametrize("strategy", STRATEGIES)
@given(
    nodes=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 2), st.booleans()), max_size=3),
    width=st.integers(1, 3),
    cpus=st.integers(1, 2),
    tenths=st.sampled_from([0, 2, 3, 4, 5, 6, 10, 20]),
)
@example(nodes=[(4, 2, False), (4, 2, False)], width=2, cpus=1, tenths=6)
@example(nodes=[(4, 0, False), (2, 0, False), (2, 0, False)], width=2, cpus=1, tenths=0)
def test_as_many_groups_as_can_be_placed(
    strategy: str, nodes: list[tuple[int, int, bool]], width: int, cpus: int, tenths: int
) -> None:
    rooms = tuple(sorted((cpu, (10,) * gpu) for cpu, gpu, draining in nodes if not draining))
    truth = most_groups(rooms, width, cpus, tenths, strategy)
    assert found(nodes, width, cpus, tenths, strategy) == truth


@pytest.mark.parametrize(
    ("strategy", "groups"), [("PACK", 3), ("SPREAD", 3), ("STRICT_PACK", 2), ("STRICT_SPREAD", 2)]
)
def test_by_hand(strategy: str, groups: int) -> None:
    """Nodes of 4, 1 and 1 CPUs, and groups of two workers of one CPU."""
    assert found([(4, 0, False), (1, 0, False), (1, 0, False)], 2, 1, 0, strategy) == groups


def test_elastic_groups_are_counted_at_their_largest() -> None:
    assert found([(6, 0, False)], (1, 3), 1, 0, "PACK") == 2
