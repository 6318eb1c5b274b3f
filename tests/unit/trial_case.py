"""Two workers of a trial as the driver sees them, without Ray: what they tell, and what becomes of their processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.records import Failure, Letter, Pulse, Reply
from orchestrator.runners.desk import Desk
from orchestrator.runners.ray_workers.head_watch import HeadLost
from orchestrator.runners.ray_workers.process import Ended, Report
from orchestrator.runners.ray_workers.seats import Facts

WORKS = Report(Pulse("training", 3, 3), Letter(0, 1, 0, ()))


def done(status: str = "completed", memory_bytes: int = 0) -> Report:
    return Report(Pulse("finishing", 9, 9), ended=Ended(status, memory_bytes=memory_bytes))


def failed(rank: int, cause: Any, *, peer_lost: bool = False) -> Report:
    failure = Failure(rank, 1, 1.0, "broken", cause, peer_lost=peer_lost)
    return Report(Pulse("training", 3, 3), ended=Ended(failure=failure))


class Group:
    """Two ranks, and what each tells poll by poll; the last is told for ever. A rank that has ended is not asked."""

    place = None

    def __init__(self, told: list[dict[int, Any]]) -> None:
        self._told, self._over = told, set[int]()
        self.kept_group: list[bool] = []
        self.ended_together = 0

    def begin(self, bundles: list[int], work: object, timeout_s: float, *, keep: bool) -> dict[int, Failure]:
        self.kept_group.append(keep)
        return {}

    def ended_well(self) -> None:
        self.ended_together += 1

    def poll(
        self, replies: Mapping[int, Reply], timeout_s: float, *, eager: bool
    ) -> dict[int, Report | Failure]:
        assert eager
        told = self._told.pop(0) if len(self._told) > 1 else self._told[0]
        new = {rank: one for rank, one in told.items() if rank not in self._over}
        self._over |= {rank for rank, one in new.items() if isinstance(one, Failure) or one.ended is not None}
        return new

    def stacks(self, timeout_s: float) -> dict[int, Any]:
        return {}

    def silent_s(self, rank: int) -> float:
        return 0.0

    def answered_s(self, rank: int) -> float:
        return 1.0

    def facts_of(self, rank: int) -> Facts:
        return Facts(node=f"node-{rank}", host=f"host-{rank}", ip="", pid=rank)

    def nodes(self) -> dict[str, int]:
        return {}


class Staff:
    """The group, or why there is none; what becomes of its processes."""

    def __init__(self, group: Group | Exception) -> None:
        self._ready = group
        self.kept: list[list[int]] = []
        self.closed = 0

    def ready(self, avoid: object, check: Any, say: object) -> tuple[Group, list[int]]:
        check()
        if isinstance(self._ready, Exception):
            raise self._ready
        return self._ready, [0, 1]

    def keep_only(self, ranks: Any) -> None:
        self.kept.append(list(ranks))

    def close(self) -> None:
        self.closed += 1


class Head:
    def __init__(self, looks: float = float("inf")) -> None:
        self._looks = looks

    def check(self) -> None:
        self._looks -= 1
        if self._looks < 0:
            raise HeadLost("Ray's head has not answered", "run the same command again")


class AskedToStop(dict[int, Any]):
    """What ranks tell in the poll in which the driver is asked to stop."""

    def __init__(self, desk: Desk, told: Mapping[int, Any]) -> None:
        super().__init__(told)
        self._desk = desk

    def items(self) -> Any:
        self._desk.request_stop()
        return super().items()
