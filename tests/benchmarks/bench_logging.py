"""What logging every step costs: the digits network on 2 workers, with logging and without.

    python tests/benchmarks/bench_logging.py [--blocks 10]

Blocks of 20 epochs (batch 64) with every step logged to MLflow and blocks without logging alternate within one
run, so that both meet the same machine. What was logged in one block is shipped a little later: the first
quarter of each block is left out. Validation and checkpoints are left out too.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import ray

import orchestrator
from tests.benchmarks.logging_probe import BLOCK_EPOCHS, is_logged

ROOT = Path(__file__).resolve().parents[2]
STEPS_PER_EPOCH = 20
TARGET = 0.97


def epoch_begins(storage: Path, epochs: int) -> list[float]:
    """The moment, in seconds, at which each epoch of one run began."""
    file = storage.parent / "begins.json"
    result = orchestrator.run(
        ROOT / "jobs" / "digits.yaml",
        fresh=True,
        quiet=True,
        storage=str(storage),
        model={
            "name": "tests.benchmarks.logging_probe:TimedCnn",
            "args": {
                "steps_per_epoch": STEPS_PER_EPOCH,
                "steps": STEPS_PER_EPOCH * epochs,
                "file": str(file),
            },
        },
        train={
            "max_epochs": epochs,
            "log_every_n_steps": 1,
            "evaluate_every_n_epochs": epochs,
            "early_stopping": None,
            "optimizer": {"kind": "adamw", "lr": 1e-6},
        },
        checkpoint={"every_n_epochs": epochs},
        mlflow={"registered_model_name": None},
    )
    if result.status != "SUCCEEDED":
        raise SystemExit(str(result.verdict))
    begins: list[float] = json.loads(file.read_text())
    return begins


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--blocks", type=int, default=10)
    blocks: int = parser.parse_args().blocks
    print(f"$ {' '.join(sys.argv)}")
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}", flush=True)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.chdir(ROOT)
    storage = Path(tempfile.mkdtemp(prefix="bench-")) / "runs"
    try:
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error"
        )
        begins = epoch_begins(storage, BLOCK_EPOCHS * (2 * blocks + 1))
    finally:
        ray.shutdown()
        shutil.rmtree(storage.parent, ignore_errors=True)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for epoch, (began, ended) in enumerate(pairwise(begins)):
        if epoch >= BLOCK_EPOCHS and epoch % BLOCK_EPOCHS >= BLOCK_EPOCHS // 4:  # the first block warms up
            seconds[is_logged(epoch)].append(ended - began)
    logged, silent = (statistics.fmean(seconds[kind]) for kind in (True, False))
    speed = silent / logged
    print(
        f"epoch: every step logged {logged * 1000:.0f} ms, logging off {silent * 1000:.0f} ms (means of "
        f"{len(seconds[True])} and {len(seconds[False])} epochs), speed {speed:.3f} (target at least {TARGET})"
    )
    return 0 if speed >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
