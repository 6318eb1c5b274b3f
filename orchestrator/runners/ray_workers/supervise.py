"""A run on Ray's workers: the loop of attempts. Imports: ray.

Wait for a place, start the processes, follow them until they are done or one fails, decide what follows. The decisions
are pure functions in `recovery`; here they are carried out. Call it from the main thread: its waits are short, and
signal handlers run between them.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import time
from collections.abc import Callable
from dataclasses import replace

import ray

from orchestrator.engine.microbatch import halve_microbatch
from orchestrator.errors import OrchestratorError, PlacementError
from orchestrator.records import Failure
from orchestrator.recovery.budgets import GiveUp, Lost, decide
from orchestrator.recovery.nodes import avoided
from orchestrator.recovery.sizing import NodeFacts, Resize, resize
from orchestrator.runners.chronicle import Chronicle
from orchestrator.runners.desk import Desk
from orchestrator.runners.ray_workers.deaths import death_of
from orchestrator.runners.ray_workers.follow import Broken, Done, Follower
from orchestrator.runners.ray_workers.group import Group
from orchestrator.runners.ray_workers.head_watch import (
    HeadLost,
    HeadWatch,
    head_given_up,
    head_patience_s,
    leave_in_time,
)
from orchestrator.runners.ray_workers.node_watch import NodeWatch
from orchestrator.runners.ray_workers.reach import reachable
from orchestrator.runners.ray_workers.staff import Staff
from orchestrator.worker import WorkerTask, checkpoint_store, train_worker

_log = logging.getLogger(__name__)
_SUSPECTED_S = 60.0
"""How long a node whose worker fell silent is left out, though Ray still believes it alive."""
_FOR_EVER_S = 7 * 86400.0


class RunFailed(OrchestratorError):
    """The workers failed for good; `failure` is the culprit's, as the verdict shall tell it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error, failure.mend)
        self.failure = failure


def _of_nobody(error: OrchestratorError, attempt: int) -> Failure:
    return Failure(
        rank=-1,
        attempt=attempt,
        time_s=time.time(),
        error=error.reason,
        cause=error.cause,
        mend=error.mend,
        exit_code=error.exit_code,
        final=True,
    )


class _Stopped(Exception):
    """The run was asked to stop while no worker was at work."""


def run_ray(
    task: WorkerTask,
    desk: Desk,
    staff: Staff,
    chronicle: Chronicle,
    *,
    say: Callable[[str], None],
    embedded: bool,
) -> str:
    """Train on Ray's workers; Ray must be initialised. Returns 'completed' or 'stopped'; all processes are gone then.

    Raises RunFailed with the culprit once it is decided to give up, and where the workers find no place or cannot be
    started at all, or the cluster's head is away for good.
    """
    # A head of our own, on this machine, is gone together with us.
    watch = HeadWatch(math.inf if embedded else head_patience_s(), leave_in_time)
    try:
        with watch if not embedded else contextlib.nullcontext():
            return _Run(task, desk, staff, chronicle, say, watch, embedded=embedded).to_the_end().status
    except _Stopped:
        return "stopped"
    except HeadLost as error:  # between two attempts
        raise RunFailed(_of_nobody(error, desk.attempt)) from error
    finally:
        staff.abandon() if head_given_up() else staff.close()


def run_trial(
    task: WorkerTask,
    desk: Desk,
    staff: Staff,
    chronicle: Chronicle,
    head: HeadWatch,
    *,
    say: Callable[[str], None],
    waiting: Callable[[], None] = lambda: None,
) -> Done:
    """Train one trial of a search on warm workers, which are left as they are for the next one. From any thread.
    `waiting` is called often while the trial waits for its workers, and may give the staff another group.

    The status is 'completed', 'stopped' or 'left'. Raises RunFailed where it has failed for good, and PlacementError
    where its workers found no place in time.
    """
    run = _Run(task, desk, staff, chronicle, say, head, embedded=True, waiting=waiting)
    clean = False
    try:
        done = run.to_the_end()
        clean = done.ended
        return done
    except _Stopped:
        return Done("stopped", 0, ended=False)
    except RunFailed as error:
        clean = error.failure.rank >= 0
        raise
    finally:
        if not clean:  # some of them may still be at work
            staff.abandon() if head_given_up() else staff.close()


