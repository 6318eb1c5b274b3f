"""Splits: disjoint, covering, in the shares that were asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.splitting.rows import PARTS, split_rows
from orchestrator.errors import SourceError
from orchestrator.spec.data import Split

SPLITS = [
    Split(),
    Split(train=0.8, val=0.2, test=0),
    Split(train=0.5, val=0, test=0.5),
    Split(train=0.34, val=0.33, test=0.33),
]


@given(st.integers(10, 400), st.sampled_from(SPLITS), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_a_random_split_parts_all_rows(num_rows: int, split: Split, seed: int) -> None:
    parts = split_rows(num_rows, split, seed)
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(num_rows))
    for name in PARTS:
        assert abs(len(parts[name]) - getattr(split, name) * num_rows) <= 1
        assert np.array_equal(parts[name], np.sort(parts[name]))
        assert np.array_equal(parts[name], split_rows(num_rows, split, seed)[name])


@given(
    st.lists(st.integers(1, 60), min_size=2, max_size=12), st.sampled_from(SPLITS), st.integers(0, 2**32 - 1)
)
@settings(max_examples=100, deadline=None)
def test_a_stratified_split_keeps_class_shares(counts: list[int], split: Split, seed: int) -> None:
    split = split.model_copy(update={"kind": "stratified"})
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    try:
        parts = split_rows(len(labels), split, seed, labels)
    except SourceError:
        assert max(counts) < 3  # with one class of three rows, no part is empty
        return
    assert np.array_equal(np.sort(np.concatenate(list(parts.values()))), np.arange(len(labels)))
    for label, count in enumerate(counts):
        for name in PARTS:
            share, taken = getattr(split, name) * count, int((labels[parts[name]] == label).sum())
            if share == 0:
                assert taken == 0
            elif count >= 3:
                assert taken >= 1
            if count >= 20:  # smaller classes may have to be moved, to be in every part
                assert abs(taken - share) <= 1 + 1e-9
        assert (labels[parts["train"]] == label).any()


def test_many_small_classes_do_not_all_round_the_same_way() -> None:
    labels = np.repeat(np.arange(100), 10)  # 1.5 rows each of val and test
    parts = split_rows(1000, Split(kind="stratified"), 0, labels)
    assert {name: len(rows) for name, rows in parts.items()} == {"train": 700, "val": 150, "test": 150}


def test_seeds_differ() -> None:
    assert not np.array_equal(split_rows(100, Split(), 0)["test"], split_rows(100, Split(), 1)["test"])


def test_too_few_rows_and_a_stratified_regression_are_refused() -> None:
    with pytest.raises(SourceError, match=r"leave the (val|test) part .* empty"):
        split_rows(2, Split(), 0)
    with pytest.raises(SourceError, match="stratified"):
        split_rows(100, Split(kind="stratified"), 0, None)
