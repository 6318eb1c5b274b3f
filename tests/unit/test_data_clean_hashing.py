"""Row hashes: equal exactly for equal rows, whatever the type and however the rows are cut."""

from __future__ import annotations

import datetime as dt
import itertools
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.cleaning.rows import first_of_equals
from orchestrator.data.columns import null_rows
from orchestrator.data.hashing import hash_rows_128, is_hashable
from orchestrator.data.splitmix import mix
from orchestrator.errors import SourceError
from orchestrator.spec.data import DropDuplicates
from tests.unit.cleaning_case import clean

NAN = float("nan")

COLUMNS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "double": (pa.float64(), [None, NAN, 0.0, 1.0, -1.0, 1e300, 5e-324]),
    "float": (pa.float32(), [None, NAN, 0.0, 1.0, -1.0]),
    "int8": (pa.int8(), [None, 0, 1, -1, 127]),
    "uint64": (pa.uint64(), [None, 0, 1, 2**64 - 1]),
    "bool": (pa.bool_(), [None, True, False]),
    "string": (pa.string(), [None, "", "a", "ab", "b", "a\0", "é", "a" * 8, "a" * 64, "a" * 65,
                             "a" * 65 + "b", "a" * 1000]),
    "large_string": (pa.large_string(), [None, "", "a", "aa"]),
    "binary": (pa.binary(), [None, b"", b"a", b"a\0"]),
    "fixed": (pa.binary(2), [None, b"ab", b"ba"]),
    "dictionary": (pa.dictionary(pa.int32(), pa.string()), [None, "", "a", "b"]),
    "date": (pa.date32(), [None, dt.date(1970, 1, 1), dt.date(2020, 1, 1)]),
    "time": (pa.time32("s"), [None, dt.time(0), dt.time(1)]),
    "timestamp": (pa.timestamp("us"), [None, dt.datetime(1970, 1, 1), dt.datetime(2020, 1, 1)]),
    "decimal": (pa.decimal128(10, 2), [None, Decimal("1.50"), Decimal("-1.50")]),
    "ints": (pa.list_(pa.int8()), [None, [], [0], [0, 0], [None], [0, None], [None, 0], [1, 2], [2, 1]]),
    "floats": (pa.large_list(pa.float64()), [None, [], [NAN], [0.0], [None], [1.0, 2.0]]),
    "pair": (pa.list_(pa.float32(), 2), [None, [0.0, 1.0], [1.0, 0.0], [NAN, 0.0], [0.0, None]]),
    "texts": (pa.list_(pa.string()), [None, [], [""], ["", ""], ["a", "b"], ["ab"], [None]]),
    "nested": (pa.list_(pa.list_(pa.int64())), [None, [], [[]], [[], []], [[1], [2]], [[1, 2]], [[1, 2], []]]),
    "struct": (pa.struct({"u": pa.int64(), "v": pa.string()}),
               [None, {"u": None, "v": None}, {"u": 1, "v": "a"}, {"u": 1, "v": "b"}, {"u": 2, "v": "a"}]),
    "nothing": (pa.null(), [None]),
}  # fmt: skip


@pytest.mark.parametrize("name", COLUMNS)
def test_rows_are_told_apart_exactly(name: str) -> None:
    kind, values = COLUMNS[name]
    assert is_hashable(kind)
    order = np.random.default_rng(0).integers(0, len(values), 60)
    column = pa.array([values[i] for i in order], kind, from_pandas=False)
    hashes = hash_rows_128(pa.table({"a": column}), ["a"])
    assert hashes.shape == (60, 2)
    assert hashes.dtype == np.uint64
    groups = np.unique(hashes, axis=0, return_inverse=True)[1].ravel()
    pairs = set(zip(groups.tolist(), order.tolist(), strict=True))
    assert len(pairs) == len(set(groups.tolist())) == len(set(order.tolist()))
    # Slices, copies and other cuts of the same rows have the same hashes.
    cut = pa.concat_tables([pa.table({"a": column.slice(0, 7)}), pa.table({"a": column.slice(7)})])
    np.testing.assert_array_equal(hash_rows_128(cut, ["a"]), hashes)
    np.testing.assert_array_equal(hash_rows_128(pa.table({"a": column.slice(31)}), ["a"]), hashes[31:])
    alone = pa.array([values[order[5]]], kind, from_pandas=False)
    np.testing.assert_array_equal(hash_rows_128(pa.table({"a": alone}), ["a"])[0], hashes[5])
    assert hash_rows_128(pa.table({"a": column.slice(0, 0)}), ["a"]).shape == (0, 2)


