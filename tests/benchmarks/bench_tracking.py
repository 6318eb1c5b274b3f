"""How long a worker's `log` call takes while MLflow is up, down and slow. Target: p99 under 200 µs.

    python tests/benchmarks/bench_tracking.py [--calls 5000]

The link's channel is answered by a tracker of the same process: the worst case, since courier, journal,
shipper and mlflow share the interpreter lock with the training thread (under Ray they live in the driver's).
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from orchestrator.engine.link import WorkerLink
from orchestrator.records import Letter, Reply
from orchestrator.tracking import Op, RunState, Sink, SinkUnavailable, StartRun, Tracker
from orchestrator.tracking.mlflow_sink import connect, mlflow_process

TARGET_US = 200.0
STEP_S = 0.002
"""Seconds of pretended training between two log calls."""


class Down:
    """An MLflow that is not there."""

    def apply(self, op: Op, state: RunState) -> RunState:
        raise SinkUnavailable("down")


class Slow:
    """An MLflow that takes two seconds for everything."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink

    def apply(self, op: Op, state: RunState) -> RunState:
        time.sleep(2.0)
        return self.sink.apply(op, state)


class TrackerChannel:
    """Answers a worker's letters as the driver does."""

    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker

    def exchange(self, letter: Letter) -> Reply:
        self.tracker.log_points(letter.points)
        return Reply(letter.first + len(letter.points))


def log_times_us(sink: Sink, folder: Path, num_calls: int) -> np.ndarray:
    """Durations of `log` calls of five metrics, in µs, shape (num_calls,)."""
    tracker = Tracker.open(folder, sink)
    tracker.start_run(StartRun("bench", "bench-1"))
    link = WorkerLink(channel=TrackerChannel(tracker)).start()
    times_us = np.empty(num_calls)
    metrics = {
        "train/loss": 0.1,
        "train/accuracy": 0.9,
        "train/lr": 1e-3,
        "train/grad_norm": 2.0,
        "speed": 3e3,
    }
    for step in range(num_calls):
        start_ns = time.perf_counter_ns()
        link.log(metrics, step)
        times_us[step] = (time.perf_counter_ns() - start_ns) / 1000
        time.sleep(STEP_S)
    link.close()
    tracker.close(0.0)
    return times_us


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--calls", type=int, default=5000)
    num_calls = parser.parse_args().calls
    print(f"command: python {' '.join(sys.argv)}")
    print(f"machine: {platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    print(f"{'MLflow':8}{'p50 µs':>10}{'p99 µs':>10}{'max µs':>10}")
    worst_us = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        uri = f"sqlite:///{folder}/mlflow.db"
        connect(uri)
        sinks: dict[str, Callable[[Sink], Sink]] = {
            "up": lambda sink: sink,
            "down": lambda _: Down(),
            "slow": Slow,
        }
        for name, make in sinks.items():
            with mlflow_process(uri) as sink:
                times_us = log_times_us(make(sink), folder / name, num_calls)
            p50_us, p99_us = np.percentile(times_us, [50, 99])
            worst_us = max(worst_us, p99_us)
            print(f"{name:8}{p50_us:10.1f}{p99_us:10.1f}{times_us.max():10.1f}")
    verdict = "met" if worst_us < TARGET_US else "MISSED"
    print(f"target p99 < {TARGET_US:.0f} µs: {verdict}")
    return 0 if worst_us < TARGET_US else 1


if __name__ == "__main__":
    sys.exit(main())
