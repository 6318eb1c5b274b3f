"""The epoch order: invariants over many sizes, seeds and worlds."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from orchestrator.data.prepared.order import (
    EpochOrder,
    MappedOrder,
    SequentialOrder,
    StreamingOrder,
    epoch_permutation,
    num_batches,
    rank_slice,
)

sizes, seeds, epochs = st.integers(0, 300), st.integers(0, 2**32 - 1), st.integers(0, 1000)
batch_sizes = st.integers(1, 70)
shard_rows = st.lists(st.integers(1, 40), max_size=12)
"""Rows of each shard."""


def streaming(
    rows: list[int], batch_size: int, *, seed: int = 0, epoch: int = 0, window: int = 50
) -> StreamingOrder:
    """Windows of at most so many rows."""
    return StreamingOrder(rows, [8 * n for n in rows], 8 * window, batch_size, seed=seed, epoch=epoch)


def whole(order: EpochOrder, num_rows: int, batch_size: int) -> NDArray[np.int64]:
    batches = [order.batch(k) for k in range(num_batches(num_rows, batch_size))]
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert not len(order.batch(len(batches)))
    return np.concatenate([np.empty(0, np.int64), *batches])


@given(sizes, seeds, epochs)
@settings(max_examples=50, deadline=None)
def test_an_epoch_is_a_permutation(num_rows: int, seed: int, epoch: int) -> None:
    order = epoch_permutation(num_rows, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num_rows))
    assert np.array_equal(order, epoch_permutation(num_rows, seed, epoch))


@pytest.mark.parametrize("few_bits", [64, 12, 8, 3])
def test_the_permutation_is_the_stable_order_of_random_words(
    few_bits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of words that are alike in their high bits, or altogether."""
    words = np.random.default_rng(0).integers(0, 2**64, 2000, dtype=np.uint64) >> np.uint64(64 - few_bits)
    words[::2] <<= np.uint64((64 - few_bits) // 2)
    generator = SimpleNamespace(random_raw=lambda n: words[:n].copy())
    monkeypatch.setattr(np.random, "Philox", lambda _: generator)
    for n in (0, 1, 2, 3, 1025, 2000):
        assert np.array_equal(epoch_permutation(n, 0, 0), np.argsort(words[:n], kind="stable"))


@given(seeds, epochs)
@settings(max_examples=50, deadline=None)
def test_epochs_and_seeds_differ(seed: int, epoch: int) -> None:
    order = epoch_permutation(100, seed, epoch)
    assert not np.array_equal(order, epoch_permutation(100, seed, epoch + 1))
    assert not np.array_equal(order, epoch_permutation(100, seed + 1, epoch))


@given(st.lists(st.integers(20, 40), min_size=5, max_size=9), seeds, epochs)
@settings(max_examples=50, deadline=None)
def test_streamed_epochs_and_seeds_differ(rows: list[int], seed: int, epoch: int) -> None:
    order = streaming(rows, 100, seed=seed, epoch=epoch).batch(0).tolist()
    assert order != streaming(rows, 100, seed=seed, epoch=epoch + 1).batch(0).tolist()
    assert order != streaming(rows, 100, seed=seed + 1, epoch=epoch).batch(0).tolist()


def test_the_order_never_changes_between_versions() -> None:
    # Taken once from these functions: a resumed run must find the batches that it began with.
    assert epoch_permutation(8, 7, 3).tolist() == [7, 1, 6, 0, 4, 2, 3, 5]
    assert streaming([3, 2, 4, 1], 10, seed=7, epoch=3, window=5).batch(0).tolist() == [
        4,
        3,
        9,
        6,
        5,
        7,
        8,
        2,
        0,
        1,
    ]


@given(st.integers(1, 300), batch_sizes, seeds)
@settings(max_examples=50, deadline=None)
def test_mapped_batches_are_pieces_of_the_permutation(num_rows: int, batch_size: int, seed: int) -> None:
    order = MappedOrder(num_rows, batch_size, seed=seed, epoch=2)
    assert np.array_equal(whole(order, num_rows, batch_size), epoch_permutation(num_rows, seed, 2))
    assert order.shards(0) == ()


@given(st.integers(1, 300), batch_sizes, st.booleans())
@settings(max_examples=50, deadline=None)
def test_how_many_batches(num_rows: int, batch_size: int, drop_last: bool) -> None:
    count = num_batches(num_rows, batch_size, drop_last)
    lengths = [len(MappedOrder(num_rows, batch_size, seed=0, epoch=0).batch(k)) for k in range(count)]
    assert sum(lengths) == (num_rows // batch_size * batch_size if drop_last else num_rows)


@given(shard_rows, batch_sizes, seeds, st.integers(1, 90))
@settings(max_examples=100, deadline=None)
def test_every_row_is_streamed_once(rows: list[int], batch_size: int, seed: int, window: int) -> None:
    order = whole(streaming(rows, batch_size, seed=seed, window=window), sum(rows), batch_size)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(sum(rows)))


@given(shard_rows, batch_sizes, seeds, st.data())
@settings(max_examples=100, deadline=None)
def test_any_batch_can_be_asked_for_first(
    rows: list[int], batch_size: int, seed: int, data: st.DataObject
) -> None:
    """As a resumed run does, whichever batches came before."""
    going = streaming(rows, batch_size, seed=seed)
    batches = [going.batch(k) for k in range(num_batches(sum(rows), batch_size) + 1)]
    k = data.draw(st.integers(0, len(batches) - 1))
    resumed = streaming(rows, batch_size, seed=seed)
    for index in range(k, len(batches)):
        assert np.array_equal(resumed.batch(index), batches[index])
    assert np.array_equal(going.batch(k), batches[k])


@given(shard_rows, batch_sizes, seeds, st.integers(1, 90))
@settings(max_examples=100, deadline=None)
def test_windows_are_as_full_as_they_may_be_and_batches_stay_within_two(
    rows: list[int], batch_size: int, seed: int, window: int
) -> None:
    order = streaming(rows, batch_size, seed=seed, window=window)
    windows = list(itertools.takewhile(bool, (order.window(index) for index in itertools.count())))
    assert sorted(shard for group in windows for shard in group) == list(range(len(rows)))
    filled = [sum(rows[shard] for shard in group) for group in windows]
    assert all(total <= window or len(group) == 1 for total, group in zip(filled, windows, strict=True))
    assert all(a + rows[after[0]] > window for a, after in zip(filled, windows[1:], strict=False))

    ends = np.cumsum(rows)
    place = {shard: index for index, group in enumerate(windows) for shard in group}
    for k in range(num_batches(sum(rows), batch_size)):
        touched = np.unique(np.searchsorted(ends, order.batch(k), side="right")).tolist()
        met = sorted({place[shard] for shard in touched})
        assert met == list(range(met[0], met[-1] + 1))
        assert len(met) <= 2 or batch_size > min(filled)
        ready = order.shards(k)
        assert set(touched) <= set(ready)
        assert {place[shard] for shard in ready} <= set(range(met[0], max(met[-1] + 1, met[0] + 2)))


@given(shard_rows, batch_sizes, seeds, st.sampled_from([1, 2, 3, 4, 8]), st.booleans())
@settings(max_examples=100, deadline=None)
def test_any_number_of_ranks_sees_the_same_batches(
    rows: list[int], batch_size: int, seed: int, world_size: int, mapped: bool
) -> None:
    def order() -> EpochOrder:
        if mapped:
            return MappedOrder(sum(rows), batch_size, seed=seed, epoch=1)
        return streaming(rows, batch_size, seed=seed, epoch=1)

    alone, ranks = order(), [order() for _ in range(world_size)]
    for k in range(num_batches(sum(rows), batch_size)):
        shares = []
        for rank, own in enumerate(ranks):
            batch = own.batch(k)
            shares.append(batch[rank_slice(len(batch), rank, world_size)])
        assert np.array_equal(np.concatenate(shares), alone.batch(k))


@given(shard_rows.filter(bool), batch_sizes, st.data())
@settings(max_examples=50, deadline=None)
def test_one_after_the_other(rows: list[int], batch_size: int, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, sum(rows)))
    stop = data.draw(st.integers(start, sum(rows)))
    order = SequentialOrder(start, stop, batch_size, rows)
    assert whole(order, stop - start, batch_size).tolist() == list(range(start, stop))
    for k in range(num_batches(stop - start, batch_size)):
        touched = np.unique(np.searchsorted(np.cumsum(rows), order.batch(k), side="right")).tolist()
        assert list(order.shards(k))[: len(touched)] == touched
        assert len(order.shards(k)) <= len(touched) + 1


def test_rows_are_well_mixed_within_a_window() -> None:
    """Neighbours in the order are as far apart as in a shuffle of the window: a third of it, on average."""
    order = streaming([1000] * 8, 4000, window=4000)
    for k in range(2):
        rows = order.batch(k)
        shards = np.searchsorted(np.cumsum([1000] * 8), rows, side="right")
        assert np.bincount(shards[:1000], minlength=8).max() < 320
        local = rows % 1000
        assert np.abs(np.diff(local)).mean() == pytest.approx(1000 / 3, rel=0.1)


@given(st.integers(0, 200), st.integers(1, 17))
@settings(max_examples=100, deadline=None)
def test_ranks_share_a_batch_evenly_and_exactly(n: int, world_size: int) -> None:
    slices = [list(range(n))[rank_slice(n, rank, world_size)] for rank in range(world_size)]
    assert [row for part in slices for row in part] == list(range(n))
    assert max(map(len, slices)) - min(map(len, slices)) <= 1
