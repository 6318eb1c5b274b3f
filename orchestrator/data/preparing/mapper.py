"""How a pass goes over the chunks of a source: here, one after the other, or elsewhere, many at a time.

Imports: the standard library.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, Protocol, TypeVar

Result = TypeVar("Result")


class Mapper(Protocol):
    """Calls a function for every item and yields the results in the order of the items. Function, items and
    results are picklable, so that the calls may run elsewhere; `label` says what is done, for progress."""

    def __call__(
        self, function: Callable[[Any], Result], items: Sequence[Any], label: str
    ) -> Iterator[Result]: ...


def in_process(function: Callable[[Any], Result], items: Sequence[Any], label: str) -> Iterator[Result]:  # noqa: ARG001
    """One item after the other, in this process."""
    return map(function, items)


@contextlib.contextmanager
def closing_all(mapper: Mapper) -> Iterator[Mapper]:
    """The mapper, whose calls have all ended when the block has, even if an error left results unread."""
    with contextlib.ExitStack() as stack:

        def run(function: Callable[[Any], Result], items: Sequence[Any], label: str) -> Iterator[Result]:
            results = mapper(function, items, label)
            if isinstance(results, Generator):
                stack.callback(results.close)
            return results

        yield run
