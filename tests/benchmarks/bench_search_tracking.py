"""How fast the reports of a search's trials reach MLflow. Target: 100 reports a second into a sqlite store.

    python tests/benchmarks/bench_search_tracking.py [--trials 1000] [--epochs 10] [--concurrent 16]

Trials report at once while the store is away, which also times the append; then the store comes back.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from orchestrator.records import Point
from orchestrator.tracking import Op, RunState, Sink, SinkUnavailable, StartRun, Tracker
from orchestrator.tracking.mlflow_sink import connect, mlflow_process

TARGET_PER_S = 100.0
METRICS = ("train/loss", "train/accuracy", "val/loss", "val/accuracy", "train/lr")


class Away:
    """An MLflow that is not there until `back` is set."""

    def __init__(self, sink: Sink) -> None:
        self.back = threading.Event()
        self._sink = sink

    def apply(self, op: Op, state: RunState) -> RunState:
        if not self.back.is_set():
            raise SinkUnavailable("down")
        return self._sink.apply(op, state)


def report_all(tracker: Tracker, trials: int, epochs: int, concurrent: int) -> np.ndarray:
    """Let all trials report, some at a time; the durations of the calls in ms, shape (trials * epochs,)."""
    times_ms = []
    for first in range(0, trials, concurrent):
        numbers = range(first, min(trials, first + concurrent))
        children = [
            tracker.child(f"trial-{n:04d}", StartRun("", f"trial-{n:04d}", params={"lr": str(0.1 / (n + 1))}))
            for n in numbers
        ]
        for epoch in range(1, epochs + 1):
            for child in children:
                now_ms = time.time_ns() // 1_000_000
                began = time.perf_counter()
                child.log_points([Point(key, 1 / epoch, epoch, now_ms) for key in METRICS])
                times_ms.append(1000 * (time.perf_counter() - began))
        for child in children:
            child.end_run("SUCCEEDED")
    return np.asarray(times_ms)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--concurrent", type=int, default=16)
    options = parser.parse_args()
    print(f"command: python {' '.join(sys.argv)}")
    print(f"machine: {platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    with tempfile.TemporaryDirectory() as temporary, contextlib.ExitStack() as stack:
        uri = f"sqlite:///{temporary}/mlflow.db"
        connect(uri)
        sink = Away(stack.enter_context(mlflow_process(uri)))
        tracker = Tracker.open(Path(temporary) / "tracking", sink)
        tracker.start_run(StartRun("bench", "bench-1"))
        times_ms = report_all(tracker, options.trials, options.epochs, options.concurrent)
        half = len(times_ms) // 2
        print(
            f"report while MLflow is down: p50 {np.median(times_ms):.2f} ms, p99 {np.percentile(times_ms, 99):.2f} ms"
            f" (first half p50 {np.median(times_ms[:half]):.2f}, second half {np.median(times_ms[half:]):.2f})"
        )
        before_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        began = time.perf_counter()
        sink.back.set()
        shipped = tracker.close(3600)
        seconds = time.perf_counter() - began
        grown_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before_mb
        refused = len(tracker.refused)
        runs = connect(uri).search_runs([str(tracker.experiment_id)], max_results=50000)
    reports = options.trials * options.epochs
    per_s = reports / seconds
    met = shipped and not refused and per_s >= TARGET_PER_S and len(runs) == options.trials + 1
    print(
        f"{reports} reports of {options.trials} trials shipped in {seconds:.1f} s: {per_s:.0f}/s, "
        f"peak +{grown_mb:.0f} MB"
    )
    print(f"target ≥ {TARGET_PER_S:.0f}/s: {'met' if met else 'MISSED'}")
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
