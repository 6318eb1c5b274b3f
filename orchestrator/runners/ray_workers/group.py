"""A group of worker processes: started side by side, given work, polled, replaced where they failed. Imports: ray.

It knows nothing of runs: what it does is a function that each of its processes calls (see `process.Work`). A process
that came well out of a piece of work takes the next one, so that what it imported and compiled stays.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from orchestrator.errors import OrchestratorError
from orchestrator.records import Failure, Reply
from orchestrator.runners.ray_workers.answers import answer_within
from orchestrator.runners.ray_workers.deaths import death_of
from orchestrator.runners.ray_workers.placement import Place
from orchestrator.runners.ray_workers.process import Report, Stacks, Work, WorkerProcess
from orchestrator.runners.ray_workers.seats import Facts, Seat, assign_seats
from orchestrator.runners.verdicts import gist

_log = logging.getLogger(__name__)
MODULES = ("orchestrator.worker", "torch._dynamo")  # the latter by the first optimizer step
"""What a process imports before there is work."""
_ANSWER_S = 30.0
_GONE_S = 5.0


class StartFailed(OrchestratorError):
    """A worker's process cannot be started, here or anywhere."""


@dataclass
class _Member:
    """One process, in the bundle of the same number."""

    actor: Any
    first_answer: Any
    facts: Facts | None = None
    seat: Seat | None = None
    poll: Any = None
    """The poll under way."""
    answered_s: float = 0.0
    """When it answered last, in seconds since the epoch, and (`heard_s`) by the clock that never jumps."""
    heard_s: float = 0.0
    ended: bool = False


