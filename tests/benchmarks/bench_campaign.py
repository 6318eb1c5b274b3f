"""One run under random faults of all kinds: does it end with the right result, and how much of the time did count?

    python tests/benchmarks/bench_campaign.py [--minutes 15] [--mean-s 60] [--seed 1] [--quick]

On a local cluster of a head with Redis and three nodes (root and namespaces are needed). Whenever the driver ends
before the run does, the same command is given again. The result must be that of a run that nothing happened to, bit
for bit. Goodput here is the time that the run's steps take undisturbed, over the time that it took.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import os
import random
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable

from orchestrator.local_cluster.starting import local_cluster, why_not_isolated
from tests.benchmarks.machine import describe_machine
from tests.faults.case import Case, Driver, worker_processes
from tests.faults.conftest import mend

PATIENCE_S = 600.0


class Campaign:
    """A run, its present driver, and the faults that befall them. Each fault returns when it is over."""

    def __init__(self, case: Case, overrides: tuple[str, ...], chance: random.Random) -> None:
        self.case, self.cluster, self.chance = case, case.cluster, chance
        self._overrides = overrides
        self.starts = 0
        self.codes: collections.Counter[int] = collections.Counter()
        self.driver = self._start()

    def _start(self) -> Driver:
        self.starts += 1
        return self.case.start(*self._overrides)

    def keep_going(self) -> bool:
        """Start the driver again where it has ended too early; whether the run goes on."""
        code = self.driver.process.poll()
        if code is not None:
            self.codes[code] += 1
            if code:
                self.driver = self._start()
        return code != 0

    def _outage(self, shortest_s: float = 3, longest_s: float = 20) -> None:
        until_s = time.monotonic() + self.chance.uniform(shortest_s, longest_s)
        while time.monotonic() < until_s and self.keep_going():
            time.sleep(0.2)

    def _some_node(self) -> str:
        return self.chance.choice([node.name for node in self.cluster.plan.workers])

    def kill_a_worker(self) -> None:
        there = sorted(worker_processes(self.cluster))
        if there:
            os.kill(self.chance.choice(there), signal.SIGKILL)

    def kill_a_node(self) -> None:
        node = self._some_node()
        self.cluster.kill(node, silent=self.chance.random() < 0.5)
        self._outage()
        self.cluster.start(node)

    def cut_a_link(self) -> None:
        node = self._some_node()
        self.cluster.cut(node, self.chance.choice(["link", "packets"]))
        self._outage(0.5)
        self.cluster.heal(node)

    def take_a_node_away_after_notice(self) -> None:
        node = self._some_node()
        self.cluster.drain(node, 15)
        self._outage(15, 16)
        self.cluster.kill(node)
        self.cluster.start(node)

    def kill_the_driver(self) -> None:
        self.driver.process.kill()
        self.driver.process.wait()

    def stop_the_driver(self) -> None:
        self.driver.process.send_signal(self.chance.choice([signal.SIGINT, signal.SIGTERM]))

    def restart_the_head(self) -> None:
        self.cluster.stop_head()
        self._wait_for_the_driver()
        self.cluster.start_head()

    def lose_the_storage(self) -> None:
        self.cluster.lose_storage()
        time.sleep(self.chance.uniform(1, 5))
        self.cluster.restore_storage()

    def _wait_for_the_driver(self) -> None:
        """It sits on the head, and cannot be started again before the head is."""
        self.driver.process.wait(PATIENCE_S)

    @property
    def faults(self) -> list[Callable[[], None]]:
        return [
            self.kill_a_worker,
            self.kill_a_node,
            self.cut_a_link,
            self.take_a_node_away_after_notice,
            self.kill_the_driver,
            self.stop_the_driver,
            self.restart_the_head,
            self.lose_the_storage,
        ]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--mean-s", type=float, default=60, help="mean time between faults")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="two minutes: does it work?")
    arguments = parser.parse_args()
    minutes, mean_s = (2.0, 20.0) if arguments.quick else (arguments.minutes, arguments.mean_s)
    print(describe_machine("ray", "torch"))
    reason = why_not_isolated() or ("" if shutil.which("redis-server") else "redis-server is not installed")
    if reason:
        print(f"left out: {reason}")
        return 0
    # As many epochs as about half of the time would hold; what is left at the end goes without pauses.
    epochs = max(10, round(minutes * 60 * 0.5 / (13 * 0.15)))
    overrides = (
        *(f"train.max_epochs={epochs}", "train.max_steps=null", "failure.max_failures=1000"),
        *(
            "failure.max_control_plane_failures=1000",
            "failure.max_backoff=2s",
            "failure.max_node_failures=1000",
        ),
    )
    chance = random.Random(arguments.seed)
    with local_cluster(3, isolated=True, tuned=True, redis=True) as cluster:
        quiet = Case(cluster, cluster.shared / "undisturbed")
        quiet.hurry()
        code = quiet.start(*overrides).wait(PATIENCE_S)
        if code:
            raise SystemExit(f"the undisturbed run ended with {code}")
        case = Case(cluster, cluster.shared / "campaign")
        began_s = time.monotonic()
        campaign = Campaign(case, overrides, chance)
        counts: collections.Counter[str] = collections.Counter()
        case.wait_for_step(5)
        next_s = time.monotonic()
        while campaign.keep_going() and time.monotonic() - began_s < minutes * 60:
            if time.monotonic() >= next_s:
                next_s += chance.expovariate(1 / mean_s)
                fault = chance.choice(campaign.faults)
                name = fault.__name__.replace("_", " ")
                counts[name] += 1
                print(
                    f"{time.monotonic() - began_s:6.0f} s, step {max(case.steps(), default=0)}: {name}",
                    flush=True,
                )
                fault()
            time.sleep(0.2)
        mend(cluster)
        case.hurry()
        deadline_s = time.monotonic() + PATIENCE_S
        while campaign.keep_going():
            if time.monotonic() > deadline_s:
                raise SystemExit(f"the run does not end:\n{campaign.driver.output()[-3000:]}")
            time.sleep(0.2)
        wall_s = time.monotonic() - began_s
        same = case.result() == quiet.result()
        times_ms = sorted(case.steps().values())
        gaps = [after - before for before, after in itertools.pairwise(times_ms)]
        useful_s = len(times_ms) * statistics.median(gaps) / 1000
        case.check_nothing_is_left()
        print(
            f"faults        {sum(counts.values())}: "
            + ", ".join(f"{n} {name}" for name, n in sorted(counts.items()))
        )
        print(
            f"restarts      {case.record.attempts} attempts, {campaign.starts} drivers, codes {dict(campaign.codes)}"
        )
        print(f"time          {wall_s:.0f} s, goodput {useful_s / wall_s:.2f}")
        print(f"result        {'as undisturbed, bit for bit' if same else 'DIFFERS'}")
        for each in (quiet, case):
            each.close()
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
