"""Runs whose workers are killed again and again, until they are done."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from orchestrator.data.prepared.prepared import Prepared
from orchestrator.records import Progress
from orchestrator.runners.desk import Desk
from orchestrator.runs.folder import RunFolder
from orchestrator.spec import JobSpec
from orchestrator.tracking.memory import MemorySink
from orchestrator.tracking.ops import StartRun
from orchestrator.tracking.tracker import Tracker
from orchestrator.worker import WorkerTask, build_recipe
from tests.exactness.group import Group, wait

Aim = Literal["start", "step", "save begun", "saved", "end"]
How = Literal["killed", "stopped", "cut off"]
Hit = Literal["starting", "training", "saving", "finishing"]


@dataclass(frozen=True)
class Kill:
    """The end of an attempt: how it came, what was aimed at, and what was going on at that moment. `rank` is the
    worker that was killed; all of them were stopped, or cut off."""

    how: How

    attempt: int
    world_size: int
    rank: int | None
    aim: Aim
    hit: Hit
    step: int
    """How far the attempt was known to be."""


@dataclass
class Course:
    """One run, over all its attempts."""

    spec: JobSpec
    run: RunFolder
    prepared: Prepared
    sink: MemorySink = field(default_factory=MemorySink)
    kills: list[Kill] = field(default_factory=list)
    world_sizes: list[int] = field(default_factory=list)
    """Of the attempts so far."""
    seconds: float = 0.0
    """That the last attempt took."""
    _cut_off: list[tuple[float, Group]] = field(default_factory=list)
    """Groups that are frozen, and until when."""

    @property
    def folder(self) -> Path:
        return self.run.folder.local_path()

    @property
    def total_steps(self) -> int:
        return build_recipe(self.spec, self.prepared).total_steps

    def tracker(self) -> Tracker:
        """As a driver opens it, on the journal that the drivers before it left."""
        tracker = Tracker.open(self.folder / "tracking", self.sink, interval_s=0.05)
        tracker.start_run(StartRun(experiment="exactness", run_name=self.run.label))
        return tracker

    def go(
        self,
        world_sizes: Iterator[int],
        draw: random.Random,
        *,
        kills: int = 0,
        how: Sequence[How] = ("killed",),
        typical_s: float = 1.0,
    ) -> Course:
        """Attempt after attempt until the run is done, each with the next world size, the first `kills` of them
        ended in one of the ways of `how`: a worker is killed, and the others soon after it; all are asked to save
        and end; or all are frozen, and come back while the next attempt is at work.

        An undisturbed attempt takes about `typical_s`.
        """
        tracker, done = self.tracker(), False
        while not done:
            began_s = time.monotonic()
            desk = Desk(tracker.log_points)
            if len(self.kills) < kills:
                done = self._disturbed(desk, next(world_sizes), draw, draw.choice(how), typical_s)
            else:
                done = self._ended(self._group(desk, next(world_sizes)))
            self.seconds = time.monotonic() - began_s
            if draw.random() < 0.3:  # the driver is lost too
                tracker.close(0.0)
                tracker = self.tracker()
        assert tracker.close(30.0)
        return self

    def _group(self, desk: Desk, world_size: int) -> Group:
        self.world_sizes.append(world_size)
        task = WorkerTask(self.spec, self.run, str(self.prepared.folder), [])
        attempt = len(self.world_sizes)
        return Group(task, attempt, world_size, self.folder / "attempts" / str(attempt), desk)

    def _disturbed(
        self, desk: Desk, world_size: int, draw: random.Random, how: How, typical_s: float
    ) -> bool:
        """One attempt that is ended early; whether it had come to its end before."""
        saves = _Saves(self.run, self.total_steps)
        aim, strike = _aim(draw, how, saves, lambda: desk.progress.step if desk.progress else 0, typical_s)
        group = self._group(desk, world_size)
        if not wait(group, lambda: self._let_come_back() or strike()):
            return self._ended(group)
        hit, step = _hit(saves, desk.progress), desk.progress.step if desk.progress else 0
        rank = draw.randrange(world_size)
        self.kills.append(Kill(how, len(self.world_sizes), world_size, rank, aim, hit, step))
        match how:
            case "stopped":
                desk.request_stop()
                self._ended(group)
                return self.run.read_result() is not None
            case "cut off":
                group.freeze(True)
                self._cut_off.append((time.monotonic() + draw.uniform(0.2, 1.0) * typical_s, group))
            case "killed":
                group.kill(rank)
                # The others go on, until the runner ends them too.
                time.sleep(draw.choice([0.0, draw.uniform(0.0, 0.2)]))
                group.kill_all()
        return False

    def _ended(self, group: Group) -> bool:
        """Wait for the end of an attempt, and end what came back meanwhile."""
        wait(group, self._let_come_back)
        group.kill_all()
        for _, other in self._cut_off:
            other.kill_all()
        self._cut_off.clear()
        assert group.completed(), group.printed()
        return True

    def _let_come_back(self) -> bool:
        """Let those go on that were cut off long enough; False, so that `wait` may call it."""
        for back_s, group in self._cut_off:
            if time.monotonic() >= back_s:
                group.freeze(False)
        return False


class _Saves:
    """What happens to a run's checkpoints from now on."""

    def __init__(self, run: RunFolder, total_steps: int) -> None:
        self._folder = run.checkpoints.local_path()
        self.last_step = total_steps
        self._last = f"step-{total_steps:09d}"
        self._old = self._folders()
        self.begun: set[str] = set()
        self.committed: set[str] = set()

    def look(self) -> _Saves:
        """Note which were begun, and which of these were committed. Those removed since still count."""
        self.begun |= self._folders() - self._old
        self.committed |= {name for name in self.begun if (self._folder / name / "manifest.json").exists()}
        return self

    @property
    def ended(self) -> bool:
        return (self._folder / self._last / "manifest.json").exists()

    @property
    def newest_step(self) -> int:
        return max((int(name.removeprefix("step-")) for name in self._folders()), default=0)

    def _folders(self) -> set[str]:
        return {path.name for path in self._folder.glob("step-*")}


