"""One attempt from the driver's side: poll the ranks until they are done, one fails, or nothing moves. Imports: ray.

What it finds is given back as data; what follows from it is decided in `supervise`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from orchestrator.records import Failure, Pulse, Reply, Wish
from orchestrator.recovery.sizing import Resize
from orchestrator.runners.desk import Desk
from orchestrator.runners.ray_workers.blame import culprit
from orchestrator.runners.ray_workers.group import Group
from orchestrator.runners.ray_workers.hangs import HangWatch, where_they_stand
from orchestrator.runners.ray_workers.process import Stacks

_log = logging.getLogger(__name__)
POLL_S = 0.2
COLLECT_S = 2.0
"""How long the other ranks may take to tell what they saw, after the first failure."""
QUIET_S = 1.0
"""Earlier, where for so long none told anything."""
_STACKS_S = 5.0
_SILENT_S = 0.8


@dataclass(frozen=True)
class Done:
    """All ranks came to the end together: 'completed' or 'stopped'; or they were killed after the time to save."""

    status: str
    world_size: int
    resize: Resize | None = None
    """Why they were stopped, where it was to change their number or place."""
    memory_bytes: int = 0
    """Of the largest process, after the work."""
    ended: bool = True
    """All ranks have come to the end; some may still be at work where they did not save in time."""


@dataclass(frozen=True)
class Broken:
    """The attempt failed: the culprit, what every rank saw, and what all were at, if it hung.

    `keepable` are ranks whose processes can take the next attempt: they ended by themselves, since another one left, or
    since the job's own code raised.
    `died` and `silent` are ranks whose process is gone, or does not answer.
    """

    culprit: Failure
    seen: dict[int, Failure]
    attempt: int
    keepable: list[int]
    died: frozenset[int] = frozenset()
    silent: frozenset[int] = frozenset()
    stacks: dict[int, Stacks] = field(default_factory=dict)


class Follower:
    """Follows one attempt. `look_for_resize` is asked now and then whether the group should change its size.

    `eager`: what a rank tells is heard at once. `check` is called often and may raise to end it all. `reaches` tells
    whether the node of a worker answers that has been silent for `unreachable_timeout_s` (0: it is never asked).
    """

    def __init__(
        self,
        group: Group,
        desk: Desk,
        world_size: int,
        *,
        hang_timeout_s: float,
        unreachable_timeout_s: float,
        stop_grace_s: float,
        check: Callable[[], None],
        reaches: Callable[[str], bool],
        look_for_resize: Callable[[], Resize | None],
        eager: bool = False,
    ) -> None:
        self._group, self._desk = group, desk
        self._hangs = HangWatch(hang_timeout_s, time.monotonic())
        self._hang_timeout_s, self._stop_grace_s = hang_timeout_s, stop_grace_s
        self._unreachable_timeout_s = unreachable_timeout_s
        self._check, self._reaches, self._look_for_resize = check, reaches, look_for_resize
        self._eager = eager
        self._world_size = world_size
        self._running = set(range(world_size))
        self._pulses: dict[int, Pulse] = {}
        self._replies: dict[int, Reply] = {}
        self._results: dict[int, object] = {}
        self._reported: dict[int, Failure] = {}
        self._died: dict[int, Failure] = {}
        self._attempt = 0
        self._resize: Resize | None = None
        self._memory_bytes = 0

    def follow(self, failed_to_begin: dict[int, Failure]) -> Done | Broken:
        """Poll until the attempt is over. All letters go to the desk, which also knows of a wish to stop."""
        self._died.update(failed_to_begin)
        self._running -= failed_to_begin.keys()
        stop_s: float | None = None
        while self._running and not (self._reported or self._died):
            began_s = time.monotonic()
            self._check()
            self._look()
            if self._desk.stop_requested:
                stop_s = began_s if stop_s is None else stop_s
                if began_s - stop_s > self._stop_grace_s:
                    _log.error("the workers did not save within failure.stop_grace, and are killed")
                    return Done("stopped", self._world_size, ended=False)
            elif self._resize is None:
                self._resize = self._look_for_resize()
            if cut_off := self._cut_off():
                return self._broken(cut_off)
            if (still_s := self._hangs.stuck_s(began_s)) is not None:
                return self._hung(still_s)
            if not self._eager and self._running and not (self._reported or self._died):
                time.sleep(max(0.0, POLL_S - (time.monotonic() - began_s)))
        if self._reported or self._died:
            return self._broken()
        return Done(str(self._results[0]), self._world_size, self._resize, self._memory_bytes)

    def _cut_off(self) -> frozenset[int]:
        """Ranks that have been silent for long, and whose nodes cannot be reached."""
        if not self._unreachable_timeout_s:
            return frozenset()
        return frozenset(
            rank
            for rank in self._running
            if self._group.silent_s(rank) > self._unreachable_timeout_s
            and not self._reaches(self._group.facts_of(rank).node)
        )

    def _look(self) -> None:
        for rank, told in self._group.poll(self._replies, POLL_S, eager=self._eager).items():
            if isinstance(told, Failure):
                self._died[rank] = told
                self._running.discard(rank)
                continue
            self._pulses[rank] = told.pulse
            self._hangs.note(rank, told.pulse, time.monotonic())
            if told.letter is not None:
                self._attempt = max(self._attempt, told.letter.attempt)
                reply = self._desk.exchange(told.letter)
                self._replies[rank] = replace(reply, wish=self._wish(reply.wish))
                if told.letter.failure is not None:
                    self._note(rank, told.letter.failure)
            if told.ended is not None:
                self._running.discard(rank)
                if told.ended.failure is not None:
                    self._note(rank, told.ended.failure)
                else:
                    self._results[rank] = told.ended.result
                    self._memory_bytes = max(self._memory_bytes, told.ended.memory_bytes)

    def _wish(self, wish: Wish) -> Wish:
        return "stop" if self._resize is not None else wish

    def _note(self, rank: int, failure: Failure) -> None:
        self._reported[rank] = replace(failure, node=self._group.facts_of(rank).node)

    def _broken(self, cut_off: frozenset[int] = frozenset()) -> Broken:
        """Give the other ranks a little time to tell what they saw. Those that were cut off are given up, even if
        they come back in that time."""
        first_s = news_s = time.monotonic()
        while self._running and (now_s := time.monotonic()) < min(first_s + COLLECT_S, news_s + QUIET_S):
            running = len(self._running)
            self._look()
            if len(self._running) < running:
                news_s = time.monotonic()
            elif self._running:
                time.sleep(max(0.0, POLL_S / 4 - (time.monotonic() - now_s)))
        silent = {
            rank: Failure(
                rank=rank,
                attempt=self._attempt,
                time_s=self._group.answered_s(rank),
                error=f"the worker on {self._group.facts_of(rank).host} does not answer: its node may be lost",
                cause="hardware",
                mend="run again: it resumes",
                host=self._group.facts_of(rank).host,
                node=self._group.facts_of(rank).node,
            )
            for rank in self._running | cut_off
            if rank in cut_off or self._group.silent_s(rank) > _SILENT_S
        }
        guilty = culprit(self._reported, self._died, silent)
        well = {
            rank
            for rank, failure in self._reported.items()
            if failure.peer_lost or (failure.cause == "user error" and failure.process_exit is None)
        } | self._results.keys()
        return Broken(
            culprit=replace(guilty, attempt=guilty.attempt or self._attempt),
            seen={**self._reported, **self._died, **silent},
            attempt=self._attempt,
            keepable=sorted(well - self._running - self._died.keys() - silent.keys()),
            died=frozenset(self._died),
            silent=frozenset(silent),
        )

    def _hung(self, still_s: float) -> Broken:
        stacks = self._group.stacks(_STACKS_S)
        frames = {rank: one.frame for rank, one in stacks.items()}
        where = where_they_stand(self._pulses, frames)
        _log.error("nothing has moved for %.0f s: %s", still_s, where)
        rank = self._latecomer(frames)
        facts = self._group.facts_of(rank)
        failure = Failure(
            rank=rank,
            attempt=self._attempt,
            time_s=time.time(),
            error=f"no rank has moved for {still_s:.0f} s (failure.hang_timeout: {self._hang_timeout_s:g} s): {where}",
            cause="hardware",
            mend="look at the stacks of all ranks in the attempt's post-mortem, which `orchestrator status` names",
            host=facts.host,
            node=facts.node,
        )
        return Broken(failure, {rank: failure}, self._attempt, [], stacks=stacks)

    def _latecomer(self, frames: dict[int, str]) -> int:
        """The rank that the others seem to wait for: one that does not answer, or stands in no call of torch's, where
        collectives are waited for (also in the backward pass), or is the least advanced."""
        return min(
            self._running,
            key=lambda rank: (
                rank in frames,
                "/torch/" in frames.get(rank, ""),
                "distributed" in frames.get(rank, ""),
                self._pulses.get(rank, Pulse()).step,
                self._pulses.get(rank, Pulse()).beat,
                rank,
            ),
        )
