"""Casts, mappings, outliers, fills and their statistics, against pandas, numpy and values written out."""

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
from pydantic import TypeAdapter, ValidationError

from orchestrator.data.cleaning import statistics
from orchestrator.data.cleaning.statistics import (
    clip_numbers,
    merged_columns,
    survey_counts,
    survey_numbers,
)
from orchestrator.data.cleaning.values import cast_column
from orchestrator.errors import SourceError
from orchestrator.spec.data import CleanStep
from tests.unit.cleaning_case import clean, refit_fills

_STEP: TypeAdapter[CleanStep] = TypeAdapter(CleanStep)


def _one(values: Any, step: dict[str, Any], **columns: Any) -> tuple[list[Any], int, pa.DataType]:
    """Column `a` after one step, how many rows that touched, and its type; all rows train."""
    table = pa.table({"a": values, "y": [0] * len(values), **columns})
    features = [name for name in table.column_names if name != "y"]
    cleaned = clean(table, [_STEP.validate_python(step)], features=features, target="y")
    table, _ = refit_fills(cleaned, np.arange(len(cleaned.rows)))
    return table["a"].to_pylist(), cleaned.report[0]["rows"], table["a"].type


D, T = dt.date, dt.datetime


@pytest.mark.parametrize(
    ("values", "to", "written", "made", "unfit"),
    [
        (["1", " 2 ", "x", None, "3.5", "", "99999999999999999999"], "int", None, [1, 2] + [None] * 5, 4),
        (["1", " 2.5", "x", None, "1e3", "inf"], "float", None, [1.0, 2.5, None, None, 1000.0, float("inf")], 1),
        (["true", "False", "1", "0", "yes", None], "bool", None, [True, False, True, False, None, None], 1),
        ([1.0, 2.5, float("nan"), None, -3.0, 1e30], "int", None, [1, None, None, None, -3, None], 2),
        ([0, 1, 2, None], "bool", None, [False, True, None, None], 1),
        ([0.0, 1.0, 0.5, float("nan")], "bool", None, [False, True, None, None], 1),
        ([True, False, None], "int", None, [1, 0, None], 0),
        ([1, None, 2**62], "float", None, [1.0, None, float(2**62)], 0),
        ([Decimal("1.5"), Decimal("2.0")], "float", None, [1.5, 2.0], 0),
        ([1, None], "string", None, ["1", None], 0),
        ([" a ", None], "string", None, [" a ", None], 0),
        ([True, None], "string", None, ["true", None], 0),
        (["2024-02-29", "2023-02-29", None], "date", None, [D(2024, 2, 29), None, None], 1),
        (["29.02.2024", "2024-02-29"], "date", "%d.%m.%Y", [D(2024, 2, 29), None], 1),
        (["2024-02-29 12:30:00", "2024-02-29T12:30:00.25", "noon"], "timestamp", None,
         [T(2024, 2, 29, 12, 30), T(2024, 2, 29, 12, 30, 0, 250_000), None], 1),
        (["12:30 29/02/24", "x"], "timestamp", "%H:%M %d/%m/%y", [T(2024, 2, 29, 12, 30), None], 1),
        ([T(2024, 2, 29, 12, 30), None], "date", None, [D(2024, 2, 29), None], 0),
        ([D(2024, 2, 29), None], "timestamp", None, [T(2024, 2, 29), None], 0),
        ([D(2024, 2, 29)], "string", None, ["2024-02-29"], 0),
        ([None, None], "int", None, [None, None], 0),
    ],
)  # fmt: skip
def test_casts(values: list[Any], to: str, written: str | None, made: list[Any], unfit: int) -> None:
    column, wrong = cast_column(pa.chunked_array([pa.array(values, from_pandas=False)]), to, written)
    assert column.to_pylist() == made
    assert int(wrong.sum()) == unfit
    step = {"kind": "cast", "columns": ["a"], "to": to, "format": written, "errors": None}
    assert _one(pa.array(values, from_pandas=False), step)[:2] == (made, unfit)


