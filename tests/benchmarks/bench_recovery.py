"""From a fault to the first new optimizer step: `orchestrator run` against a hand-written Ray Train V2 script.

    python tests/benchmarks/bench_recovery.py [--rounds 3] [--quick]

On a local cluster of a head and three nodes (root and namespaces are needed). Two workers train the same network,
with a checkpoint each epoch; a worker is killed, a node is killed, or a node's link goes down. Both sides take
turns. Once as they come, once with the tuned settings: quick health checks in the head, and for the script those of
Ray Train's settings that make it quicker. Medians and their ratio are printed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.local_cluster.cluster import LocalCluster
from orchestrator.local_cluster.starting import local_cluster, why_not_isolated
from tests.benchmarks.machine import describe_machine
from tests.faults.case import STEP_S, Case, worker_processes
from tests.faults.conftest import mend

PEER = Path(__file__).with_name("plain_ray_recovery.py")
TARGETS = {"as they come": 0.8, "tuned": 1.0}
PEER_TUNED = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "15",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
}
LONG = ("train.max_epochs=10000", "train.max_steps=null", "checkpoint.every_n_steps=null")
WARM_STEPS = 20
GAP_MS = 600
"""Steps follow each other faster than this, unless something is wrong."""
PATIENCE_S = 300.0


def kill_worker(cluster: LocalCluster) -> None:
    os.kill(min(worker_processes(cluster)), signal.SIGKILL)


def kill_node(cluster: LocalCluster) -> None:
    cluster.kill(min(worker_processes(cluster).values()))


def cut_link(cluster: LocalCluster) -> None:
    cluster.cut(min(worker_processes(cluster).values()), "link")


FAULTS: dict[str, Callable[[LocalCluster], None]] = {
    "worker killed": kill_worker,
    "node killed": kill_node,
    "link cut": cut_link,
}


@contextlib.contextmanager
def ours(cluster: LocalCluster, root: Path, tuned: bool) -> Iterator[Callable[[], list[int]]]:
    """Our run goes on within the block; yields what tells the times of its steps."""
    case = Case(cluster, root)
    case.start(*LONG, "checkpoint.every_n_epochs=1", "failure.max_failures=100")
    try:
        yield case.step_times_ms
    finally:
        case.close()


@contextlib.contextmanager
def peers(cluster: LocalCluster, root: Path, tuned: bool) -> Iterator[Callable[[], list[int]]]:
    """The same for the hand-written script."""
    root.mkdir(parents=True)
    command = cluster.command_on("head", [sys.executable, str(PEER), str(root), str(STEP_S)])
    environment = cluster.environment_on("head") | (PEER_TUNED if tuned else {})
    steps = root / "steps"
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=root, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        try:
            yield lambda: [int(line) for line in steps.read_text().split()] if steps.exists() else []
        finally:
            process.kill()
            process.wait()


SIDES = {"ours": ours, "hand-written": peers}


def first_new_step_ms(times_ms: list[int], fault_ms: int) -> int | None:
    """The first step after the pause that the fault made; None while there is none."""
    for before, after in itertools.pairwise(times_ms):
        if after > fault_ms and after - before >= GAP_MS:
            return after
    return None


def wait_for(found: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not found():
        if time.monotonic() > deadline_s:
            raise SystemExit(f"{what} does not come within {PATIENCE_S:.0f} s")
        time.sleep(0.05)


def recovery_s(cluster: LocalCluster, side: str, fault: str, tuned: bool, number: int) -> float:
    """Seconds from the fault to the first new step of one side."""
    with SIDES[side](cluster, cluster.shared / f"{side}-{number}", tuned) as times_ms:
        wait_for(lambda: len(times_ms()) >= WARM_STEPS, f"the first step ({side})")
        fault_ms = time.time_ns() // 1_000_000
        FAULTS[fault](cluster)
        wait_for(lambda: first_new_step_ms(times_ms(), fault_ms), f"recovery ({side}, {fault})")
        found_ms = first_new_step_ms(times_ms(), fault_ms)
    assert found_ms is not None
    mend(cluster)
    wait_for(lambda: not worker_processes(cluster), "the end of the workers")
    return (found_ms - fault_ms) / 1000


def measure(setting: str, faults: list[str], rounds: int) -> bool:
    """One cluster, all faults; whether the target is met."""
    good, number = True, 0
    with local_cluster(3, isolated=True, tuned=setting == "tuned") as cluster:
        for fault in faults:
            seconds: dict[str, list[float]] = {side: [] for side in SIDES}
            for turn in range(rounds):
                for side in list(SIDES) if turn % 2 == 0 else list(SIDES)[::-1]:
                    number += 1
                    seconds[side].append(recovery_s(cluster, side, fault, setting == "tuned", number))
            mine, other = (statistics.median(seconds[side]) for side in SIDES)
            ratio = mine / other
            good &= ratio <= TARGETS[setting]
            pairs = " ".join(f"{a:.1f}/{b:.1f}" for a, b in zip(*seconds.values(), strict=True))
            print(
                f"{setting:<13} {fault:<14} ours {mine:6.1f} s   hand-written {other:6.1f} s   ratio {ratio:.2f} "
                f"(target at most {TARGETS[setting]})   pairs {pairs}",
                flush=True,
            )
    return good


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one round of one fault, tuned: does it work?")
    arguments = parser.parse_args()
    print(describe_machine("ray", "torch"))
    if reason := why_not_isolated():
        print(f"left out: {reason}")
        return 0
    if arguments.quick:
        return 0 if measure("tuned", ["worker killed"], 1) else 1
    good = [measure(setting, list(FAULTS), arguments.rounds) for setting in TARGETS]
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
