"""Batches ahead of their use: exactly those, in order; errors and threads end where they should."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.prepared import feed as module
from orchestrator.data.prepared.feed import CHUNKS_AHEAD, Wanted, feed, prefetched
from orchestrator.data.prepared.order import MappedOrder, StreamingOrder
from orchestrator.data.prepared.part import Part
from tests.unit.prepared_case import columns, write_part

SIZES = (5, 1, 7, 3)


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 9), st.booleans())
@settings(max_examples=60, deadline=None)
def test_items_come_in_order_and_chunks_lie_alike(
    first: int, more: int, chunk: int, background: bool
) -> None:
    asked: list[tuple[int, int]] = []

    def make(start: int, stop: int) -> Sequence[int]:
        asked.append((start, stop))
        return range(start, stop)

    with prefetched(make, first, first + more, chunk=chunk, background=background) as items:
        assert list(items) == list(range(first, first + more))
    assert all(start % chunk == 0 and stop - start <= chunk for start, stop in asked)


def test_no_more_than_the_chunks_ahead_are_made() -> None:
    made: list[int] = []
    third = threading.Event()

    def make(start: int, stop: int) -> Sequence[int]:
        made.append(start)
        if len(made) == CHUNKS_AHEAD + 1:
            third.set()
        return range(start, stop)

    with prefetched(make, 0, 1000, chunk=1, background=True) as items:
        assert next(items) == 0
        assert third.wait(10)
    assert len(made) <= CHUNKS_AHEAD + 1


@pytest.mark.parametrize("background", [False, True])
def test_an_error_is_raised_where_its_items_are_asked_for(background: bool) -> None:
    def make(start: int, stop: int) -> Sequence[int]:
        if start == 4:
            raise OSError("disk on fire")
        return range(start, stop)

    with prefetched(make, 0, 9, chunk=2, background=background) as items:
        assert [next(items) for _ in range(4)] == [0, 1, 2, 3]
        with pytest.raises(OSError, match="disk on fire") as caught:
            next(items)
    assert any(entry.name == "make" for entry in caught.traceback)


def test_leaving_early_or_by_an_error_ends_the_thread() -> None:
    def make(start: int, stop: int) -> Sequence[int]:
        return range(start, stop)

    with prefetched(make, 0, 9, chunk=2, background=True) as items:
        next(items)
    assert not any(thread.name.startswith("feed") for thread in threading.enumerate())
    with pytest.raises(KeyError), prefetched(make, 0, 9, chunk=2, background=True):
        raise KeyError
    assert not any(thread.name.startswith("feed") for thread in threading.enumerate())


def order_of(part: Part, batch_size: int, epoch: int) -> MappedOrder | StreamingOrder:
    if part.window_bytes is None:
        return MappedOrder(part.num_rows, batch_size, seed=1, epoch=epoch)
    rows, sizes = [shard.rows for shard in part.shards], [shard.bytes for shard in part.shards]
    return StreamingOrder(rows, sizes, part.window_bytes, batch_size, seed=1, epoch=epoch)


@pytest.mark.parametrize("chunk_bytes", [1, 200, 1 << 20])
@pytest.mark.parametrize("window_bytes", [None, 1, 2000])
def test_what_is_fed_is_what_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, window_bytes: int | None, chunk_bytes: int
) -> None:
    for name in ("CHUNK_BYTES", "STREAMED_CHUNK_BYTES", "BACKGROUND_BYTES"):
        monkeypatch.setattr(module, name, chunk_bytes)
    part = write_part(tmp_path, SIZES, window_bytes)
    features, targets, _ = columns(16)
    for epoch, first in [(0, 0), (0, 2), (1, 5)]:
        plain = order_of(part, 3, epoch)
        order = order_of(part, 3, epoch)

        def wanted(k: int, order: MappedOrder | StreamingOrder = order) -> Wanted:
            rows = order.batch(k)
            return Wanted(rows, [rows[:1], rows[1:]], rows if k % 2 else None)

        with feed(part, wanted, first, 6, rows_per_item=3, order=order) as items:
            for k, item in zip(range(first, 6), items, strict=True):
                rows = plain.batch(k)
                assert np.array_equal(item.wanted.rows, rows)
                for own, batch in zip([rows[:1], rows[1:]], item.batches, strict=True):
                    assert np.array_equal(batch.features.numpy(), features[own])
                    assert np.array_equal(batch.targets.numpy(), targets[own])
                assert (item.targets is None) == (k % 2 == 0)
                assert item.targets is None or np.array_equal(item.targets.numpy(), targets[rows])
        assert part.streaming == (part.open_shards() == [])


def test_a_shard_that_cannot_be_read_is_told_where_its_rows_are_asked_for(tmp_path: Path) -> None:
    part = write_part(tmp_path, SIZES, window_bytes=1)
    order = order_of(part, 2, 0)
    (tmp_path / part.shards[order.window(2)[0]].file).unlink()
    with (
        pytest.raises(Exception, match="is missing"),
        feed(
            part, lambda k: Wanted(rows := order.batch(k), [rows]), 0, 8, rows_per_item=2, order=order
        ) as items,
    ):
        list(items)