def test_many_values_that_do_not_fit() -> None:
    texts = [str(i) if i % 3 else f"no {i}" for i in range(2000)]
    column, wrong = cast_column(pa.chunked_array([texts[:700], texts[700:]]), "int")
    assert column.to_pylist() == [i if i % 3 else None for i in range(2000)]
    assert wrong.tolist() == [i % 3 == 0 for i in range(2000)]
    coded = pa.chunked_array([pa.array(texts).dictionary_encode()])
    assert cast_column(coded, "int")[0].to_pylist() == column.to_pylist()


def test_a_cast_fails_by_default_and_names_the_value() -> None:
    with pytest.raises(
        SourceError, match=r"data.clean\[0\] \(cast\): column 'a' holds 'x' in row 1, which is no int"
    ):
        _one(["1", "x", "y"], {"kind": "cast", "columns": ["a"], "to": "int"})
    step = {"kind": "cast", "columns": ["a"], "to": "date", "format": "%Y"}
    with pytest.raises(SourceError, match="no date written as '%Y'; 1 values"):
        _one(["1999", "x"], step)
    for values, to in (([1], "date"), ([[1]], "int"), ([T(2020, 1, 1)], "int")):
        with pytest.raises(SourceError, match="name columns that can be cast to"):
            _one(values, {"kind": "cast", "columns": ["a"], "to": to})


@pytest.mark.parametrize(
    ("values", "mapping", "default", "made", "touched"),
    [
        (["cat", "dog", None, "cat"], {"cat": 0, "dog": 1}, "fail", [0, 1, None, 0], 3),
        (["cat", "cow", None], {"cat": 0}, None, [0, None, None], 2),
        (["cat", "cow", None], {"cat": 0}, 9, [0, 9, None], 2),
        (["cat", "cow", None], {"cat": "Cat"}, "keep", ["Cat", "cow", None], 1),
        ([-999, 5, None], {"-999": None}, "keep", [None, 5, None], 1),
        ([-999.0, 5.5, float("nan")], {"-999": None}, "keep", [None, 5.5, None], 1),
        ([1, 2, 1], {"1": "one", "2": "two"}, "fail", ["one", "two", "one"], 3),
        ([True, False], {"true": 1.5, "false": 2}, "fail", [1.5, 2.0], 2),
        (["a", "b"], {"a": True}, False, [True, False], 2),
        (["n/a", "x"], {"n/a": None, "x": 3}, "fail", [None, 3], 2),
    ],
)
def test_mappings(
    values: list[Any], mapping: dict[str, Any], default: Any, made: list[Any], touched: int
) -> None:
    step = {"kind": "map", "column": "a", "values": mapping, "default": default}
    found = _one(pa.array(values, from_pandas=False), step)[:2]
    assert [None if value != value else value for value in found[0]] == made
    assert found[1] == touched
    coded = pa.array(values, from_pandas=True).dictionary_encode()
    found = _one(coded, step)[:2]
    assert [None if value != value else value for value in found[0]] == made


def test_mappings_that_are_refused() -> None:
    step = {"kind": "map", "column": "a", "values": {"cat": 0}}
    with pytest.raises(SourceError, match="holds 'cow', which values does not list; 2 rows"):
        _one(["cat", "cow", "emu"], step)
    with pytest.raises(SourceError, match="keeps values of the type string beside others"):
        _one(["cat", "cow"], step | {"default": "keep"})
    with pytest.raises(SourceError, match="the keys of values do not fit the column 'a' of the type int64"):
        _one([1, 2], step)
    with pytest.raises(SourceError, match=r"data.clean\[0\] \(map\).column: the source has no column 'b'"):
        _one([1, 2], step | {"column": "b"})


