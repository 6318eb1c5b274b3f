"""Runs whose workers are killed again and again, until they are done."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
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

Aim = Literal["start", "any time", "save begun", "saved", "end"]
Hit = Literal["starting", "training", "saving", "finishing"]


@dataclass(frozen=True)
class Kill:
    """A worker's end: what was aimed at, and what was going on at that moment."""

    attempt: int
    world_size: int
    rank: int
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
        self, world_sizes: Iterator[int], draw: random.Random, *, max_kills: int, typical_s: float = 1.0
    ) -> Course:
        """Attempt after attempt until the run is done, the first `max_kills` of them killed. Each takes the next
        world size. An undisturbed attempt takes about `typical_s`."""
        tracker = self.tracker()
        while self._attempt(tracker, next(world_sizes), draw, len(self.kills) < max_kills, typical_s):
            if draw.random() < 0.3:  # the driver was lost too
                tracker.close(0.0)
                tracker = self.tracker()
        assert tracker.close(30.0)
        return self

    def _attempt(
        self, tracker: Tracker, world_size: int, draw: random.Random, to_be_killed: bool, typical_s: float
    ) -> bool:
        """One attempt; whether it was killed."""
        self.world_sizes.append(world_size)
        number = len(self.world_sizes)
        desk = Desk(tracker.log_points)
        task = WorkerTask(self.spec, self.run, str(self.prepared.folder), [])
        saves = _Saves(self.run, self.total_steps)
        aim, strike = _aim(draw, typical_s, saves)
        group = Group(task, world_size, self.folder / "attempts" / str(number), desk)
        if not (to_be_killed and wait(group, strike)):
            wait(group)
            group.kill_all()
            assert group.completed(), group.printed()
            return False
        rank = draw.randrange(world_size)
        hit = _hit(saves, desk.progress)
        group.kill(rank)
        # The others go on, until the runner ends them too.
        time.sleep(draw.choice([0.0, draw.uniform(0.0, 0.2)]))
        group.kill_all()
        self.kills.append(
            Kill(number, world_size, rank, aim, hit, desk.progress.step if desk.progress else 0)
        )
        return True


class _Saves:
    """What happens to a run's checkpoints from now on."""

    def __init__(self, run: RunFolder, total_steps: int) -> None:
        self._folder = run.checkpoints.local_path()
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

    def _folders(self) -> set[str]:
        return {path.name for path in self._folder.glob("step-*")}


def _aim(draw: random.Random, typical_s: float, saves: _Saves) -> tuple[Aim, Callable[[], bool]]:
    """When to strike: what is aimed at, and whether the moment has come."""
    aim: Aim = draw.choice(get_args(Aim))
    number = draw.randint(1, 4)
    delay_s = draw.choice([0.0, draw.uniform(0.0, 0.003), draw.uniform(0.0, 0.03)])
    moment_s = time.monotonic() + draw.uniform(0.0, 0.4 if aim == "start" else 1.0) * typical_s
    events: dict[Aim, Callable[[], bool]] = {
        "start": lambda: time.monotonic() >= moment_s,
        "any time": lambda: time.monotonic() >= moment_s,
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
