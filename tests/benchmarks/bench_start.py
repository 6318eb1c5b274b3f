"""How long until the first optimizer step: `orchestrator run` against a hand-written Ray Train script.

    python tests/benchmarks/bench_start.py [--runs 5]

Both train the digits network with 2 workers and log to MLflow; the MLflow store and the data cache exist. Once
with a Ray of their own, once on a running cluster. Pairs in turn; the medians and their ratio are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEER = Path(__file__).with_name("plain_ray_script.py")
TARGET = 1.05


def start_of_ours(folder: Path, address: str | None) -> float:
    """Seconds from the process' start to the first optimizer step of `orchestrator run`."""
    command = [sys.executable, "-m", "orchestrator", "run", str(ROOT / "jobs" / "digits.yaml"), "--fresh"]
    command += [
        "train.max_epochs=1",
        f"storage={folder / 'runs'}",
        f"mlflow.tracking_uri=sqlite:///{folder}/ours.db",
    ]
    began = time.time()
    _run(command + (["--address", address] if address else []), folder)
    newest = max((folder / "runs").glob("digits-*"), key=lambda run: int(run.name.rpartition("-")[2]))
    for line in (newest / "tracking" / "journal.jsonl").read_text().splitlines():
        for key, _, step, timestamp_ms in json.loads(line).get("points", []):
            if key == "train/loss" and step == 1:
                return float(timestamp_ms) / 1000 - began
    raise SystemExit(f"no first step in {newest}")


def start_of_peer(folder: Path, address: str | None) -> float:
    """The same for the hand-written script."""
    first_step = folder / "first_step"
    command = [sys.executable, str(PEER), f"sqlite:///{folder}/peer.db", str(first_step), "1"]
    began = time.time()
    _run(command + ([address] if address else []), folder)
    return float(first_step.read_text()) - began


def _run(command: list[str], folder: Path) -> None:
    # Neither side gets to see settings of this shell.
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    env |= {"RAY_AUTH_MODE": "disabled", "MLFLOW_DISABLE_TELEMETRY": "true", "GLOO_SOCKET_IFNAME": "lo"}
    with (folder / "log").open("a") as log:
        done = subprocess.run(command, cwd=folder, env=env, stdout=log, stderr=log, check=False)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)} failed; see {folder / 'log'}\n" + (folder / "log").read_text()[-3000:]
        )


def compare(name: str, folder: Path, runs: int, address: str | None) -> bool:
    start_of_ours(folder, address), start_of_peer(folder, address)  # warm: stores, caches, compiled files
    pairs = [(start_of_ours(folder, address), start_of_peer(folder, address)) for _ in range(runs)]
    ours, peer = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = ours / peer
    print(
        f"{name:<17} ours {ours:6.2f} s   hand-written {peer:6.2f} s   ratio {ratio:.2f} "
        f"(target at most {TARGET})   pairs {' '.join(f'{a:.1f}/{b:.1f}' for a, b in pairs)}",
        flush=True,
    )
    return bool(ratio <= TARGET)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    print(f"$ {' '.join(sys.argv)}")
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    ray = [str(Path(sys.executable).with_name("ray"))]
    head = [
        "start",
        "--head",
        "--port=6390",
        "--num-cpus=2",
        "--include-dashboard=true",
        "--dashboard-port=8390",
    ]
    good = True
    try:
        good &= compare("embedded Ray", folder, arguments.runs, None)
        _run([*ray, *head], folder)
        try:
            good &= compare("running cluster", folder, arguments.runs, "127.0.0.1:6390")
        finally:
            _run([*ray, "stop", "--force"], folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