@pytest.mark.parametrize(
    ("step", "words"),
    [
        ({"kind": "map", "column": "a", "values": {}}, "at least 1"),
        ({"kind": "map", "column": "a", "values": {"a": 1, "b": "x"}}, "not number and text"),
        ({"kind": "map", "column": "a", "values": {"a": 1}, "default": "x"}, "not number and text"),
        ({"kind": "map", "column": "a", "values": {"a": None}}, "not nothing but null"),
        ({"kind": "cast", "columns": ["a"], "to": "int", "format": "%Y"}, "format goes with to: date"),
        ({"kind": "cast", "columns": ["a"], "to": "int", "errors": "null"}, "errors"),
        ({"kind": "cast", "columns": [], "to": "int"}, "at least 1"),
        ({"kind": "drop_outliers", "k": 3.0}, "'k' goes with method: iqr, and the method is z_score"),
        ({"kind": "drop_outliers", "method": "fixed"}, "method"),
        ({"kind": "clip_outliers", "method": "fixed"}, "needs min, max or both"),
        ({"kind": "clip_outliers", "method": "fixed", "min": 2.0, "max": 1.0}, "above max"),
        ({"kind": "clip_outliers", "max": 1.0}, "'max' goes with method: fixed"),
        ({"kind": "clip_outliers", "method": "quantile", "low": 0.9, "high": 0.1}, "must be less than"),
        ({"kind": "fill_nulls", "value": "other"}, "name the columns"),
    ],
)
def test_steps_that_are_refused(step: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        _STEP.validate_python(step)
    assert words in str(caught.value)


def _bounds(values: pd.Series[float], step: dict[str, Any]) -> tuple[float, float]:
    """As pandas has it."""
    if step["method"] == "z_score":
        return values.mean() - step["z"] * values.std(ddof=0), values.mean() + step["z"] * values.std(ddof=0)
    if step["method"] == "iqr":
        first, third = values.quantile(0.25), values.quantile(0.75)
        return first - step["k"] * (third - first), third + step["k"] * (third - first)
    return values.quantile(step["low"]), values.quantile(step["high"])


METHODS: list[dict[str, Any]] = [
    {"method": "z_score", "z": 1.5},
    {"method": "iqr", "k": 0.8},
    {"method": "quantile", "low": 0.05, "high": 0.9},
]


@pytest.mark.parametrize("method", METHODS)
def test_outliers_are_those_that_pandas_finds(method: dict[str, Any]) -> None:
    values = pd.Series(np.random.default_rng(0).standard_t(2, size=301))
    values[::10] = np.nan
    low, high = _bounds(values, method)
    made, touched, _ = _one(values.to_numpy(), {"kind": "clip_outliers", **method})
    np.testing.assert_allclose(np.array(made, dtype=float), values.clip(low, high).to_numpy(), rtol=1e-12)
    beyond = (values < low) | (values > high)
    assert touched == beyond.sum() > 10
    made, touched, _ = _one(values.to_numpy(), {"kind": "drop_outliers", **method})
    np.testing.assert_array_equal(np.array(made, dtype=float), values[~beyond].to_numpy())
    assert touched == beyond.sum()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["drop_outliers", "clip_outliers"])
def test_constant_and_empty_columns_have_no_outliers(kind: str, method: dict[str, Any]) -> None:
    assert _one([3.0, 3.0, 3.0], {"kind": kind, **method})[:2] == ([3.0, 3.0, 3.0], 0)
    assert _one(pa.array([None, None], pa.float64()), {"kind": kind, **method})[:2] == ([None, None], 0)
    assert _one([1.0, float("inf"), 1.0], {"kind": "drop_outliers", "method": "iqr"})[1] == 0


