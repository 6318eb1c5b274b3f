"""How many trials a search gets done in an hour: `orchestrator run` against Ray Tune, with Ray Train and without.

    python tests/benchmarks/bench_tune.py [1x40 1x200 2x40] [--trainer-trials 6] [--function-trials 200]

A case is workers per trial × trials: an MLP on scikit-learn's digits, 5 epochs, random search over the learning rate.
Every contestant is a process of its own with a Ray of its own, timed from its start to its end, and runs as many trials
at once as the CPUs hold. The peers (`plain_ray_tune.py`) are the documented way, a TorchTrainer inside each trial, and
plain function trials, which have no workers of their own. Neither writes checkpoints or logs to MLflow; ours does.
A peer that is given fewer trials than the case has is extrapolated: the rest would come at the rate of those after its
first ones, which leaves its start-up out. What lies between two trials of one group of workers is read from the times
in `search/summary.json`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from orchestrator.runs.folder import RunFolder, find_run
from orchestrator.storage import Folder
from tests.benchmarks.machine import describe_machine

ROOT = Path(__file__).resolve().parents[2]
PEER = Path(__file__).with_name("plain_ray_tune.py")
TARGETS: Mapping[str, Mapping[str, float]] = {
    "1x40": {"trainer": 15.0, "function": 3.0},
    "1x200": {"trainer": 30.0, "function": 6.0},
    "2x40": {"trainer": 15.0},
}
"""Times as many trials per hour as each peer."""
PEERS = {"trainer": "Tune with Train", "function": "plain Tune"}
TARGET_GAP_MS = 200.0
SPEC: dict[str, Any] = {
    "name": "search",
    "seed": 1,
    "data": {
        "source": {"kind": "sklearn", "name": "digits"},
        "target": "label",
        "split": {"kind": "stratified"},
        "transforms": [{"kind": "standardize"}],
    },
    "model": {"name": "mlp", "args": {"hidden": [64, 64]}},
    "train": {"max_epochs": 5, "global_batch_size": 64, "optimizer": {"kind": "adamw", "lr": 0.01}},
}


@dataclass(frozen=True)
class Case:
    """Workers of each trial, and trials."""

    workers: int
    trials: int

    @classmethod
    def of(cls, text: str) -> Case:
        workers, _, trials = text.partition("x")
        return cls(int(workers), int(trials))

    @property
    def at_once(self) -> int:
        return max(1, (os.cpu_count() or 1) // self.workers)

    def spec(self) -> dict[str, Any]:
        return SPEC | {
            "resources": {"num_workers": self.workers},
            "tune": {
                "param_space": {"train.optimizer.lr": {"loguniform": [1.0e-4, 1.0e-1]}},
                "metric": "val/loss",
                "num_samples": self.trials,
                "search_alg": {"kind": "random"},
                "scheduler": {"kind": "fifo"},
                "then": "nothing",
            },
        }


@dataclass(frozen=True)
class Took:
    """How long a contestant took, or would have taken, for all trials of the case; and how many it really ran."""

    seconds: float
    trials: int
    best: float

    def per_hour(self, case: Case) -> float:
        return case.trials / self.seconds * 3600


def run_in(folder: Path, command: Sequence[str]) -> tuple[str, float]:
    """Run a command to its end in a folder; what it printed, and seconds. Ends the benchmark where it fails."""
    # Neither side gets to see settings of this shell.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    env |= {"RAY_AUTH_MODE": "disabled", "MLFLOW_DISABLE_TELEMETRY": "true", "GLOO_SOCKET_IFNAME": "lo"}
    env |= {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    log = folder / "log"
    began_s = time.monotonic()
    with log.open("w") as file:
        done = subprocess.run(command, cwd=folder, env=env, stdout=file, stderr=file, check=False)
    seconds = time.monotonic() - began_s
    output = log.read_text(errors="replace")
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}\n{output[-3000:]}")
    return output, seconds


@dataclass(frozen=True)
class Searched:
    """A search by our command: its run, its summary, and seconds from the start of the process to its end."""

    run: RunFolder
    summary: dict[str, Any]
    seconds: float


def search(spec: Mapping[str, Any], folder: Path) -> Searched:
    """Run a spec with our command in an empty folder."""
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text(yaml.safe_dump(dict(spec)))
    command = [sys.executable, "-m", "orchestrator", "run", "job.yaml", f"storage={folder / 'runs'}"]
    _, seconds = run_in(folder, command)
    run = find_run(Folder.at(folder / "runs"), str(spec["name"]))
    summary = run.read_search()
    if summary is None:
        raise SystemExit(f"no summary of a search in {folder}")
    return Searched(run, summary, seconds)


Times = Mapping[str, tuple[float, float]]
"""Of each trial, from when to when, seconds since the epoch."""


def held_times(done: Searched) -> Times:
    """From when to when a trial had its workers."""
    return {trial["id"]: (trial["started_s"], trial["ended_s"]) for trial in done.summary["trials"]}


def metric_times(done: Searched) -> Times:
    """From the first optimizer step of a trial to the last figure that it logged, as its workers saw it."""
    found: dict[str, list[float]] = defaultdict(list)
    for line in (done.run.tracking.local_path() / "journal.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if "child" in entry:
            found[entry["child"]] += [time_ms / 1000 for _, _, _, time_ms in entry.get("points", [])]
    return {name: (min(times), max(times)) for name, times in found.items() if times}


def gaps_ms(done: Searched, times: Times) -> list[float]:
    """Milliseconds between two trials that followed each other on one group of workers."""
    of_group: dict[Any, list[tuple[float, float]]] = defaultdict(list)
    for trial in done.summary["trials"]:
        of_group[trial["group"]].append(times[trial["id"]])
    return [
        (after[0] - before[1]) * 1000
        for together in of_group.values()
        for before, after in itertools.pairwise(sorted(together))
    ]


def ours(case: Case, folder: Path) -> tuple[Took, Searched]:
    """All trials of the case."""
    done = search(case.spec(), folder)
    trials = done.summary["trials"]
    states = [trial["state"] for trial in trials]
    if states != ["COMPLETED"] * case.trials:
        raise SystemExit(f"not all of our trials were completed: {states}")
    return Took(done.seconds, case.trials, min(trial["score"] for trial in trials)), done


def peer(case: Case, way: str, trials: int, folder: Path) -> Took:
    """So many trials of a peer; the others extrapolated."""
    folder.mkdir(parents=True)
    trials = min(trials, case.trials)
    command = [sys.executable, str(PEER), way, str(trials), str(case.workers), str(case.at_once), str(folder)]
    output, seconds = run_in(folder, command)
    told = json.loads(next(line for line in reversed(output.splitlines()) if line.startswith("{")))
    ended_s = sorted(told["ended_s"])
    if trials < case.trials:
        first = min(case.at_once, trials - 1)  # those that began together, with all that had to start
        per_trial_s = (ended_s[-1] - ended_s[first - 1]) / (trials - first)
        seconds += (case.trials - trials) * per_trial_s
    return Took(seconds, trials, told["best"])


def shown(took: Took, case: Case) -> str:
    return f"{took.per_hour(case):8.0f} trials/h {took.seconds:7.1f} s   best loss {took.best:.4f}"


def measure(name: str, case: Case, limits: Mapping[str, int], folder: Path) -> bool:
    """One case; whether its targets are met."""
    mine, done = ours(case, folder / "ours")
    gaps, idle = gaps_ms(done, held_times(done)), gaps_ms(done, metric_times(done))
    if not gaps:
        raise SystemExit("no group of workers ran two trials")
    print(f"{name} {'ours':<16} {shown(mine, case)}", flush=True)
    good = True
    for way, target in TARGETS[name].items():
        other = peer(case, way, limits[way], folder / way)
        ratio = mine.per_hour(case) / other.per_hour(case)
        good &= ratio >= target
        how = "" if other.trials == case.trials else f", extrapolated from {other.trials} trials"
        print(
            f"{name} {PEERS[way]:<16} {shown(other, case)}   ours is {ratio:.1f} times as fast (target at least "
            f"{target:g}): {'met' if ratio >= target else 'MISSED'}{how}",
            flush=True,
        )
    gap_ms = statistics.median(gaps)
    good &= gap_ms <= TARGET_GAP_MS
    print(
        f"{name} between two trials of a warm group: median {gap_ms:.0f} ms, longest {max(gaps):.0f} ms, "
        f"{len(gaps)} gaps (target at most {TARGET_GAP_MS:.0f}): {'met' if gap_ms <= TARGET_GAP_MS else 'MISSED'}; "
        f"from the last figure of one to the first step of the next: median {statistics.median(idle):.0f} ms",
        flush=True,
    )
    return good


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*", default=["1x40"], metavar="CASE", help=" ".join(TARGETS))
    parser.add_argument("--trainer-trials", type=int, default=6, help="of Tune with Train, 13 s or so each")
    parser.add_argument("--function-trials", type=int, default=200, help="of plain Tune, 2 s or so each")
    arguments = parser.parse_args()
    for name in arguments.cases:
        if name not in TARGETS:
            parser.error(f"there is no case {name}: choose from {', '.join(TARGETS)}")
    limits = {"trainer": arguments.trainer_trials, "function": arguments.function_trials}
    if min(limits.values()) < 2:
        parser.error("a rate needs two trials at least")
    print(describe_machine("ray", "torch"), flush=True)
    good = True
    for name in arguments.cases:
        folder = Path(tempfile.mkdtemp(prefix="bench-"))
        try:
            good &= measure(name, Case.of(name), limits, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