@dataclass
class Group:
    """Processes in the bundles of a place, by the bundle's number; ranks are given with each piece of work."""

    place: Place
    forget: tuple[str, ...] = ()
    """The folders of user code, which each piece of work loads anew."""
    _members: dict[int, _Member] = field(default_factory=dict)
    _first: int | None = None
    _joined: tuple[int, ...] = ()
    """The bundles whose processes have kept their process group."""

    def start(self, bundles: Sequence[int]) -> None:
        """Start a process in each bundle that has none. Does not wait, not even for the place.

        Raises Ray's GetTimeoutError where its head does not answer.
        """
        for bundle in bundles:
            if bundle not in self._members:
                actor = answer_within(_ANSWER_S, functools.partial(self._create, bundle))
                self._members[bundle] = _Member(actor, actor.facts.remote())

    def _create(self, bundle: int) -> Any:
        options = self.place.options(bundle)
        return (
            ray.remote(WorkerProcess).options(**options, max_restarts=0, max_task_retries=0).remote(MODULES)
        )

    def ready(self, bundles: Sequence[int], timeout_s: float) -> bool:
        """Wait until the processes of these bundles answer; False where the time is over, or one of them died.

        Raises StartFailed where one cannot be started at all.
        """
        waiting = {
            self._members[bundle].first_answer: bundle
            for bundle in bundles
            if self._members[bundle].facts is None
        }
        if not waiting:
            return True
        done, left = ray.wait(list(waiting), num_returns=len(waiting), timeout=timeout_s)
        died = False
        for ref in done:
            bundle = waiting[ref]
            try:
                self._members[bundle].facts = ray.get(ref)
            except ray.exceptions.RayActorError as error:
                if error.actor_init_failed:
                    raise _cannot_start(error) from error
                _log.warning("a worker's process died as it started: %s", gist(str(error)))
                self.drop([bundle])
                died = True
        return not left and not died

    def begin(
        self, bundles: Sequence[int], work: Work, timeout_s: float, *, keep: bool = False
    ) -> dict[int, Failure]:
        """Seat the processes and let them begin; gives the failures of ranks that could not.

        `timeout_s` is that of their collectives. Rank 0 stays where it was, if it can. `keep`: the process group is
        kept for the next piece of work, where `ended_well` says that this one ended so.
        """
        facts = {bundle: self._facts(bundle) for bundle in bundles}
        seats = assign_seats(facts, self._first)
        for bundle, member in self._members.items():
            member.seat, member.poll, member.ended = seats.get(bundle), None, False
            member.answered_s, member.heard_s = time.time(), time.monotonic()
        self._first = next(bundle for bundle, seat in seats.items() if seat.rank == 0)
        failures: dict[int, Failure] = {}
        work_ref = ray.put(work)  # sent to each node once
        address = None
        joined, self._joined = self._joined, ()
        if joined != tuple(sorted(bundles)):
            try:
                address = ray.get(
                    self._members[self._first].actor.open_store.remote(timeout_s), timeout=_ANSWER_S
                )
            except ray.exceptions.RayError as error:
                return {0: death_of(error, 0, self._facts(self._first), time.time())}
        begun = {
            seat.rank: self._members[bundle].actor.begin.remote(
                work_ref, seat, address, timeout_s, keep_group=keep, forget=self.forget
            )
            for bundle, seat in seats.items()
        }
        ray.wait(list(begun.values()), num_returns=len(begun), timeout=_ANSWER_S)
        for rank, ref in begun.items():
            try:
                ray.get(ref, timeout=0)
            except ray.exceptions.RayError as error:
                failures[rank] = death_of(error, rank, self._of_rank(rank).facts, time.time())
        return failures

    def ended_well(self) -> None:
        """All ranks have come to the end of a piece of work together, with `keep`: the next one is begun faster."""
        self._joined = tuple(sorted(bundle for bundle, member in self._members.items() if member.seat))

    def poll(
        self, replies: Mapping[int, Reply], timeout_s: float, *, eager: bool = False
    ) -> dict[int, Report | Failure]:
        """What the ranks tell that answer in time, and the deaths of those that will not any more.

        `eager`: they answer when they have news, and the first answer ends the wait.

        A poll that is not answered stays under way, and may be answered later; so a short cut of the network does
        no harm. Ranks that have ended are not asked again.
        """
        members = {member.seat.rank: member for member in self._seated() if member.seat and not member.ended}
        for rank, member in members.items():
            if member.poll is None:
                member.poll = member.actor.poll.remote(replies.get(rank), timeout_s if eager else 0.0)
        if not members:
            return {}
        polls = [member.poll for member in members.values()]
        ray.wait(polls, num_returns=1 if eager else len(polls), timeout=2 * timeout_s if eager else timeout_s)
        told: dict[int, Report | Failure] = {}
        for rank, member in members.items():
            try:
                report: Report = ray.get(member.poll, timeout=0)
            except ray.exceptions.GetTimeoutError:
                continue
            except ray.exceptions.ActorUnavailableError:  # the connection broke, the process may live
                member.poll = None
                continue
            except ray.exceptions.RayError as error:
                told[rank] = death_of(error, rank, member.facts, member.answered_s)
                member.ended = True
                continue
            member.poll, member.answered_s, member.heard_s = None, time.time(), time.monotonic()
            member.ended = report.ended is not None
            told[rank] = report
        return told

    def answered_s(self, rank: int) -> float:
        """When the rank answered last, seconds since the epoch."""
        return self._of_rank(rank).answered_s

    def silent_s(self, rank: int) -> float:
        """For how long the rank has not answered."""
        return time.monotonic() - self._of_rank(rank).heard_s

    def facts_of(self, rank: int) -> Facts:
        facts = self._of_rank(rank).facts
        assert facts is not None
        return facts

    def bundle_of(self, rank: int) -> int:
        return next(
            bundle for bundle, member in self._members.items() if member.seat and member.seat.rank == rank
        )

    def nodes(self) -> dict[str, int]:
        """How many processes that were seated last lie on each node, by node id."""
        count: dict[str, int] = {}
        for member in self._seated():
            if member.facts:
                count[member.facts.node] = count.get(member.facts.node, 0) + 1
        return count

    def stacks(self, timeout_s: float) -> dict[int, Stacks]:
        """What the processes are at, by rank, of those that answer in time."""
        asked = {
            member.actor.stacks.remote(): member.seat.rank
            for member in self._seated()
            if member.seat is not None
        }
        done, _ = ray.wait(list(asked), num_returns=len(asked), timeout=timeout_s)
        answers: dict[int, Stacks] = {}
        for ref in done:
            with contextlib.suppress(ray.exceptions.RayError):
                answers[asked[ref]] = ray.get(ref)
        return answers

    def drop(self, bundles: Sequence[int]) -> None:
        """End the processes of these bundles; the next start puts new ones there."""
        if set(bundles) & set(self._joined):
            self._joined = ()
        _kill([self._members.pop(bundle).actor for bundle in bundles if bundle in self._members])

    def keep_only(self, ranks: Sequence[int]) -> None:
        """End all processes but those that had these ranks."""
        kept = {self.bundle_of(rank) for rank in ranks}
        self.drop([bundle for bundle in self._members if bundle not in kept])

    @property
    def is_up(self) -> bool:
        """Whether there is a process in each bundle, and all have answered."""
        return len(self._members) == self.place.size and all(
            member.facts is not None for member in self._members.values()
        )

    @property
    def bundles(self) -> list[int]:
        """Where there are processes."""
        return sorted(self._members)

    def close(self) -> None:
        """End all processes and give the place back. Waits a little until they are gone; may be called twice."""
        actors = [member.actor for member in self._members.values()]
        self.drop(list(self._members))
        self.place.remove()
        if actors and ray.is_initialized():
            last = [actor.poll.remote(None) for actor in actors]  # fails as soon as the process is gone
            ray.wait(last, num_returns=len(last), timeout=_GONE_S)

    def _facts(self, bundle: int) -> Facts:
        facts = self._members[bundle].facts
        assert facts is not None, "wait until the processes are ready"
        return facts

    def _seated(self) -> list[_Member]:
        return [member for member in self._members.values() if member.seat is not None]

    def _of_rank(self, rank: int) -> _Member:
        return self._members[self.bundle_of(rank)]


def _kill(actors: Sequence[Any]) -> None:
    def kill() -> None:
        for actor in actors:
            with contextlib.suppress(ray.exceptions.RayError, ValueError):
                ray.kill(actor)

    if actors:
        with contextlib.suppress(ray.exceptions.GetTimeoutError):  # of a head that is away
            answer_within(_GONE_S, kill)


def _cannot_start(error: ray.exceptions.RayActorError) -> StartFailed:
    text = str(error)
    if "No module named 'orchestrator'" in text:
        return StartFailed(
            "the cluster's nodes cannot import 'orchestrator'",
            "install it there, or ship it: runtime_env.pip",
        )
    return StartFailed(f"a worker's process cannot be started: {gist(text)}")