def test_whole_numbers_stay_whole() -> None:
    fixed = {"kind": "clip_outliers", "method": "fixed", "min": -1.5, "max": 300.0}
    assert _one(pa.array([-9, -2, 0, 100, None], pa.int8()), fixed) == ([-2, -2, 0, 100, None], 1, pa.int8())
    assert _one(pa.array([0, 255], pa.uint8()), fixed) == ([0, 255], 0, pa.uint8())
    assert _one(pa.array([0, 2**63], pa.uint64()), fixed)[0] == [0, 300]
    quantile = {"kind": "clip_outliers", "method": "quantile", "low": 0.1, "high": 0.9}
    assert _one(list(range(8)), quantile) == ([0, 1, 2, 3, 4, 5, 6, 7], 0, pa.int64())
    assert _one(pa.array([1.0, 400.5], pa.float32()), fixed) == ([1.0, 300.0], 1, pa.float32())
    assert _one([Decimal("400.5"), Decimal("2.5")], fixed) == ([300.0, 2.5], 1, pa.float64())
    assert _one([True, False], {"kind": "clip_outliers"})[:2] == ([True, False], 0)
    with pytest.raises(SourceError, match="'a' has the type bool"):
        _one([True, False], {"kind": "clip_outliers", "columns": ["a"]})


@pytest.mark.parametrize(
    ("values", "value", "made", "kind"),
    [
        ([3, None, 1, 3, 1], "mode", [3, 1, 1, 3, 1], pa.int64()),
        ([True, None, True, False], "mode", [True, True, True, False], pa.bool_()),
        (["b", None, "a", "b"], "mode", ["b", "b", "a", "b"], pa.string()),
        (["b", None, "a"], "mode", ["b", "a", "a"], pa.string()),
        ([0.5, float("nan"), 0.5, 2.0], "mode", [0.5, 0.5, 0.5, 2.0], pa.float64()),
        ([1, 2], "mean", [1, 2], pa.int64()),
        ([1, None, 2], "mean", [1.0, 1.5, 2.0], pa.float64()),
        ([True, None, False], "mean", [1.0, 0.5, 0.0], pa.float64()),
        ([1, None], 2.0, [1, 2], pa.int64()),
        ([1, None], 0.5, [1.0, 0.5], pa.float64()),
        (
            [None, 1.0, None, None, 4.0, float("nan")],
            "forward",
            [None, 1.0, 1.0, 1.0, 4.0, 4.0],
            pa.float64(),
        ),
        ([None, "a", None], "forward", [None, "a", "a"], pa.string()),
    ],
)
def test_fills(values: list[Any], value: Any, made: list[Any], kind: pa.DataType) -> None:
    gaps = sum(entry is None or entry != entry for entry in values)
    leading = sum(entry is None for entry in made)
    found = _one(pa.array(values, from_pandas=False), {"kind": "fill_nulls", "value": value})
    assert found == (made, gaps - leading, kind)


def test_a_category_column_is_filled_by_its_mode() -> None:
    coded = pa.array(["u", None, "v", "v"]).dictionary_encode()
    step = {"kind": "fill_nulls", "value": "mode"}
    assert _one(coded, step) == (["u", "v", "v", "v"], 1, pa.string())
    assert _one(coded, step | {"value": "forward"})[:2] == (["u", "u", "v", "v"], 1)


def test_forward_fills_any_type() -> None:
    pixels = np.arange(12.0).reshape(3, 2, 2)
    pixels[1, 0, 0] = np.nan
    images = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)
    made, touched, _ = _one(images, {"kind": "fill_nulls", "value": "forward", "columns": ["a"]})
    assert made == [[0, 1, 2, 3], [0, 1, 2, 3], [8, 9, 10, 11]] or made[1] == made[0]
    assert touched == 1


@pytest.mark.parametrize(
    ("values", "value", "words"),
    [
        ([1], "mode", "no value to learn"),
        ([1], "forward", "no value to learn"),
        (pa.array([1], pa.int8()), 300, "300 does not fit column 'a' of the type int8"),
        ([[1.0]], "mode", "has the type list"),
        ([b"x"], "text", "has the type binary"),
    ],
)
def test_fills_that_are_refused(values: Any, value: Any, words: str) -> None:
    columns = ["y"] if "learn" in words else ["a"]
    with pytest.raises(SourceError, match=words):
        _one(values, {"kind": "fill_nulls", "value": value, "columns": columns})


