"""How many reports of trials the driver of a search takes in a second, and whether a long search slows it down.

    python tests/benchmarks/bench_tune_driver.py [--trials 1000] [--search-alg random] [--scheduler asha]

The real conductor with its journal, the summary once a second, and a run of its own in MLflow for each trial, but no
workers: what a trial reports is made up, each a little better than the one before, so that none is ended early. Once
with an MLflow store (sqlite), once with an MLflow server that does not answer, each in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from orchestrator.records import EpochReport, Point
from orchestrator.runners.search.conductor import Conductor
from orchestrator.runners.search.journal import Journal
from orchestrator.runs.folder import create_run
from orchestrator.spec import load_spec
from orchestrator.spec.render import to_plain
from orchestrator.spec.space import SearchSpace
from orchestrator.storage import Folder
from orchestrator.tracking import Sink, StartRun, Tracker
from orchestrator.tracking.mlflow_sink import connect, mlflow_process
from orchestrator.tracking.tracker import ChildTracker
from tests.benchmarks.bench_tune import SPEC
from tests.benchmarks.machine import describe_machine

EPOCHS = 10
AT_ONCE = 8
STEPS = 20
"""Of each epoch."""
TARGET_PER_S = 20.0
TARGET_STEADY = 1.0
"""The rate of the last hundred trials over that of the second hundred, at least."""
NOWHERE = "http://127.0.0.1:9"
METRICS = ("train/loss", "train/accuracy", "train/lr", "val/accuracy")


def metrics_of(number: int, epoch: int) -> dict[str, float]:
    """What the trial of this number reports: better than the ones before, and better from epoch to epoch."""
    return {"val/loss": 1 / (number + 1) + 1 / epoch, **dict.fromkeys(METRICS, 1 / epoch)}


def drive(
    folder: Path, tracking_uri: str, sink: Sink, trials: int, search_alg: str, scheduler: str
) -> dict[str, Any]:
    """A whole search; what it took."""
    tune = {
        "param_space": {
            "train.optimizer.lr": {"loguniform": [1.0e-4, 1.0e-1]},
            "train.optimizer.weight_decay": {"uniform": [0.0, 0.1]},
            "train.global_batch_size": {"choice": [32, 64, 128]},
        },
        "metric": "val/loss",
        "num_samples": trials,
        "search_alg": {"kind": search_alg},
        "scheduler": {"kind": scheduler},
        "then": "nothing",
    }
    spec = load_spec(SPEC | {"train": SPEC["train"] | {"max_epochs": EPOCHS}, "tune": tune}).spec
    assert spec.tune is not None
    run = create_run(Folder.at(folder / "runs"), spec.name)
    journal = Journal(run.search)
    conductor = Conductor(
        spec.tune,
        SearchSpace.of(spec.tune, to_plain(spec)),
        seed=spec.seed,
        max_epochs=EPOCHS,
        record=journal.append,
    )
    # It ships from the beginning, so that the first trials have no more of the processor to themselves than the last.
    tracker = Tracker.open(run.tracking.local_path(), sink, interval_s=0.05)
    tracker.start_run(StartRun(spec.name, run.label))
    if tracking_uri != NOWHERE:
        tracker.wait_for_run(60.0)  # the tables are made, and the shipper works, from the first trial on
    process = psutil.Process()
    children: dict[str, ChildTracker] = {}
    running: deque[str] = deque()
    ended_s: list[float] = []
    reports = early_bytes = 0
    began_s = written_s = time.monotonic()
    while not conductor.finished:
        now_s = time.monotonic()
        while len(running) < AT_ONCE and (trial := conductor.next_trial(now_s)) is not None:
            name = trial.trial_id
            children[name] = tracker.child(name, StartRun(spec.name, name, params=trial.params))
            running.append(name)
        name = running.popleft()
        trial, child = conductor.trials[name], children[name]
        epoch = trial.epoch + 1
        metrics = metrics_of(_number(name), epoch)
        time_ms = time.time_ns() // 1_000_000
        child.log_points([Point(key, value, epoch * STEPS, time_ms) for key, value in metrics.items()])
        decision = conductor.report(name, EpochReport(epoch, epoch * STEPS, metrics, seconds=float(epoch)))
        reports += 1
        if decision == "go on" and epoch < EPOCHS:
            running.append(name)
        else:
            conductor.ended(name, "completed" if epoch == EPOCHS else "stopped")
            child.set_tags({"orchestrator.trial_state": conductor.trials[name].state})
            child.end_run("SUCCEEDED")
            del children[name]
            ended_s.append(time.monotonic())
            if len(ended_s) == 100:
                early_bytes = process.memory_info().rss
        if conductor.gate(epoch):
            journal.flush()  # before a worker hears of it
        if now_s - written_s >= 1.0:
            journal.flush()
            run.write_search({"num_samples": trials, **conductor.summary()})
            written_s = now_s
    journal.flush()
    seconds = time.monotonic() - began_s
    grown_bytes = process.memory_info().rss - early_bytes
    tracker.end_run("SUCCEEDED")
    shipped = tracker.close(0.0 if tracking_uri == NOWHERE else 600.0)
    return {
        "reports": reports,
        "trials": len(ended_s),
        "seconds": seconds,
        "steady": (ended_s[199] - ended_s[99]) / (ended_s[-1] - ended_s[-101]),
        "grown_bytes": grown_bytes,
        "shipped": shipped,
        "shipped_after_s": time.monotonic() - began_s - seconds,
        "refused": tracker.refused,
    }


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])


def measure(where: str, arguments: Sequence[str]) -> bool:
    """One search in a process of its own; whether the targets are met."""
    done = subprocess.run(
        [sys.executable, __file__, *arguments, "--mlflow", where], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    told = json.loads(done.stdout.strip().splitlines()[-1])
    per_s, steady = told["reports"] / told["seconds"], told["steady"]
    good = per_s >= TARGET_PER_S and steady >= TARGET_STEADY and not told["refused"]
    if where == "up":
        good &= told["shipped"]
    after = (
        f"all of it in MLflow {told['shipped_after_s']:.1f} s later" if told["shipped"] else "MLflow has none"
    )
    print(
        f"MLflow {where:<5} {told['reports']} reports of {told['trials']} trials in {told['seconds']:.1f} s: "
        f"{per_s:.0f}/s (target at least {TARGET_PER_S:.0f}); the last hundred trials over the second hundred "
        f"{steady:.2f} (target at least {TARGET_STEADY}); memory +{told['grown_bytes'] / 2**20:.0f} MiB since the "
        f"first hundred; {after}: {'met' if good else 'MISSED'}",
        flush=True,
    )
    return good


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--search-alg", default="random", choices=["random", "optuna", "hyperopt", "ax"])
    parser.add_argument("--scheduler", default="asha", choices=["fifo", "asha", "median_stopping"])
    parser.add_argument("--mlflow", choices=["up", "down"], help="only this, here, and told as JSON")
    options = parser.parse_args()
    if options.trials < 300:
        parser.error("at least 300 trials: the last hundred is compared with the second")
    if options.mlflow is None:
        print(describe_machine("ray", "mlflow"), flush=True)
        arguments = [f"--trials={options.trials}", f"--search-alg={options.search_alg}"]
        arguments.append(f"--scheduler={options.scheduler}")
        good = [measure(where, arguments) for where in ("up", "down")]
        return 0 if all(good) else 1
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        uri = f"sqlite:///{temporary}/mlflow.db" if options.mlflow == "up" else NOWHERE
        if options.mlflow == "up":
            connect(uri)
        with mlflow_process(uri) as sink:
            told = drive(Path(temporary), uri, sink, options.trials, options.search_alg, options.scheduler)
    print(json.dumps(told))
    return 0


if __name__ == "__main__":
    sys.exit(main())
