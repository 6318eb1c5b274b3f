"""The epoch order: invariants over many sizes, seeds and worlds."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.prepared.order import batch_indices, epoch_permutation, num_batches, rank_slice

sizes, seeds, epochs = st.integers(0, 300), st.integers(0, 2**32 - 1), st.integers(0, 1000)


@given(sizes, seeds, epochs)
@settings(max_examples=50, deadline=None)
def test_an_epoch_is_a_permutation(num_rows: int, seed: int, epoch: int) -> None:
    order = epoch_permutation(num_rows, seed, epoch)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(num_rows))
    assert np.array_equal(order, epoch_permutation(num_rows, seed, epoch))


@given(seeds, epochs)
@settings(max_examples=50, deadline=None)
def test_epochs_and_seeds_differ(seed: int, epoch: int) -> None:
    order = epoch_permutation(100, seed, epoch)
    assert not np.array_equal(order, epoch_permutation(100, seed, epoch + 1))
    assert not np.array_equal(order, epoch_permutation(100, seed + 1, epoch))


def test_the_order_never_changes_between_versions() -> None:
    # Taken once from this function: a resumed run must find the batches that it began with.
    assert epoch_permutation(8, 7, 3).tolist() == [7, 1, 6, 0, 4, 2, 3, 5]


@given(st.integers(1, 300), st.integers(1, 70), st.booleans())
@settings(max_examples=50, deadline=None)
def test_batches_cover_the_epoch(num_rows: int, batch_size: int, drop_last: bool) -> None:
    order = epoch_permutation(num_rows, 0, 0)
    count = num_batches(num_rows, batch_size, drop_last)
    batches = [batch_indices(order, k, batch_size) for k in range(count)]
    covered = num_rows // batch_size * batch_size if drop_last else num_rows
    assert np.array_equal(np.concatenate(batches) if batches else order[:0], order[:covered])
    assert all(len(batch) == batch_size for batch in batches[:-1])
    if not drop_last:
        assert not len(batch_indices(order, count, batch_size))


@given(st.integers(0, 200), st.integers(1, 17))
@settings(max_examples=100, deadline=None)
def test_ranks_share_a_batch_evenly_and_exactly(n: int, world_size: int) -> None:
    slices = [list(range(n))[rank_slice(n, rank, world_size)] for rank in range(world_size)]
    assert [row for part in slices for row in part] == list(range(n))
    assert max(map(len, slices)) - min(map(len, slices)) <= 1