def _aim(
    draw: random.Random, how: How, saves: _Saves, reached: Callable[[], int], typical_s: float
) -> tuple[Aim, Callable[[], bool]]:
    """When to strike: what is aimed at, and whether the moment has come. `reached` is the step where the attempt
    stands, as far as its driver knows."""
    # Who asks to stop at the end comes too late.
    aim: Aim = draw.choice([aim for aim in get_args(Aim) if how != "stopped" or aim != "end"])
    first_step, last_step = saves.newest_step, saves.last_step
    number = draw.randint(1, max(1, 5 * (last_step - first_step) // last_step))
    step = draw.randint(min(first_step + 1, last_step), last_step)
    moment_s = time.monotonic() + draw.uniform(0.0, 0.3) * typical_s
    delay_s = draw.choice([0.0, draw.uniform(0.0, 0.003), draw.uniform(0.0, 0.03)])
    events: dict[Aim, Callable[[], bool]] = {
        "start": lambda: time.monotonic() >= moment_s,
        "step": lambda: reached() >= step,
        "save begun": lambda: len(saves.look().begun) >= number,
        "saved": lambda: len(saves.look().committed) >= number,
        "end": lambda: saves.ended,
    }
    came_s: list[float] = []

    def strike() -> bool:
        if not came_s and events[aim]():
            came_s.append(time.monotonic())
        return bool(came_s) and time.monotonic() >= came_s[0] + delay_s

    return aim, strike


def _hit(saves: _Saves, progress: Progress | None) -> Hit:
    """What is going on at this moment, as far as can be told from outside."""
    saves.look()
    if saves.begun - saves.committed:
        return "saving"
    if saves.ended:
        return "finishing"
    return "starting" if progress is None or progress.phase == "starting" else "training"
