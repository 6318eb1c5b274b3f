"""How good the search is: TPE through our conductor against Optuna alone, with the same seeds, and drawing at random.

    python tests/benchmarks/bench_searchers.py [--seeds 11] [--trials 100] [--slots 1]

Two functions that such searches are measured by, 100 trials of one epoch each. Regret is the best value found less
the function's least; the median over the seeds counts. Both are told the same in the same order, so that they should
suggest the same: ratio 1.0. Targets: a regret of at most 1.1 times Optuna's, and at most 5 ms more per trial.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import optuna

from orchestrator.records import EpochReport
from orchestrator.runners.search.conductor import Conductor
from orchestrator.spec.space import SearchSpace
from orchestrator.spec.tune import TuneSection
from tests.benchmarks.machine import describe_machine

TARGET_RATIO = 1.1
TARGET_MS = 5.0


@dataclass(frozen=True)
class Problem:
    """A function to be made least, over a box."""

    name: str
    bounds: Sequence[tuple[float, float]]
    least: float
    value: Callable[[Sequence[float]], float]

    @property
    def paths(self) -> list[str]:
        return [f"model.args.x{number}" for number in range(len(self.bounds))]


def branin(x: Sequence[float]) -> float:
    """https://www.sfu.ca/~ssurjano/branin.html"""
    valley = x[1] - 5.1 / (4 * math.pi**2) * x[0] ** 2 + 5 / math.pi * x[0] - 6
    return valley**2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(x[0]) + 10


_ALPHA = (1.0, 1.2, 3.0, 3.2)
_A = (
    (10, 3, 17, 3.5, 1.7, 8),
    (0.05, 10, 17, 0.1, 8, 14),
    (3, 3.5, 1.7, 10, 17, 8),
    (17, 8, 0.05, 10, 0.1, 14),
)
_P = (
    (0.1312, 0.1696, 0.5569, 0.0124, 0.8283, 0.5886),
    (0.2329, 0.4135, 0.8307, 0.3736, 0.1004, 0.9991),
    (0.2348, 0.1451, 0.3522, 0.2883, 0.3047, 0.6650),
    (0.4047, 0.8828, 0.8732, 0.5743, 0.1091, 0.0381),
)


def hartmann6(x: Sequence[float]) -> float:
    """https://www.sfu.ca/~ssurjano/hart6.html"""
    return -sum(
        weight * math.exp(-sum(a * (one - p) ** 2 for a, one, p in zip(row_a, x, row_p, strict=True)))
        for weight, row_a, row_p in zip(_ALPHA, _A, _P, strict=True)
    )


PROBLEMS = (
    Problem("Branin", ((-5.0, 10.0), (0.0, 15.0)), 0.397887, branin),
    Problem("Hartmann-6", ((0.0, 1.0),) * 6, -3.32237, hartmann6),
)


def ours(problem: Problem, alg: str, num_trials: int, num_slots: int, seed: int) -> list[float]:
    """The values in the order of the trials' making."""
    section = TuneSection.model_validate(
        {
            "param_space": {
                path: {"uniform": bounds} for path, bounds in zip(problem.paths, problem.bounds, strict=True)
            },
            "num_samples": num_trials,
            "search_alg": {"kind": alg},
            "scheduler": {"kind": "fifo"},
        }
    )
    space = SearchSpace.of(section, {})
    conductor = Conductor(section, space, seed=seed, max_epochs=1, record=lambda event: None)
    running: deque[Any] = deque()
    while not conductor.finished:
        while len(running) < num_slots and (trial := conductor.next_trial(0.0)) is not None:
            running.append(trial)
        trial = running.popleft()
        value = problem.value([trial.params[path] for path in problem.paths])
        conductor.report(trial.trial_id, EpochReport(1, 1, {"val/loss": value}))
        conductor.ended(trial.trial_id, "completed")
    return [trial.score or 0.0 for trial in conductor.trials.values()]


def optuna_alone(problem: Problem, num_trials: int, num_slots: int, seed: int) -> list[float]:
    """The same by Optuna's own ask and tell."""
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=10))
    distributions: dict[str, optuna.distributions.BaseDistribution] = {
        path: optuna.distributions.FloatDistribution(low, high)
        for path, (low, high) in zip(problem.paths, problem.bounds, strict=True)
    }
    asked: deque[optuna.Trial] = deque()
    values: dict[int, float] = {}
    for left in range(num_trials, -num_slots, -1):
        if left > 0:
            asked.append(study.ask(distributions))
        if asked and (len(asked) == num_slots or left <= 0):
            trial = asked.popleft()
            values[trial.number] = problem.value([trial.params[path] for path in problem.paths])
            study.tell(trial, values[trial.number])
    return [values[number] for number in range(num_trials)]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=11)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--slots", type=int, default=1, help="trials that run at once")
    arguments = parser.parse_args()
    print(describe_machine("optuna", "ray", "numpy"))
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    searches: dict[str, Callable[[Problem, int], list[float]]] = {
        "ours, TPE": lambda problem, seed: ours(problem, "optuna", arguments.trials, arguments.slots, seed),
        "Optuna alone": lambda problem, seed: optuna_alone(problem, arguments.trials, arguments.slots, seed),
        "at random": lambda problem, seed: ours(problem, "random", arguments.trials, arguments.slots, seed),
    }
    ours(PROBLEMS[0], "optuna", 2, 1, 0)  # loads Tune
    print(f"{'':12}{'search':14}{'median regret':>15}{'ms per trial':>14}")
    met = True
    for problem in PROBLEMS:
        regrets, times_ms, found = {}, {}, {}
        for name, search in searches.items():
            start_s = time.perf_counter()
            found[name] = [search(problem, seed) for seed in range(arguments.seeds)]
            num_trials = arguments.seeds * arguments.trials
            times_ms[name] = 1000 * (time.perf_counter() - start_s) / num_trials
            regrets[name] = statistics.median(min(values) - problem.least for values in found[name])
            print(f"{problem.name:12}{name:14}{regrets[name]:15.5f}{times_ms[name]:14.2f}")
        ratio = regrets["ours, TPE"] / regrets["Optuna alone"]
        more_ms = times_ms["ours, TPE"] - times_ms["Optuna alone"]
        same = sum(one == other for one, other in zip(found["ours, TPE"], found["Optuna alone"], strict=True))
        print(
            f"{problem.name:12}ratio of regrets {ratio:.3f}, {more_ms:+.2f} ms per trial; "
            f"{same} of {arguments.seeds} searches the same value by value"
        )
        met = met and ratio <= TARGET_RATIO and more_ms <= TARGET_MS
    verdict = "met" if met else "MISSED"
    print(f"target ratio <= {TARGET_RATIO}, at most {TARGET_MS:g} ms more: {verdict}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
