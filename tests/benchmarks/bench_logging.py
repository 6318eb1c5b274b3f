"""What logging every step costs: the digits network on 2 Ray Train workers, with logging and without.

    python tests/benchmarks/bench_logging.py [--runs 5]

The steps of 20 epochs (batch 64) are timed in the workers; validation and checkpoints are left out. Pairs in turn.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import ray

import orchestrator
from orchestrator.runs.folder import find_run
from orchestrator.storage import Folder

ROOT = Path(__file__).resolve().parents[2]
TARGET = 0.97


def epoch_s(storage: Path, log_every_n_steps: int) -> float:
    """Seconds per epoch of one run."""
    result = orchestrator.run(
        ROOT / "jobs" / "digits.yaml",
        fresh=True,
        quiet=True,
        storage=str(storage),
        train={
            "log_every_n_steps": log_every_n_steps,
            "evaluate_every_n_epochs": 1000,
            "early_stopping": None,
            "schedule": {"kind": "cosine", "warmup_steps": 20},
        },
        checkpoint={"every_n_epochs": 1000},
    )
    if result.status != "SUCCEEDED":
        raise SystemExit(str(result.verdict))
    written = find_run(Folder.at(storage), result.run).read_result()
    assert written is not None
    return float(written["train"]["seconds"]) / 20


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    print(f"$ {' '.join(sys.argv)}")
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    storage = Path(tempfile.mkdtemp(prefix="bench-")) / "runs"
    try:
        ray.init(
            address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error"
        )
        epoch_s(storage, 1)
        pairs = [(epoch_s(storage, 1), epoch_s(storage, 1_000_000)) for _ in range(arguments.runs)]
    finally:
        ray.shutdown()
        shutil.rmtree(storage.parent, ignore_errors=True)
    logged, silent = (statistics.median(column) for column in zip(*pairs, strict=True))
    speed = silent / logged
    print(
        f"epoch: every step logged {logged * 1000:.0f} ms, logging off {silent * 1000:.0f} ms, speed {speed:.3f} "
        f"(target at least {TARGET})   pairs {' '.join(f'{a * 1000:.0f}/{b * 1000:.0f}' for a, b in pairs)}"
    )
    return 0 if speed >= TARGET else 1


if __name__ == "__main__":
    sys.exit(main())
