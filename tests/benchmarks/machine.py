"""What a figure means nothing without: the command, the machine, the versions."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path


def describe_machine(*packages: str) -> str:
    """Lines to print above the figures: command, processor, commit, versions of Python and the packages."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return (
        f"$ python {' '.join(sys.argv)}\n"
        f"{processor()}, {os.cpu_count()} CPUs, {platform.system()} {platform.machine()}, commit {_commit()}\n"
        f"Python {platform.python_version()}, {versions}"
    )


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:  # not Linux
        pass
    return platform.processor() or platform.machine()


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
