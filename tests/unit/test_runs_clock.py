"""A clock that jumps neither gives a live run to a second driver nor keeps a dead one's claim for ever."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.runs.claim import WATCH_S, newest_claim, take_claim
from orchestrator.runs.folder import Beat, RunFolder
from orchestrator.runs.heartbeat import is_alive
from orchestrator.runs.reconcile import reconcile
from orchestrator.runs.views import Onlooker, run_state
from orchestrator.storage import Folder
from tests.unit.runs_helpers import HALFWAY, NO_PROCESS, rewrite_claim, start

HOUR_S = 3600.0
JUMPS_S = [HOUR_S, -HOUR_S, 1e6, -1e6]


class Driver:
    """A driver on another machine whose clock is wrong by `off_s`; it beats each two seconds that others sleep."""

    def __init__(self, run: RunFolder, off_s: float, *, alive: bool) -> None:
        self.alive = alive
        self.slept_s = 0.0
        self._run, self._off_s, self._count = run, off_s, 0
        rewrite_claim(run, host="elsewhere", since_s=time.time() + off_s)
        self.beat()

    def beat(self) -> None:
        claim = newest_claim(self._run)
        assert claim is not None
        self._count += 1
        self._run.write_beat(
            Beat(time.time() + self._off_s, "elsewhere", 7, claim.number, self._count, progress=HALFWAY)
        )

    def sleep(self, seconds: float) -> None:
        self.slept_s += seconds
        if self.alive and self.slept_s % 2 == 0:
            self.beat()


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return start(Folder.at(tmp_path)).run


@pytest.mark.parametrize("off_s", JUMPS_S)
def test_a_live_driver_with_another_clock_keeps_its_run(run: RunFolder, off_s: float) -> None:
    driver = Driver(run, off_s, alive=True)
    assert take_claim(run, time.time(), sleep=driver.sleep) is None
    assert driver.slept_s == 2.0  # its next beat is enough
    assert is_alive(run, time.time())


@pytest.mark.parametrize("off_s", JUMPS_S)
def test_a_dead_drivers_run_is_free_after_a_look(run: RunFolder, off_s: float) -> None:
    driver = Driver(run, off_s, alive=False)
    claim = take_claim(run, time.time(), sleep=driver.sleep)
    assert claim is not None
    assert claim.number == 2
    assert driver.slept_s == WATCH_S


@pytest.mark.parametrize("off_s", [0.0, 29.0, -29.0])
def test_a_fresh_beat_needs_no_second_look(run: RunFolder, off_s: float) -> None:
    driver = Driver(run, off_s, alive=False)
    assert take_claim(run, time.time(), sleep=driver.sleep) is None
    assert driver.slept_s == 0.0


def test_another_driver_that_comes_while_one_watches_wins(run: RunFolder) -> None:
    driver = Driver(run, -HOUR_S, alive=False)
    won = []

    def sleep(seconds: float) -> None:
        driver.sleep(seconds)
        if not won:
            won.append(take_claim(run, time.time(), watched=True))

    assert take_claim(run, time.time(), sleep=sleep) is None
    assert newest_claim(run) == won[0]


def test_the_books_are_closed_for_the_dead_alone(tmp_path: Path) -> None:
    storage = Folder.at(tmp_path)
    runs = [start(storage, fresh=True).run for _ in range(4)]
    drivers = [
        Driver(run, off_s, alive=alive)
        for run, off_s, alive in zip(runs, [HOUR_S, HOUR_S, -HOUR_S, -HOUR_S], [True, False] * 2, strict=True)
    ]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        for driver in drivers:
            driver.sleep(seconds)

    assert reconcile(storage, lambda run, verdict: None, sleep=sleep) == [runs[1], runs[3]]
    assert sum(slept) == WATCH_S  # all at once
    assert [run.read_verdict() is None for run in runs] == [True, False, True, False]


@pytest.mark.parametrize("jump_s", [0.0, *JUMPS_S])
def test_an_onlooker_follows_a_run_while_clocks_jump(run: RunFolder, jump_s: float) -> None:
    """His own clock jumps after the first look; then the driver dies."""
    driver = Driver(run, 0.0, alive=True)
    passed_s, off_s = 0.0, 0.0
    onlooker = Onlooker(run, wall=lambda: time.time() + passed_s + off_s, steady=lambda: passed_s)
    assert onlooker.state() == "RUNNING"
    off_s = jump_s
    for _ in range(40):
        passed_s += 2.0
        driver.beat()
        assert onlooker.state() == "RUNNING"
    waited_s = 0.0
    while onlooker.state() != "DEAD":
        passed_s += 2.0
        waited_s += 2.0
    assert waited_s == WATCH_S  # by any clock the last beat is old by now


def test_an_onlooker_knows_a_dead_process_at_once(run: RunFolder) -> None:
    onlooker = Onlooker(run)
    assert onlooker.state() == "PENDING"
    rewrite_claim(run, pid=NO_PROCESS)
    assert onlooker.state() == run_state(run, time.time()) == "DEAD"


def _faketime() -> str | None:
    for place in ("/usr/lib", "/usr/local/lib"):
        for found in Path(place).rglob("faketime/libfaketime.so.1"):
            return str(found)
    return shutil.which("libfaketime.so.1")


@pytest.mark.parametrize("jump", ["+1h", "-1h"])
def test_another_process_with_a_wrong_clock_cannot_take_a_live_run(tmp_path: Path, jump: str) -> None:
    library = _faketime()
    if library is None:
        pytest.skip("there is no libfaketime here (Debian's package faketime)")
    start(Folder.at(tmp_path))
    code = """
        import sys, time
        from orchestrator.storage import Folder
        from orchestrator.runs.folder import list_runs
        from orchestrator.runs.claim import newest_claim, take_claim
        (run,) = list_runs(Folder.at(sys.argv[1]))
        claim = newest_claim(run)
        print(round((time.time() - claim.since_s) / 3600), take_claim(run, time.time()))
    """
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(line.strip() for line in code.splitlines()), str(tmp_path)],
        env=os.environ | {"LD_PRELOAD": library, "FAKETIME": jump},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout.split() == [jump.removeprefix("+").removesuffix("h"), "None"], done.stderr