def in_words(broken: Broken) -> str:
    """How an attempt ended, in a few words."""
    culprit = broken.culprit
    if broken.stacks:
        return "hang"
    if culprit.cause == "hardware" and culprit.rank in broken.silent:
        return "node out of reach"
    if culprit.cause == "hardware" and culprit.rank in broken.died:
        return "node lost" if "node has died" in culprit.traceback else "worker killed"
    return culprit.cause


class _Run:
    def __init__(
        self,
        task: WorkerTask,
        desk: Desk,
        staff: Staff,
        chronicle: Chronicle,
        say: Callable[[str], None],
        head: HeadWatch,
        *,
        embedded: bool,
        waiting: Callable[[], None] = lambda: None,
    ) -> None:
        self._waiting = waiting
        self._task, self._desk, self._staff, self._say = task, desk, staff, say
        self._chronicle, self._head = chronicle, head
        self._nodes: list[NodeFacts] = []
        self._embedded = embedded
        self._warm = task.gates is not None
        """It is a trial of a search."""
        self._resources, self._failure = task.spec.resources, task.spec.failure
        self._lost: list[Lost] = []
        self._suspects: dict[str, float] = {}
        self._given = 0
        """The number of the newest attempt."""

    def to_the_end(self) -> Done:
        """Attempt after attempt, until one ends well."""
        while True:
            try:
                ended = self._attempt()
            except ray.exceptions.RayError as error:  # Ray itself failed us
                ended = Broken(death_of(error, -1, None, time.time()), {}, 0, [])
            except (
                OrchestratorError
            ) as error:  # of no worker: there is no place, or no process can be started
                if self._warm and isinstance(error, PlacementError):
                    raise
                raise RunFailed(_of_nobody(error, self._desk.attempt)) from error
            if isinstance(ended, Broken):
                if self._desk.stop_requested:
                    return Done("stopped", 0, ended=False)
                if self._desk.decided == "leave":  # it died on its way out
                    return Done("left", 0, ended=False)
                self._recover(ended)
            elif ended.resize is None or ended.status == "completed" or self._desk.stop_requested:
                return ended
            else:
                self._chronicle.attempt_ended("resized")
                self._say(f"saved; going on with another group: {ended.resize.why}")
                self._staff.keep_only(range(ended.world_size))

    def _attempt(self) -> Done | Broken:
        group, bundles = self._staff.ready(self._avoid(), self._check, self._say)
        self._chronicle.workers_ready(len(bundles))
        hang_s = self._failure.hang_timeout
        watched = not self._embedded and not self._warm
        with NodeWatch(group.place) if watched else contextlib.nullcontext() as watch:
            follower = Follower(
                group,
                self._desk,
                len(bundles),
                hang_timeout_s=hang_s,
                unreachable_timeout_s=self._failure.unreachable_timeout,
                stop_grace_s=self._failure.stop_grace,
                check=self._head.check,
                reaches=self._reaches,
                look_for_resize=functools.partial(self._resize, group, watch, time.time()),
                eager=self._warm,
            )
            # Hangs are found here, with the stacks of all ranks; torch's own time-out comes later.
            collective_timeout_s = hang_s * 2 + 60 if hang_s else _FOR_EVER_S
            work = functools.partial(train_worker, self._task, attempt=self._next_attempt())
            ended = follower.follow(group.begin(bundles, work, collective_timeout_s, keep=self._warm))
            if self._warm and isinstance(ended, Done) and ended.ended:
                group.ended_well()
            return ended

    def _next_attempt(self) -> int | None:
        """The next attempt's number: one that no attempt had, not even one that was lost before it took it."""
        try:
            taken = checkpoint_store(self._task.spec, self._task.run).last_attempt()
        except OSError as error:  # the workers will meet it too, and their failure counts
            _log.warning("the attempts of %s cannot be read: %s", self._task.run.label, error)
            return None
        self._given = max(taken, self._given) + 1
        return self._given

    def _recover(self, broken: Broken) -> None:
        """Decide on another attempt, and wait as long as it says. Raises RunFailed where there is none."""
        culprit = broken.culprit
        if broken.attempt:  # rank 0, which tells of it, may have died before it did
            self._chronicle.attempt_began(broken.attempt)
        noted = self._chronicle.attempt_failed(
            culprit,
            in_words(broken),
            time_known=not broken.stacks,  # a hang is noticed long after it began
            failures=broken.seen.values(),
            stacks={rank: stacks.text for rank, stacks in broken.stacks.items()},
            nodes=self._nodes,
        )
        if not noted:
            self._keep_stacks(broken)
        self._staff.keep_only(broken.keepable)
        now_s = time.time()
        self._suspects.update((broken.seen[rank].node, now_s) for rank in broken.silent)
        if culprit.cause == "out of memory" and culprit.rank in broken.died:
            with contextlib.suppress(OSError):  # it could not say so itself
                halve_microbatch(self._task.run.checkpoints)
        self._lost.append(
            Lost(
                cause=culprit.cause,
                rank=culprit.rank if culprit.rank >= 0 else None,
                node=culprit.node,
                exit_code=culprit.process_exit,
                reason=culprit.error,
                time_s=now_s,
                saved_step=self._saved_step(),
                final=culprit.final,
            )
        )
        decision = decide(self._failure, self._lost)
        who = f"rank {culprit.rank}" if culprit.rank >= 0 else "Ray"
        _log.info("attempt %d failed: %s\n%s", culprit.attempt, who, culprit.traceback)
        if isinstance(decision, GiveUp):
            raise RunFailed(self._final(culprit, decision))
        self._say(f"{who} failed ({culprit.cause}): {culprit.error}; {decision.why}")
        until_s = time.monotonic() + decision.after_s
        while (left_s := until_s - time.monotonic()) > 0:
            self._check()
            time.sleep(min(left_s, 0.1))

    def _final(self, culprit: Failure, decision: GiveUp) -> Failure:
        """The culprit's failure with why there is no further attempt, where there were several."""
        if len(self._lost) == 1:
            return culprit
        mend = "; ".join(part for part in (culprit.mend, decision.mend) if part)
        return replace(culprit, error=f"{culprit.error.rstrip('.')} ({decision.why})", mend=mend)

    def _keep_stacks(self, broken: Broken) -> None:
        logs = self._task.run.attempt_logs(max(1, broken.attempt or self._desk.attempt))
        for rank, stacks in broken.stacks.items():
            with contextlib.suppress(OSError):
                logs.write_bytes(f"stacks-rank-{rank}.txt", stacks.text.encode())

    def _avoid(self) -> dict[str, str]:
        now_s = time.time()
        silent = {
            node: "its worker fell silent"
            for node, time_s in self._suspects.items()
            if now_s - time_s < _SUSPECTED_S
        }
        return silent | avoided(self._lost, now_s, self._failure)

    def _reaches(self, node_id: str) -> bool:
        """Whether a node answers, as far as is known where it is."""
        address = next((node.address for node in self._nodes if node.node_id == node_id), "")
        return not address or reachable(address)

    def _resize(self, group: Group, watch: NodeWatch | None, began_s: float) -> Resize | None:
        looks = watch.newest() if watch is not None else None
        if looks is None:
            return None
        self._nodes = looks[0]
        return resize(
            looks[0],
            group.nodes(),
            self._resources.bundle(),
            self._resources.limits,
            self._avoid(),
            self._resources.placement_strategy,
            before=looks[1],
            now_s=time.time(),
            last_change_s=began_s,
            cooldown_s=self._resources.resize_cooldown,
        )

    def _saved_step(self) -> int:
        try:
            manifests = checkpoint_store(self._task.spec, self._task.run).manifests()
        except OSError as error:
            _log.warning("the checkpoints cannot be listed: %s", error)
            return 0
        return manifests[-1].step if manifests else 0

    def _check(self) -> None:
        self._waiting()
        self._head.check()
        if self._desk.stop_requested:
            raise _Stopped