def test_signs_of_zero_and_kinds_of_nan_make_no_difference() -> None:
    odd = np.array([0x7FF8000000000001, 0xFFF8000000000000], np.uint64).view(np.float64)
    table = pa.table({"a": pa.array([0.0, -0.0, *odd], from_pandas=False)})
    hashes = hash_rows_128(table, ["a"])
    assert (hashes[0] == hashes[1]).all()
    assert (hashes[2] == hashes[3]).all()
    lists = pa.table({"a": pa.array([[0.0], [-0.0]], pa.list_(pa.float64()))})
    assert (np.diff(hash_rows_128(lists, ["a"]), axis=0) == 0).all()


def test_small_floats_are_no_integers_and_halves_of_a_hash_have_nothing_in_common() -> None:
    tiny = np.arange(-300, 300) * 5e-324
    values = np.concatenate([tiny, np.arange(-300.0, 300.0), [2.0**53, -(2.0**53), 2.0**1023, -(2.0**1023)]])
    hashes = hash_rows_128(pa.table({"a": values}), ["a"])
    for lane in (0, 1):
        assert len(np.unique(hashes[:, lane])) == len(np.unique(values))
    bits = np.unpackbits((hashes[:, 0] ^ hashes[:, 1]).view(np.uint8))
    assert abs(bits.mean() - 0.5) < 0.02


def test_columns_do_not_run_into_each_other() -> None:
    table = pa.table(
        {"a": ["x", "xy", None, "x"], "b": ["yz", "z", "x", None], "c": [1, 2, 3, 4], "d": [2, 1, 4, 3]}
    )
    for names in (["a", "b"], ["b", "a"], ["c", "d"], ["c"], ["a", "b", "c", "d"]):
        assert len(np.unique(hash_rows_128(table, names), axis=0)) == 4
    np.testing.assert_array_equal(hash_rows_128(table, ["b", "a"]), hash_rows_128(table, ["a", "b"]))


def test_hashes_never_change() -> None:
    """Chunks may be hashed on machines of different kinds."""
    table = pa.table({"a": [1, None], "b": ["x", "y"], "c": [[1.5], [2.0] * 20]})
    assert [f"{value:016x}" for value in hash_rows_128(table, ["a", "b", "c"]).ravel().tolist()] == [
        "3aa41aeacd7bdc34",
        "013c1c1299f660be",
        "07d5b5e53e98b119",
        "81c0bf597d2748f2",
    ]


def test_mix_is_one_to_one_and_spreads() -> None:
    mixed = mix(np.arange(100_000, dtype=np.uint64))
    assert len(np.unique(mixed)) == 100_000
    assert abs(np.unpackbits(mixed.view(np.uint8)).mean() - 0.5) < 0.002
    assert abs((mixed < np.uint64(2**62)).mean() - 0.25) < 0.01


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), max_size=40), st.lists(st.integers(0, 40), max_size=4))
def test_the_first_of_equals_stays(values: list[int], cuts: list[int]) -> None:
    hashes = hash_rows_128(pa.table({"a": pa.array(values, pa.int64())}), ["a"])
    places = [0, *sorted(min(cut, len(values)) for cut in cuts), len(values)]
    parts = [hashes[a:b] for a, b in itertools.pairwise(places)]
    kept = first_of_equals(parts)
    assert [len(mask) for mask in kept] == [len(part) for part in parts]
    assert np.concatenate(kept).tolist() == (~pd.Series(values, dtype=int).duplicated()).tolist()
    assert first_of_equals([]) == []


def test_what_cannot_be_compared_is_refused() -> None:
    table = pa.table({"a": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64()))})
    assert not is_hashable(table.schema.field("a").type)
    with pytest.raises(
        SourceError, match=r"\(drop_duplicates\): column 'a' has the type map.*can be compared"
    ):
        clean(table, [DropDuplicates(kind="drop_duplicates")], features=["a"], target=None)


@pytest.mark.parametrize(
    ("kind", "values", "gaps"),
    [
        (pa.list_(pa.float64()), [[1.0], None, [], [1.0, NAN], [None], [2.0, 3.0]], [0, 1, 0, 1, 1, 0]),
        (pa.list_(pa.float64(), 2), [[1.0, 2.0], None, [1.0, NAN]], [0, 1, 1]),
        (pa.list_(pa.list_(pa.float32())), [[[1.0], [NAN]], [[]], None, [[2.0], []]], [1, 0, 1, 0]),
        (pa.list_(pa.int64()), [[1], None, [1, 2]], [0, 1, 0]),
    ],
)
def test_gaps_of_arrays_are_seen_row_by_row(kind: pa.DataType, values: list[Any], gaps: list[int]) -> None:
    """So that no row's gaps depend on the rows beside it, in its chunk."""
    column = pa.chunked_array([pa.array(values[:2], kind), pa.array(values[2:], kind)])
    assert null_rows(column).tolist() == [bool(gap) for gap in gaps]
    for start in range(len(values)):
        assert null_rows(column.slice(start)).tolist() == [bool(gap) for gap in gaps[start:]]
