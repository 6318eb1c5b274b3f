"""How fast the engine trains, against a tutorial's loop, Lightning, Accelerate and an expert's loop.

    python tests/benchmarks/bench_engine.py [--runs 5] [--only mnist_cnn,resnet18] [--threads 2]

One process, the same network, images, batch and number of threads for all (`engine_peers.py`). The contestants
take turns, a short run each, so that all meet the same machine; a ratio is the median of those within each
round. Needs the extra `bench`. `precision: auto` is measured where the processor computes bf16 natively;
elsewhere it is fp32.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from orchestrator.engine.device.precision import native_bf16
from orchestrator.vision import import_torchvision
from tests.benchmarks import engine_peers as peers
from tests.benchmarks.engine_peers import CASES, Case, Stage, StepClock
from tests.benchmarks.machine import describe_machine

AGAINST_PEERS = {"fp32": 1.15, "auto": 2.0}
"""Targets: times as fast as the best peer in fp32, which is what the peers do unless they are asked."""
AGAINST_EXPERT = 0.97
LOADER_WORKERS = (0, 2)

Way = Callable[[Stage, str], Any]
TUTORIALS: dict[str, Way] = {
    f"tutorial, {count} workers": partial(peers.tutorial, num_workers=count) for count in LOADER_WORKERS
}
PEERS = TUTORIALS | {"lightning": peers.lightning, "accelerate": peers.accelerate}


class Contestant(NamedTuple):
    way: str
    precision: str

    def __str__(self) -> str:
        return f"{self.way}, {self.precision}"


Speeds = Mapping[Contestant, Sequence[float]]
"""Samples per second in each round."""


def contestants(with_bf16: bool) -> dict[Contestant, Way]:
    ways = {**PEERS, "expert": peers.expert, "ours": peers.ours}
    found: dict[Contestant, Way] = {Contestant(name, "fp32"): way for name, way in ways.items()}
    if with_bf16:
        found |= {Contestant(name, "auto" if name == "ours" else "bf16"): way for name, way in ways.items()}
    return found


def samples_per_s(stage: Stage, way: Way, precision: str) -> float:
    """One run of a contestant, timed over its last steps."""
    threads = torch.get_num_threads()
    with StepClock(stage.case.warm_up_steps, stage.case.num_steps) as clock:
        way(stage, precision)
    if torch.get_num_threads() != threads:
        raise SystemExit(f"{way} changed the number of threads")
    gc.collect()
    return stage.case.num_steps * stage.case.batch_size / clock.seconds


def measure(stage: Stage, rounds: int) -> Speeds:
    """All contestants in turns; each round begins with another one."""
    ways = contestants(native_bf16(torch.device("cpu")))
    # First calls are slow (imports, oneDNN's kernels); they tell how many loader workers are better here.
    trial = {
        count: samples_per_s(stage, way, "fp32")
        for count, way in zip(LOADER_WORKERS, TUTORIALS.values(), strict=True)
    }
    stage.num_workers = max(trial, key=lambda count: trial[count])
    for contestant, way in ways.items():
        if contestant.way not in TUTORIALS:
            samples_per_s(stage, way, contestant.precision)
    speeds: dict[Contestant, list[float]] = {contestant: [] for contestant in ways}
    order = list(ways)
    for _ in range(rounds):
        for contestant in order:
            speeds[contestant].append(samples_per_s(stage, ways[contestant], contestant.precision))
        order = order[1:] + order[:1]
    return speeds


def ratio(speeds: Speeds, one: Contestant, other: Contestant) -> float:
    """How many times as fast: the median of the ratios within the rounds."""
    return statistics.median(a / b for a, b in zip(speeds[one], speeds[other], strict=True))


def report(case: Case, speeds: Speeds) -> bool:
    """Print the table and the ratios; whether all targets are met."""
    peers_fp32 = [key for key in speeds if key.way in PEERS and key.precision == "fp32"]
    best = max(peers_fp32, key=lambda key: statistics.median(speeds[key]))
    print(f"{'samples/s':<28} {'median':>8} {'lowest':>8} {'highest':>8}   times the best peer")
    for key, values in speeds.items():
        middle, low, high = statistics.median(values), min(values), max(values)
        print(f"{key!s:<28} {middle:8.0f} {low:8.0f} {high:8.0f}   {ratio(speeds, key, best):.2f}")
    good = True
    for ours in (key for key in speeds if key.way == "ours"):
        expert = Contestant("expert", "fp32" if ours.precision == "fp32" else "bf16")
        for other, target in ((best, AGAINST_PEERS[ours.precision]), (expert, AGAINST_EXPERT)):
            value = ratio(speeds, ours, other)
            good &= value >= target
            verdict = "met" if value >= target else "MISSED"
            print(f"{case.name}: {ours} / {other}: {value:.2f} (target at least {target}): {verdict}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default=",".join(case.name for case in CASES))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    for package in ("lightning", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise SystemExit(f"{package} is not installed: pip install -c constraints.txt -e '.[bench]'")
    import_torchvision()  # lightning and accelerate may import it too, and fail beside a CPU torch
    print(describe_machine("torch", "torchvision", "lightning", "accelerate"))
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    if not native_bf16(torch.device("cpu")):
        print("this processor does not compute bf16 natively: precision auto is fp32 here, and not measured")
    good = True
    for case in CASES:
        if case.name not in arguments.only.split(","):
            continue
        print(
            f"\n{case.name}: {case.model} on {case.side}×{case.side}×{case.channels}, batch {case.batch_size}, "
            f"{case.num_steps} steps timed, {arguments.runs} rounds in turns, {arguments.threads} threads",
            flush=True,
        )
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            good &= report(case, measure(Stage(case, Path(folder)), arguments.runs))
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
