"""How fast the light commands answer, against the imports that nothing of the kind can do without.

python tests/benchmarks/bench_cli.py [--runs 11]
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BARE = [sys.executable, "-c", "import pydantic, typer, yaml"]
COMMANDS = {
    "orchestrator --help": [sys.executable, "-m", "orchestrator", "--help"],
    "orchestrator validate": [
        sys.executable,
        "-m",
        "orchestrator",
        "validate",
        str(ROOT / "jobs" / "digits.yaml"),
    ],
}
TARGET = 3.0


def wall_s(command: list[str]) -> float:
    began = time.perf_counter()
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - began


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=11)
    arguments = parser.parse_args()
    print(f"$ {' '.join(sys.argv)}")
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}")
    good = True
    for name, command in COMMANDS.items():
        wall_s(command), wall_s(BARE)
        pairs = [(wall_s(command), wall_s(BARE)) for _ in range(arguments.runs)]
        ours, bare = (statistics.median(column) for column in zip(*pairs, strict=True))
        good &= ours / bare <= TARGET
        print(
            f"{name:<22} {ours:.2f} s   bare imports {bare:.2f} s   ratio {ours / bare:.2f} (target at most {TARGET})"
        )
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