def _cut(count: int, pieces: int) -> list[slice]:
    places = np.linspace(0, count, pieces + 1).astype(int)
    return [slice(a, b) for a, b in itertools.pairwise(places)]


def _numbers(values: Any, pieces: int, limit: int) -> statistics.Numbers:
    """The survey of values that come in pieces."""
    found = merged_columns(
        (
            {"a": survey_numbers(values[part], np.arange(part.stop - part.start), chunk, limit)}
            for chunk, part in enumerate(_cut(len(values), pieces))
        ),
        limit,
    )["a"]
    assert isinstance(found, statistics.Numbers)
    return found


@settings(deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6) | st.sampled_from([np.nan, np.inf, -np.inf, 0.0]), max_size=60),
    st.integers(1, 7),
    st.integers(1, 40),
)
def test_moments_survive_any_limit(values: list[float], pieces: int, limit: int) -> None:
    array = np.array(values, dtype=np.float64)
    found, known = _numbers(array, pieces, limit), array[np.isfinite(array)]
    assert found.count == len(known)
    assert len(found.values) <= limit
    assert found.complete == (len(known) <= limit)
    if len(known):
        scale = max(1.0, float(np.abs(known).max()))
        assert statistics.mean(found) == pytest.approx(known.mean(), abs=1e-9 * scale)
        assert statistics.deviation(found) == pytest.approx(known.std(), abs=1e-6 * scale)
    if found.complete:
        np.testing.assert_array_equal(found.values, known)
    else:
        assert np.isin(found.values, known).all()


def test_a_sample_is_fair_and_the_same_for_any_values() -> None:
    rng = np.random.default_rng(0)
    values = np.sort(rng.normal(size=200_000))
    found = _numbers(values, 9, 10_000)
    assert len(found.values) == 10_000
    assert np.all(np.diff(found.values) >= 0), "in source order"
    shares = [0.01, 0.25, 0.5, 0.75, 0.99]
    # A quantile of a sample of n has about the rank q ± sqrt(q (1 - q) / n).
    ranks = np.searchsorted(values, statistics.quantiles(found, shares)) / len(values)
    np.testing.assert_allclose(ranks, shares, atol=0.02)
    assert statistics.mean(found) == pytest.approx(values.mean(), abs=1e-12)
    np.testing.assert_array_equal(_numbers(-values, 9, 10_000).values, -found.values)


def test_counts_keep_the_most_frequent() -> None:
    rng = np.random.default_rng(0)
    texts = [f"t{value}" for value in np.minimum(rng.geometric(0.01, size=5000), 900)]
    parts = [{"a": survey_counts(pa.chunked_array([texts[part]]))} for part in _cut(len(texts), 11)]
    series, exact = pd.Series(texts), merged_columns(parts)["a"]
    assert isinstance(exact, statistics.Counts)
    assert statistics.most_frequent_value(exact) == series.mode()[0]
    counts = dict(zip(exact.values.to_pylist(), exact.counts.tolist(), strict=True))
    assert counts == series.value_counts().to_dict()
    assert len(merged_columns(parts, limit=100)["a"].values) == 100


def test_surveys_are_read_one_by_one() -> None:
    alive = 0

    def partials() -> Any:
        nonlocal alive
        for chunk in range(20):
            alive += 1
            yield {"a": survey_numbers(np.full(100, float(chunk)), np.arange(100), chunk, 100)}

    found = merged_columns(partials(), limit=100)["a"]
    assert alive == 20
    assert isinstance(found, statistics.Numbers)
    assert (found.count, len(found.values)) == (2000, 100)
    moved = clip_numbers(found, 3.0, 5.0)
    assert moved.values.min() == 3.0
    assert statistics.mean(moved) == pytest.approx(np.clip(found.values, 3, 5).mean())
