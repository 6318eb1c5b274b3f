"""The stable hash of rows, and splits by it: a row's part depends on nothing but its key and the seed."""

import datetime
import subprocess
import sys
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.hashing import hash_column, hash_rows
from orchestrator.data.splitting.rows import PARTS, part_codes, split_rows
from orchestrator.data.splitting.survey import split_survey
from orchestrator.spec.data import Split

COLUMNS: dict[str, Any] = {
    "int": pa.array([1, 2, None, -(2**62)]),
    "small": pa.array([1, 2, None, 4], pa.int8()),
    "uint64": pa.array([1, 2, None, 2**64 - 1], pa.uint64()),
    "float": pa.array([0.5, float("inf"), None, -2.25]),
    "bool": pa.array([True, False, None, True]),
    "text": pa.array(["a", "", None, "ü" * 300]),
    "large": pa.array(["a", "b", None, "c"], pa.large_string()),
    "codes": pa.array(["x", "y", None, "x"]).dictionary_encode(),
    "bytes": pa.array([b"1", b"\0", None, b"\0\0"]),
    "date": pa.array([datetime.date(2024, 1, day) if day else None for day in (1, 2, 0, 3)]),
    "stamp": pa.array([datetime.datetime(2024, 1, day) if day else None for day in (1, 2, 0, 3)]),
    "decimal": pa.array([Decimal("1.5"), Decimal("2.5"), None, Decimal("0.0")]),
    "list": pa.array([[1, 2], [], None, [2, 1]]),
    "texts": pa.array([["a", "b"], ["ab"], None, ["b", "a"]]),
    "fixed": pa.array([[1, 2], [2, 1], None, [0, 0]], pa.list_(pa.int16(), 2)),
    "struct": pa.array([{"a": 1}, {"a": 2}, None, {"a": None}]),
    "image": pa.array(
        [{"bytes": b"1", "path": "x"}, {"bytes": b"2", "path": "x"}, None, {"bytes": b"", "path": ""}]
    ),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_distinct_values_differ_and_nulls_are_zero(name: str) -> None:
    array = COLUMNS[name]
    hashes = hash_column(pa.chunked_array([array]))
    values = [str(value) for value in array.to_pylist()]
    assert len(set(hashes.tolist())) == len(set(values))
    assert hashes[2] == 0
    assert (hashes[[0, 1, 3]] != 0).all()
    # Neither chunks, nor slices, nor an offset into a buffer change anything.
    pieces = pa.chunked_array([array[:1], array[1:1], array[1:3], array[3:]])
    assert np.array_equal(hash_column(pieces), hashes)
    assert np.array_equal(hash_column(array.slice(1, 2)), hashes[1:3])
    assert not np.array_equal(hash_column(array, seed=1), hashes)
    assert len(hash_column(pa.chunked_array([], array.type))) == 0


def test_equal_numbers_of_different_types_are_one_key() -> None:
    kinds = [pa.int8(), pa.int64(), pa.uint64(), pa.float32(), pa.float64()]
    hashes = [hash_column(pa.array([0, 3, 100], kind)).tolist() for kind in kinds]
    assert all(one == hashes[0] for one in hashes)
    assert hash_column(pa.array([-0.0])) == hash_column(pa.array([0]))
    gaps = pa.array([float("nan"), 1.0, None], from_pandas=False)
    for column in (gaps, gaps.dictionary_encode(), gaps.cast(pa.float32()), pa.chunked_array([gaps, gaps])):
        assert (hash_column(column) == 0).tolist() == [True, False, True] * (len(column) // 3)
    assert hash_column(pa.array([True])) == hash_column(pa.array([1]))
    seconds, nanoseconds = pa.array([5], pa.timestamp("s")), pa.array([5 * 10**9], pa.timestamp("ns"))
    assert hash_column(seconds) == hash_column(nanoseconds)
    assert np.array_equal(hash_column(COLUMNS["codes"]), hash_column(COLUMNS["codes"].cast(pa.string())))
    assert np.array_equal(hash_column(COLUMNS["large"]), hash_column(COLUMNS["large"].cast(pa.string())))
    assert np.array_equal(
        hash_column(COLUMNS["bytes"]), hash_column(COLUMNS["bytes"].cast(pa.large_binary()))
    )


@given(st.lists(st.binary(max_size=40), max_size=50))
@settings(max_examples=100, deadline=None)
def test_equal_bytes_alone_have_equal_hashes(values: list[bytes]) -> None:
    hashes = hash_column(pa.array(values, pa.binary()))
    assert len(set(hashes.tolist())) == len(set(values))
    alone = [int(hash_column(pa.array([value], pa.binary()))[0]) for value in values]
    assert hashes.tolist() == alone


def _mix(value: int) -> int:
    """SplitMix64's finaliser, one number at a time."""
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB % 2**64
    return value ^ (value >> 31)


@given(st.integers(-(2**63), 2**63 - 1), st.binary(max_size=60), st.integers(0, 5))
@settings(max_examples=100, deadline=None)
def test_hashes_are_those_of_the_formula_worked_out_one_by_one(number: int, text: bytes, seed: int) -> None:
    step = 0x9E3779B97F4A7C15
    start = _mix((seed + step) % 2**64)
    assert int(hash_column(pa.array([number]), seed)[0]) == _mix(
        (_mix((number + start) % 2**64) + step) % 2**64
    )
    value = _mix((len(text) * step + start) % 2**64)
    for first in range(0, len(text), 8):
        piece = text[first : first + 8]
        # A last piece that is short stands at the high end of its word.
        value = _mix(((value ^ int.from_bytes(piece.rjust(8, b"\0"), "little")) + step) % 2**64)
    assert int(hash_column(pa.array([text]), seed)[0]) == value


def test_known_hashes_never_change() -> None:
    """Of this machine and version as of all others: a change here moves rows of every user."""
    table = pa.table({"a": [1, 2], "b": ["x", None], "c": ["long " * 100, "é"]})
    assert hash_rows(table, ["a", "b", "c"]).tolist() == KNOWN
    code = (
        "import pyarrow as pa; from orchestrator.data.hashing import hash_rows;"
        "table = pa.table({'a': [1, 2], 'b': ['x', None], 'c': ['long ' * 100, 'é']});"
        "print(hash_rows(table, ['c', 'a', 'b']).tolist())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == str(KNOWN)


KNOWN = [8149317010849289385, 17905782848349863205]


def test_a_new_column_of_nulls_leaves_the_rows() -> None:
    before = pa.table({"a": [1, 2]})
    after = pa.table({"a": [1, 2], "b": pa.array([None, 5], pa.int64())})
    one, two = hash_rows(before, ["a"]), hash_rows(after, ["b", "a"])
    assert one[0] == two[0]
    assert one[1] != two[1]
    swapped = pa.table({"a": [1, 2], "b": [2, 1]})
    assert len(set(hash_rows(swapped, ["a", "b"]).tolist())) == 2


@given(st.integers(60, 400), st.integers(1, 200), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_appended_rows_move_no_other(n: int, more: int, seed: int) -> None:
    split = Split(kind="hash", by="id", train=0.6, val=0.2, test=0.2)

    def codes(rows: int) -> Any:
        table = pa.table({"id": [f"user {i}" for i in range(rows)], "x": range(rows)})
        return part_codes(split_rows(rows, split, seed, columns=split_survey(split, table)), rows)

    assert np.array_equal(codes(n + more)[:n], codes(n))


@pytest.mark.parametrize(("train", "val", "test"), [(0.7, 0.15, 0.15), (0.8, 0.2, 0.0), (0.5, 0.0, 0.5)])
def test_shares_hold_and_seeds_and_chunks_part_as_they_should(train: float, val: float, test: float) -> None:
    split, n = Split(kind="hash", train=train, val=val, test=test), 20_000
    table = pa.table({"a": np.arange(n), "b": np.arange(n) % 7, "__path__": ["f"] * n})
    columns = split_survey(split, table)
    parts = split_rows(n, split, 0, columns=columns)
    for name, share in zip(PARTS, (train, val, test), strict=True):
        assert len(parts[name]) == pytest.approx(share * n, abs=4 * np.sqrt(n * share * (1 - share)))
    other = split_rows(n, split, 1, columns=columns)
    both = len(np.intersect1d(parts["train"], other["train"]))
    assert both == pytest.approx(train * train * n, rel=0.05)
    halves = [split_survey(split, table.slice(start, n // 2))["key"] for start in (0, n // 2)]
    assert np.array_equal(np.concatenate(halves), columns["key"])
    # The file's name and the order of the columns are no content.
    moved = table.select(["b", "a"])
    assert np.array_equal(split_survey(split, moved)["key"], columns["key"])


def test_equal_keys_stay_together() -> None:
    split = Split(kind="hash", by=["a", "b"])
    table = pa.table({"a": np.arange(900) % 30, "b": [f"{i % 10}" for i in range(900)], "c": np.arange(900)})
    codes = part_codes(split_rows(900, split, 0, columns=split_survey(split, table)), 900)
    assert np.array_equal(codes[:30], codes[30:60])
    assert len(set(codes[:30].tolist())) > 1
