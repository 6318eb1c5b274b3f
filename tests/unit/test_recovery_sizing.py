"""How many workers fit, and when their number changes, against packing worker by worker."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.recovery.sizing import (
    NodeFacts,
    Resize,
    Strategy,
    fitting,
    left_out,
    resize,
    why_waiting,
    worth_waiting,
)

CPU = {"CPU": 1.0}
STRATEGIES: tuple[Strategy, ...] = ("PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")


def node(node_id: str, free: float, total: float | None = None, **fields: object) -> NodeFacts:
    return NodeFacts(node_id, {"CPU": free if total is None else total}, {"CPU": free}, **fields)  # type: ignore[arg-type]


def packed(nodes: list[NodeFacts], per_worker: Mapping[str, float], most: int, strategy: Strategy) -> int:
    """The same by placing one worker after the other, in exact tenths of a thousand."""

    def holds(one: NodeFacts, at_most: int) -> int:
        left = {name: Fraction(round(one.free.get(name, 0) * 10_000)) for name in per_worker}
        count = 0
        while count < at_most and all(
            left[name] >= round(need * 10_000) for name, need in per_worker.items()
        ):
            left = {name: left[name] - round(need * 10_000) for name, need in per_worker.items()}
            count += 1
        return count

    if strategy == "STRICT_PACK":
        return max((holds(one, most) for one in nodes), default=0)
    return min(sum(holds(one, 1 if strategy == "STRICT_SPREAD" else most) for one in nodes), most)


amounts = st.integers(0, 80_000).map(lambda units: units / 10_000)
needs = st.dictionaries(
    st.sampled_from(["CPU", "memory", "disk"]),
    st.integers(500, 30_000).map(lambda units: units / 10_000),
    min_size=1,
)
free_by_node = st.lists(st.dictionaries(st.sampled_from(["CPU", "memory", "disk"]), amounts), max_size=6)
limits = st.tuples(st.integers(1, 5), st.integers(0, 20)).map(lambda pair: (pair[0], pair[0] + pair[1]))


def made(free: list[dict[str, float]], draining: bool = False) -> list[NodeFacts]:
    return [NodeFacts(str(index), one, one, draining) for index, one in enumerate(free)]


@given(free_by_node, needs, limits, st.sampled_from(STRATEGIES))
def test_as_many_fit_as_can_be_placed_one_by_one(
    free: list[dict[str, float]], per_worker: dict[str, float], limits: tuple[int, int], strategy: Strategy
) -> None:
    count = packed(made(free), per_worker, limits[1], strategy)
    assert fitting(made(free), per_worker, limits, (), strategy) == (count if count >= limits[0] else 0)
    assert fitting(made(free, draining=True), per_worker, limits, (), strategy) == 0


@given(
    free_by_node, free_by_node, needs, limits, st.sampled_from(STRATEGIES), st.sets(st.sampled_from("012"))
)
def test_more_free_never_fits_fewer(
    free: list[dict[str, float]],
    extra: list[dict[str, float]],
    per_worker: dict[str, float],
    limits: tuple[int, int],
    strategy: Strategy,
    avoid: set[str],
) -> None:
    """Without nodes to avoid: with them, one healthy node more can rightly mean fewer workers, on better nodes."""
    more = (
        [
            {name: one.get(name, 0.0) + other.get(name, 0.0) for name in one | other}
            for one, other in zip(free, extra, strict=False)
        ]
        + free[len(extra) :]
        + extra[len(free) :]
    )
    assert fitting(made(more), per_worker, limits, (), strategy) >= fitting(
        made(free), per_worker, limits, (), strategy
    )
    found = fitting(made(free), per_worker, limits, avoid, strategy)
    assert found == 0 or limits[0] <= found <= limits[1]
    assert (found == 0) == (fitting(made(free), per_worker, limits, (), strategy) == 0)


def test_tenths_add_up() -> None:
    assert fitting([node("a", 1.0)], {"CPU": 0.1}, (1, 99)) == 10
    assert fitting([node("a", 0.3)], {"CPU": 0.1}, (1, 99)) == 3
    assert fitting([node("a", 0.9999)], CPU, (1, 9)) == 0


def test_a_share_of_a_gpu_lies_on_one_gpu() -> None:
    def gpus(free: float, need: float) -> int:
        return fitting([NodeFacts("a", {"GPU": 4.0}, {"GPU": free})], {"GPU": need}, (1, 99))

    assert [gpus(2, 0.6), gpus(2, 0.5), gpus(2, 0.25), gpus(1.5, 0.4), gpus(3, 2), gpus(0.5, 1)] == [
        2,
        4,
        8,
        3,
        1,
        0,
    ]


def test_an_accelerator_stands_on_its_own_nodes() -> None:
    nodes = [
        NodeFacts("a", {}, {"CPU": 8.0, "GPU": 2.0, "accelerator_type:A100": 1.0}),
        NodeFacts("b", {}, {"CPU": 8.0, "GPU": 8.0, "accelerator_type:T4": 1.0}),
    ]
    assert fitting(nodes, {"CPU": 1, "GPU": 1, "accelerator_type:A100": 0.001}, (1, 99)) == 2


def test_what_to_avoid_is_used_only_where_too_few_fit_without_it() -> None:
    nodes = [node("a", 2), node("b", 2)]
    assert (fitting(nodes, CPU, (1, 4), {"b"}), left_out(nodes, CPU, (1, 4), {"b"})) == (2, {"b"})
    assert (fitting(nodes, CPU, (3, 4), {"b"}), left_out(nodes, CPU, (3, 4), {"b"})) == (4, set())
    assert left_out(nodes, CPU, (1, 4), {"gone"}) == set()


def test_waiting_for_more_makes_sense_while_others_hold_it() -> None:
    assert worth_waiting([node("a", 1, 4)], CPU, (1, 4))
    assert worth_waiting([node("a", 0, 4)], CPU, (1, 4))
    assert not worth_waiting([node("a", 2, 2)], CPU, (1, 4))
    assert not worth_waiting([node("a", 1, 4)], CPU, (1, 1))


def looked(
    nodes: list[NodeFacts],
    group: dict[str, int],
    limits: tuple[int, int] = (1, 4),
    before: list[NodeFacts] | None = None,
    now_s: float = 1000.0,
    last_change_s: float = 0.0,
) -> Resize | None:
    return resize(
        nodes,
        group,
        CPU,
        limits,
        before=nodes if before is None else before,
        now_s=now_s,
        last_change_s=last_change_s,
        cooldown_s=60.0,
    )


def test_a_group_grows_when_two_looks_agree_and_it_has_rested() -> None:
    one, two, three = [node("a", 1)], [node("a", 1), node("b", 1)], [node("a", 1), node("b", 2)]
    assert looked(one, {"a": 1}) is None
    assert looked(two, {"a": 1}, before=one) is None
    assert looked(two, {"a": 1}, last_change_s=941.0) is None
    found = looked(two, {"a": 1}, last_change_s=940.0)
    assert found is not None
    assert (found.to, found.why) == (2, "2 workers fit now instead of 1")
    steady = looked(three, {"a": 1}, before=two)
    assert steady is not None
    assert steady.to == 2
    assert looked(three, {"a": 1}, (1, 1)) is None
    first = resize(two, {"a": 1}, CPU, (1, 4), before=None, now_s=1e6, last_change_s=0, cooldown_s=0)
    assert first is None


def test_a_group_leaves_a_node_that_drains_at_once() -> None:
    drained = [node("a", 1), node("b", 2, draining=True, deadline_s=1120.0)]
    found = looked(drained, {"a": 1, "b": 2}, before=[], last_change_s=999.0)
    assert found is not None
    assert (found.to, found.why) == (
        1,
        "node b will be taken away in 120 s; 1 worker fits on the other nodes",
    )
    spare = looked([*drained, node("c", 2)], {"a": 1, "b": 2}, (3, 3))
    assert spare is not None
    assert spare.to == 3
    assert looked([node("a", 1), node("b", 2, draining=True)], {"a": 1}, (1, 1)) is None


def test_without_room_elsewhere_the_notice_is_used_up() -> None:
    drained = [node("a", 1), node("b", 1, draining=True, deadline_s=1100.0)]
    assert looked(drained, {"a": 1, "b": 1}, (2, 2), now_s=1039.0) is None
    found = looked(drained, {"a": 1, "b": 1}, (2, 2), now_s=1040.0)
    assert found is not None
    assert (found.to, found.why) == (
        0,
        "node b will be taken away in 60 s, and fewer than 2 workers fit on the other nodes",
    )
    assert looked([node("b", 1, draining=True)], {"b": 1}, (1, 1)) is None


def test_a_resize_stays_within_the_limits() -> None:
    nodes = [node(name, 3) for name in "abc"] + [node("d", 1, draining=True, deadline_s=1010.0)]
    for low, high in [(1, 2), (2, 5), (9, 9), (10, 12)]:
        found = looked(nodes, {"d": 1}, (low, high))
        assert found is not None
        assert found.to == (min(high, 9) if low <= 9 else 0)


@pytest.mark.parametrize(
    ("nodes", "least", "avoid", "strategy", "words"),
    [
        ([], 2, (), "PACK", "needs 2 × {CPU: 1}; room for 0; free: no node is there"),
        (
            [node("a", 1, 4), node("b", 0.5, 2, draining=True)],
            2,
            (),
            "PACK",
            "needs 2 × {CPU: 1}; room for 1; free: node a 1 of 4 CPU; node b (going away) 0.5 of 2 CPU",
        ),
        (
            [node("a" * 40, 1, 4, name="h1"), node("b", 3, 3)],
            4,
            ("b",),
            "STRICT_SPREAD",
            "needs 4 × {CPU: 1} on 4 nodes; room for 1; free: node h1 1 of 4 CPU; node b (avoided) 3 of 3 CPU",
        ),
    ],
)
def test_why_a_run_waits(
    nodes: list[NodeFacts], least: int, avoid: tuple[str, ...], strategy: Strategy, words: str
) -> None:
    assert why_waiting(nodes, CPU, least, avoid, strategy) == words


def test_why_a_run_waits_stays_short() -> None:
    assert why_waiting([node(str(index), 0, 1) for index in range(11)], CPU, 1).endswith("; and 3 more nodes")
