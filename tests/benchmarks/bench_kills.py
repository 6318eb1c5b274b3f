"""Nothing is lost: workers are killed at random moments, and the run ends with the bits of one that nobody disturbed.

    python tests/benchmarks/bench_kills.py [--kills 100] [--cuts 20] [--changes 20] [--world-sizes 1 2 3 4] [--seed 1]

For each number of workers small runs are killed again and again (SIGKILL, a random rank, at random moments, also
while a checkpoint is being written), until so many kills have been survived. After each run its last state (weights,
optimizer, schedule, averages, random states), its model and its history of metrics are compared with those of an
undisturbed run, bit for bit. The same holds for workers that are cut off and come back while others have taken their
place. Then runs change their number of workers at random moments, killed or stopped: each
sample once per epoch, in the same step as without, and the curves within float tolerance. At the first difference it
says where, leaves the folders, and exits with 1. The seed fixes what is aimed at; the moment hit is up to the machine.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")

from orchestrator.runs.folder import RunFolder
from orchestrator.spec import JobSpec
from orchestrator.storage import Folder
from tests.benchmarks.machine import describe_machine
from tests.exactness.cases import ELASTIC, IMAGES, STREAMED, case, prepared_case
from tests.exactness.compare import deviations, differences, remains
from tests.exactness.course import Course, How, Kill
from tests.exactness.group import warm_up

_KILLS_PER_RUN = 5
_CHANGES_PER_RUN = 4
_ROWS = 328
"""Of the elastic case's training part."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=100, help="for each number of workers")
    parser.add_argument("--cuts", type=int, default=20, help="of all workers, which come back")
    parser.add_argument("--changes", type=int, default=20, help="of the number of workers")
    parser.add_argument("--world-sizes", type=int, nargs="*", default=[1, 2, 3, 4])
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args(arguments)
    print(f"{describe_machine('torch')}\nseed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="kills-"))
    warm_up()
    failed = any(
        [_survived(folder, size, options.kills, options.seed, "killed") for size in options.world_sizes]
        + [_survived(folder, 2, options.cuts, options.seed, "cut off")]
        + [_elastic(folder, options.changes, options.seed)]
    )
    if failed:
        print(f"the folders are left in {folder}")
    else:
        shutil.rmtree(folder)
    return int(failed)


class Runs:
    """The runs of one case in a folder."""

    def __init__(self, folder: Path, sections: dict[str, Any]) -> None:
        self.spec: JobSpec = case(sections)
        self._folder = folder
        self._prepared = prepared_case(self.spec, folder)
        self._numbers = itertools.count(1)

    def next(self) -> Course:
        run = RunFolder(Folder.at(self._folder), self.spec.name, next(self._numbers))
        return Course(self.spec, run, self._prepared)


def _survived(folder: Path, world_size: int, wanted: int, seed: int, how: How) -> bool:
    """Whether a difference was found."""
    began_s = time.monotonic()
    draw = random.Random(f"{seed} {world_size} {how}")
    sizes = itertools.repeat(world_size)
    cases = [Runs(folder / f"{how} {world_size}", sections) for sections in (IMAGES, STREAMED)]
    undisturbed = [runs.next().go(sizes, draw) for runs in cases]
    wholes = [remains(course) for course in undisturbed]
    survived: list[Kill] = []
    attempts = runs_done = 0
    while len(survived) < wanted:
        which = runs_done % len(cases)
        course = cases[which].next()
        course.go(
            sizes,
            draw,
            kills=min(wanted - len(survived), draw.randint(1, _KILLS_PER_RUN)),
            how=(how,),
            typical_s=undisturbed[which].seconds,
        )
        found = differences(wholes[which], remains(course))
        if found:
            _explain(course, found, f"{len(survived)} of {wanted} survived")
            return True
        survived += course.kills
        runs_done += 1
        attempts += len(course.world_sizes)
        shutil.rmtree(course.folder)
    hits = Counter(kill.hit for kill in survived)
    print(
        f"{world_size} worker{'s' if world_size > 1 else ''}: {how} {len(survived)} of {wanted} times and survived bit "
        f"for bit in {runs_done} runs of {attempts} attempts, {time.monotonic() - began_s:.0f} s; hit while "
        + ", ".join(f"{name} {count}" for name, count in sorted(hits.items())),
        flush=True,
    )
    return False


def _elastic(folder: Path, wanted: int, seed: int) -> bool:
    """Whether a deviation was found."""
    began_s = time.monotonic()
    draw = random.Random(f"{seed} elastic")
    runs = Runs(folder / "elastic", ELASTIC)
    undisturbed = runs.next().go(itertools.repeat(1), draw)
    changes: list[tuple[int, int]] = []
    runs_done = stops = 0
    while len(changes) < wanted:
        course = runs.next()
        sizes = _changing(draw)
        course.go(
            sizes,
            draw,
            kills=min(wanted - len(changes), _CHANGES_PER_RUN),
            how=("killed", "killed", "stopped"),
            typical_s=undisturbed.seconds,
        )
        found = deviations(undisturbed, course, rows=_ROWS)
        if found:
            _explain(course, found, f"{len(changes)} changes of {wanted} survived")
            return True
        changes += itertools.pairwise(course.world_sizes)
        stops += sum(kill.how == "stopped" for kill in course.kills)
        runs_done += 1
    print(
        f"{len(changes)} of {wanted} changes of the number of workers in {runs_done} runs, {stops} of them after a "
        f"stop, the others after a kill, {time.monotonic() - began_s:.0f} s: each sample once per epoch, curves "
        "within 1e-4",
        flush=True,
    )
    return False


def _changing(draw: random.Random) -> Any:
    """Numbers of workers from 1 to 4, never the same twice in a row."""
    size = draw.randint(1, 4)
    while True:
        yield size
        size = draw.choice([other for other in range(1, 5) if other != size])


def _explain(course: Course, found: Sequence[str], so_far: str) -> None:
    print(f"{course.run.label} differs from the undisturbed run ({so_far}):")
    print("\n".join(f"  {line}" for line in found[:20]))
    print("\n".join(f"  {kill}" for kill in course.kills), flush=True)


if __name__ == "__main__":
    sys.exit(main())
