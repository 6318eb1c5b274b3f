"""What the driver makes of ranks that fall silent, fail, or come back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.records import Failure, Pulse, Reply
from orchestrator.runners.desk import Desk
from orchestrator.runners.ray_workers.follow import Broken, Done, Follower
from orchestrator.runners.ray_workers.process import Ended, Report
from orchestrator.runners.ray_workers.seats import Facts


@dataclass
class Ranks:
    """Processes as a group shows them: what each tells poll by poll, and for how long it has been silent."""

    told: list[dict[int, Report | Failure]]
    silent: dict[int, float] = field(default_factory=dict)
    replies: list[dict[int, Reply]] = field(default_factory=list)

    def poll(
        self, replies: Mapping[int, Reply], timeout_s: float, *, eager: bool
    ) -> dict[int, Report | Failure]:
        self.replies.append(dict(replies))
        return self.told.pop(0) if self.told else {}

    def silent_s(self, rank: int) -> float:
        return self.silent.get(rank, 0.0)

    def answered_s(self, rank: int) -> float:
        return 100.0

    def facts_of(self, rank: int) -> Facts:
        return Facts(node=f"node-{rank}", host=f"host-{rank}", ip="", pid=rank)


def follow(ranks: Ranks, reached: Mapping[str, bool]) -> Done | Broken:
    follower: Any = Follower(
        ranks,  # type: ignore[arg-type]
        Desk(lambda points: None),
        2,
        hang_timeout_s=0,
        unreachable_timeout_s=30,
        stop_grace_s=30,
        check=lambda: None,
        reaches=lambda node: reached[node],
        look_for_resize=lambda: None,
    )
    ended: Done | Broken = follower.follow({})
    return ended


WORKS = Report(Pulse("training", 3, 3))
DONE = Report(Pulse("finishing", 9, 9), ended=Ended("completed"))


def test_a_silent_rank_whose_node_answers_is_waited_for() -> None:
    ranks = Ranks([{0: WORKS}, {0: DONE}, {1: DONE}], silent={1: 31.0})
    assert follow(ranks, {"node-0": True, "node-1": True}) == Done("completed", 2)


def test_a_silent_rank_whose_node_is_out_of_reach_is_the_culprit() -> None:
    broken = follow(Ranks([{0: WORKS}], silent={1: 31.0}), {"node-1": False})
    assert isinstance(broken, Broken)
    assert (broken.culprit.rank, broken.culprit.cause, broken.culprit.node) == (1, "hardware", "node-1")
    assert broken.silent == {1}


def test_a_rank_that_comes_back_while_it_is_given_up_stays_given_up() -> None:
    """The link heals in the very moment: the rank works on, or is even done, when the others are asked."""
    for back in (WORKS, DONE):
        ranks = Ranks([{0: WORKS}, {0: WORKS, 1: back}], silent={1: 31.0})
        broken = follow(ranks, {"node-1": False})
        assert isinstance(broken, Broken)
        assert (broken.culprit.rank, broken.silent) == (1, {1})
        assert 1 not in broken.keepable
