"""How a pass goes over the chunks of a source: here, one after the other, or elsewhere, many at a time.

Imports: the standard library.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol, TypeVar

Result = TypeVar("Result")

_SAY_EVERY_S = 5.0


class Mapper(Protocol):
    """Calls a function for every item and yields the results in the order of the items. Function, items and
    results are picklable, so that the calls may run elsewhere; `label` says what is done, for progress."""

    def __call__(
        self, function: Callable[[Any], Result], items: Sequence[Any], label: str
    ) -> Iterator[Result]: ...


def in_process(
    function: Callable[[Any], Result],
    items: Sequence[Any],
    label: str,
    *,
    say: Callable[[str], None] | None = None,
) -> Iterator[Result]:
    """One item after the other, in this process. `say` is told now and then how far it is."""
    said_s = time.monotonic()
    for done, item in enumerate(items):
        if say is not None and time.monotonic() - said_s >= _SAY_EVERY_S:
            said_s = time.monotonic()
            say(f"{label}: {done} of {len(items)} chunks")
        yield function(item)


@contextlib.contextmanager
def closing_all(mapper: Mapper, stop: threading.Event | None = None) -> Iterator[Mapper]:
    """The mapper, whose calls have all ended when the block has, even if an error left results unread.

    Once `stop` is set, the next result is not waited for: KeyboardInterrupt is raised instead.
    """
    with contextlib.ExitStack() as stack:

        def run(function: Callable[[Any], Result], items: Sequence[Any], label: str) -> Iterator[Result]:
            results = mapper(function, items, label)
            if isinstance(results, Generator):
                stack.callback(results.close)
            return results if stop is None else _until(stop, results)

        yield run


def _until(stop: threading.Event, results: Iterator[Result]) -> Iterator[Result]:
    while not stop.is_set():
        try:
            yield next(results)
        except StopIteration:
            return
    raise KeyboardInterrupt
