"""Processes by marks that no clock changes: a clock that is set must not make a process another one.

Imports: psutil, the standard library.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

import psutil

_PROC = Path("/proc")


@functools.cache
def process_space() -> str:
    """Where a process number means one process at a time: this boot of this machine, and this container's own
    numbers. Empty where the system does not tell."""
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {(_PROC / 'self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return ""


def process_start(pid: int) -> str | None:
    """When a process began, as a mark to compare; None where there is none of that number, or it has ended.

    On Linux ticks since the boot: seconds since the epoch, as psutil has them, move when the clock is set.
    """
    try:
        # The name, in parentheses, may hold anything; behind it stand the state and, 19 fields on, the start.
        state, *fields = (_PROC / f"{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except FileNotFoundError:
        if process_space():
            return None
    except (OSError, ValueError, IndexError):  # it has just ended
        return None
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else f"{process.create_time():.2f}"
    except psutil.Error:
        return None


def process_lives(pid: int, start: str) -> bool:
    """Whether this very process lives: one that was given its number later does not count.

    One of another user's, of which the system tells no more than that it is there, counts as alive.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return process_start(pid) in (start, None)
    return process_start(pid) == start
