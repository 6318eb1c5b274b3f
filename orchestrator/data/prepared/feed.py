"""Batches ahead of their use: gathered several at a time, in the background where that pays, with bounded memory.

Imports: numpy, torch.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.prepared.order import EpochOrder
from orchestrator.data.prepared.part import Batch, Part

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

CHUNK_BYTES = 1 << 22
"""Small batches are gathered together up to this size: one call for many. Measured: 1 MiB costs a third more."""
STREAMED_CHUNK_BYTES = 1 << 23
"""The same where rows come from many shards, each of which costs a call."""
BACKGROUND_BYTES = 1 << 20
"""Of a batch, from which on a thread of its own gathers it: below, handing over costs more."""
CHUNKS_AHEAD = 2
_MOST_ITEMS = 64
"""In a chunk: the first of them waits for all."""


class Wanted(NamedTuple):
    """What the item of `rows` needs: rows to gather as a batch each, and rows whose targets alone are needed."""

    rows: NDArray[np.int64]
    batches: Sequence[NDArray[np.int64]]
    targets: NDArray[np.int64] | None = None


class Fed(NamedTuple):
    """What `Wanted` asked for."""

    wanted: Wanted
    batches: Sequence[Batch]
    targets: Tensor | None = None


@contextlib.contextmanager
def feed(
    part: Part,
    wanted: Callable[[int], Wanted],
    first: int,
    stop: int,
    *,
    rows_per_item: int,
    order: EpochOrder,
    pin: bool = False,
) -> Iterator[Iterator[Fed]]:
    """Items `first` … `stop`-1, in order, each with what `wanted(k)` names; `rows_per_item` is about how many rows
    that is (the same in a resumed run, whose tensors then lie as they lay). `order.shards` says which shards to
    have ready for an item. `pin` gathers into page-locked memory.

    Errors in the background are raised where the item is asked for. Leaving ends all threads; a streamed part's
    shards are let go of. At most `CHUNKS_AHEAD` chunks, and the one in use, are held.
    """
    item_bytes = max(1.0, rows_per_item * part.row_bytes)
    chunk_bytes = STREAMED_CHUNK_BYTES if part.streaming else CHUNK_BYTES
    chunk = max(1, min(_MOST_ITEMS, int(chunk_bytes / item_bytes)))
    with contextlib.ExitStack() as stack:
        ahead = stack.enter_context(_shards_ahead(part, order)) if part.streaming else None
        helper = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="gather"))

        def make(start: int, end: int) -> list[Fed]:
            if ahead is not None:
                ahead(start)
            items = [wanted(k) for k in range(start, end)]
            half = len(items) // 2 if part.streaming else 0
            if not half:
                return _gather(part, items, pin)
            # Rows from many shards take twice the work of rows from one: two threads share it.
            rest = helper.submit(_gather, part, items[half:], pin)
            return [*_gather(part, items[:half], pin), *rest.result()]

        background = part.streaming or item_bytes >= BACKGROUND_BYTES
        yield stack.enter_context(prefetched(make, first, stop, chunk=chunk, background=background))


@contextlib.contextmanager
def prefetched(
    make: Callable[[int, int], Sequence[T]], first: int, stop: int, *, chunk: int, background: bool
) -> Iterator[Iterator[T]]:
    """Items `first` … `stop`-1, made by `make(start, end)` a chunk at a time; chunks begin at multiples of `chunk`.

    With `background` a thread makes the next chunks. What `make` raises is raised at the chunk's first item.
    """
    ranges = ((start, min(start + chunk, stop)) for start in range(first - first % chunk, stop, chunk))
    if not background:
        yield (item for span in ranges for item in make(*span)[max(0, first - span[0]) :])
        return
    pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
    waiting: deque[tuple[int, Future[Sequence[T]]]] = deque()

    def submit() -> None:
        span = next(ranges, None)
        if span is not None:
            waiting.append((span[0], pool.submit(make, *span)))

    def items() -> Iterator[T]:
        while waiting:
            start, future = waiting.popleft()
            made = future.result()
            del future
            submit()
            yield from made[max(0, first - start) :]

    try:
        for _ in range(CHUNKS_AHEAD):
            submit()
        yield items()
    finally:
        waiting.clear()
        pool.shutdown(wait=True, cancel_futures=True)


@contextlib.contextmanager
def _shards_ahead(part: Part, order: EpochOrder) -> Iterator[Callable[[int], None]]:
    """A function to call with the next item: a thread then fetches and maps what it and those after it need."""
    pool = ThreadPoolExecutor(1, thread_name_prefix="shards")
    last: list[tuple[int, ...]] = [()]

    def ahead(k: int) -> None:
        shards = order.shards(k)
        if shards != last[0]:
            last[0] = shards
            pool.submit(part.expect, shards)  # what it raises, the gather of these rows raises too

    try:
        yield ahead
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        part.expect(())


def _gather(part: Part, items: Sequence[Wanted], pin: bool) -> list[Fed]:
    """One gather for all items, cut up."""
    lists = [rows for item in items for rows in item.batches]
    features, targets = part.gather(_joined(lists), pin=pin)
    counts = [len(rows) for rows in lists]
    batches = map(Batch, features.split(counts), targets.split(counts))
    alone = [item.targets for item in items if item.targets is not None]
    if not alone:
        return [Fed(item, list(islice(batches, len(item.batches)))) for item in items]
    more = iter(part.gather_targets(_joined(alone)).split([len(rows) for rows in alone]))
    return [
        Fed(
            item,
            list(islice(batches, len(item.batches))),
            None if item.targets is None else next(more),
        )
        for item in items
    ]


def _joined(lists: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return lists[0] if len(lists) == 1 else np.concatenate(lists)
