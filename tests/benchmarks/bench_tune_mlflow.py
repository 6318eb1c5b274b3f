"""Whether MLflow slows the trials of a search: the same search with a store there, and with none.

    python tests/benchmarks/bench_tune_mlflow.py [--trials 60] [--pairs 5]

An MLP on scikit-learn's digits, 5 epochs, as many trials at once as the CPUs hold, so that nothing is left for the
driver, which ships to MLflow: once into a sqlite file of its own, once to a server that does not answer. Both in turn.
Compared are the medians of all trials: from the first step to the last figure, as the workers saw it; and from the
workers' being given to the trial to their being given back. And how many trials are done in a second, from the tenth
trial's end to the last one's.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.benchmarks.bench_tune import Case, Times, held_times, metric_times, search
from tests.benchmarks.machine import describe_machine

TARGET = 1.0
"""Times without a store over those with one, at least, and so for the trials in a second; within the noise of pairs."""
NOISE = 0.05
NOWHERE = "http://127.0.0.1:9"
FIRST = 10
"""Trials during which MLflow is loaded, which takes seconds of CPU, once."""


def median_s(times: Times) -> float:
    return statistics.median(end - start for start, end in times.values())


def figures(tracking_uri: str, trials: int, folder: Path) -> dict[str, float]:
    """One search; seconds of a trial, and trials in a second."""
    spec = Case(1, trials).spec() | {"mlflow": {"tracking_uri": tracking_uri}}
    done = search(spec, folder)
    held = held_times(done)
    ended = sorted(end for _, end in held.values())
    late = {name: times for name, times in held.items() if times[0] >= ended[FIRST - 1]}
    trained = metric_times(done)
    return {
        "training_s": median_s({name: trained[name] for name in late}),
        "held_s": median_s(late),
        "per_s": (trials - FIRST) / (ended[-1] - ended[FIRST - 1]),
        "all_s": done.seconds,
    }


def ratios(there: Mapping[str, float], away: Mapping[str, float]) -> dict[str, float]:
    """How fast the search is with a store there, over that without; 1 where MLflow slows nothing."""
    return {
        "training": away["training_s"] / there["training_s"],
        "with its workers": away["held_s"] / there["held_s"],
        "trials in a second": there["per_s"] / away["per_s"],
    }


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--pairs", type=int, default=5)
    options = parser.parse_args()
    if options.trials < 2 * FIRST:
        parser.error(f"at least {2 * FIRST} trials: the first {FIRST} do not count")
    print(describe_machine("ray", "torch", "mlflow"), flush=True)
    pairs = []
    for number in range(options.pairs):
        folder = Path(tempfile.mkdtemp(prefix="bench-"))
        try:
            there = figures(f"sqlite:///{folder}/mlflow.db", options.trials, folder / "there")
            away = figures(NOWHERE, options.trials, folder / "away")
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        pairs.append(ratios(there, away))
        for where, found in (("there", there), ("away", away)):
            print(
                f"MLflow {where:<5} a trial trains for {found['training_s'] * 1000:.0f} ms and has its workers for "
                f"{found['held_s'] * 1000:.0f} ms; {found['per_s']:.1f} trials/s; all in {found['all_s']:.1f} s",
                flush=True,
            )
        told = ", ".join(f"{name} {value:.2f}" for name, value in pairs[-1].items())
        print(f"pair {number + 1}: with a store over without: {told}", flush=True)
    good = True
    for name in pairs[0]:
        values = [pair[name] for pair in pairs]
        middle = statistics.median(values)
        met = middle >= TARGET - NOISE
        good &= met
        print(
            f"{name}: median {middle:.2f} of {len(values)} pairs, {min(values):.2f} to {max(values):.2f} (target "
            f"{TARGET}, less {NOISE} of noise): {'met' if met else 'MISSED'}"
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
