"""SIGINT and SIGTERM as a wish to save and end. Imports: the standard library."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


@contextlib.contextmanager
def stop_signals(on_stop: Callable[[str, int], None]) -> Iterator[None]:
    """Within the block a signal calls `on_stop(reason, exit code)`; the third one raises KeyboardInterrupt.

    Does nothing outside the main thread, where Python allows no handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen = 0

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature that Python calls
        nonlocal seen
        seen += 1
        if seen >= 3:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            on_stop("interrupted", 130)
        else:
            on_stop("stopped", 143)

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
