"""Settings of a worker's process that are not torch's. Imports: the standard library."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
_LARGE_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Let the C library keep what a training step frees for the next one, which wants the same again.

    By default glibc gives large blocks back to the system at once, and every step pays for getting thousands of
    zeroed pages. Does nothing where the C library is another.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _LARGE_BYTES)
