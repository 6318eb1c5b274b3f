"""Call a function for many items in a few threads. Imports: the standard library."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], num_threads: int) -> list[Result]:
    """The results in the order of the items. Each thread takes a contiguous share of them: to hand over a small
    file at a time costs more than to read it. What a call raises is raised here, and no more calls are made."""
    count = min(num_threads, len(items))
    if count < 2:
        return [function(item) for item in items]
    ends = [len(items) * number // count for number in range(count + 1)]

    stop = threading.Event()

    def share(number: int) -> list[Result]:
        return [function(item) for item in items[ends[number] : ends[number + 1]] if not stop.is_set()]

    with ThreadPoolExecutor(count) as pool:
        try:
            return [result for part in pool.map(share, range(count)) for result in part]
        except BaseException:  # Ctrl-C too: nobody waits for the rest
            stop.set()
            raise
