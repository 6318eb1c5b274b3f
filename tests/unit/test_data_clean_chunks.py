"""A table cleaned in one chunk, and the same rows cut into any number of chunks: the same result."""

from __future__ import annotations

import itertools
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from orchestrator.data.cleaning.compile import compile_cleaning
from orchestrator.data.cleaning.program import Program, merge_reports
from orchestrator.data.cleaning.replay import replay, value_changes
from orchestrator.errors import SourceError
from orchestrator.spec.data import CleanStep
from tests.unit.cleaning_case import Cleaned, Fill, clean, refit_fills

_STEP: TypeAdapter[CleanStep] = TypeAdapter(CleanStep)
FEATURES = ("a", "b", "c", "when", "items")

STEPS: list[dict[str, Any]] = [
    {"kind": "drop_nulls"},
    {"kind": "drop_nulls", "columns": ["a"]},
    {"kind": "drop_duplicates"},
    {"kind": "drop_duplicates", "columns": ["a", "c"]},
    {"kind": "drop_duplicates", "columns": ["b"]},
    {"kind": "drop_duplicates", "columns": ["items", "when"]},
    {"kind": "drop_outliers", "z": 1.0},
    {"kind": "drop_outliers", "method": "iqr", "k": 0.5, "columns": ["a"]},
    {"kind": "drop_outliers", "method": "quantile", "low": 0.1, "high": 0.8},
    {"kind": "clip_outliers", "z": 0.7},
    {"kind": "clip_outliers", "method": "iqr", "k": 0.3},
    {"kind": "clip_outliers", "method": "quantile", "low": 0.2, "high": 0.9, "columns": ["b"]},
    {"kind": "clip_outliers", "method": "fixed", "min": -1.5, "max": 1.5},
    {"kind": "fill_nulls", "value": "mean"},
    {"kind": "fill_nulls", "value": "median"},
    {"kind": "fill_nulls", "value": "mode"},
    {"kind": "fill_nulls", "value": "mode", "columns": ["c"]},
    {"kind": "fill_nulls", "value": "forward"},
    {"kind": "fill_nulls", "value": "forward", "columns": ["when", "items"]},
    {"kind": "fill_nulls", "value": 1},
    {"kind": "fill_nulls", "value": 0.5, "columns": ["b"]},
    {"kind": "fill_nulls", "value": "q", "columns": ["c"]},
    {"kind": "filter", "where": "a > -1 or c in ('p', 'q') or b is None"},
    {"kind": "cast", "columns": ["a"], "to": "int", "errors": None},
    {"kind": "cast", "columns": ["b"], "to": "float"},
    {"kind": "map", "column": "c", "values": {"p": "q", "zz": None}, "default": "keep"},
    {"kind": "map", "column": "b", "values": {"0": 5, "1": None}, "default": -3},
]


def _values(*known: Any) -> st.SearchStrategy[Any]:
    return st.none() | st.sampled_from(known)


ROWS = st.lists(
    st.tuples(
        _values(0.0, -0.0, 1.0, 2.5, -3.0, 40.0, float("nan"), float("inf"), 0.1),
        _values(0, 1, 2, -2, 90),
        _values("p", "q", "", "zz"),
        _values(0, 86_400_000_000),
        _values([], [0], [0, None], [None, 0], [1, 2]),
        st.sampled_from((0, 1)),
    ),
    min_size=1,
    max_size=14,
)


def _table(rows: Sequence[tuple[Any, ...]]) -> pa.Table:
    a, b, c, when, items, y = zip(*rows, strict=True)
    return pa.table(
        {
            "a": pa.array(a, pa.float64(), from_pandas=False),
            "b": pa.array(b, pa.int16()),
            "c": pa.array(c, pa.string()),
            "when": pa.array(when, pa.timestamp("us")),
            "items": pa.array(items, pa.list_(pa.int32())),
            "y": pa.array(y, pa.int64()),
        }
    )


def _program(
    steps: Sequence[dict[str, Any]], chunks: Sequence[pa.Table], features: Sequence[str] = FEATURES
) -> Program:
    spec = [_STEP.validate_python(step) for step in steps]
    program = compile_cleaning(spec, chunks[0].schema, features, "y")
    while program.pending:
        # As on many machines: the program and what it finds out travel.
        copies = [pickle.loads(pickle.dumps(program)) for _ in chunks]
        partials = [copy.survey(chunk, n) for n, (copy, chunk) in enumerate(zip(copies, chunks, strict=True))]
        program = program.fit(pickle.loads(pickle.dumps(partial)) for partial in partials)
    return program


def _refit(
    program: Program, chunks: Sequence[pa.Table], train: np.ndarray[Any, Any]
) -> tuple[Program, dict[str, Fill]]:
    """`train` says it of the rows of the source, all chunks together."""
    partials, start = [], 0
    for n, chunk in enumerate(chunks):
        cleaned = program.apply(chunk, n)
        partials.append(program.refit_survey(cleaned, train[start + cleaned.rows]))
        start += chunk.num_rows
    program, fills = program.refit(iter(partials))
    return pickle.loads(pickle.dumps(program)), fills


def _joined(program: Program, chunks: Sequence[pa.Table]) -> tuple[pa.Table, list[int], list[dict[str, Any]]]:
    """The cleaned chunks as one table, the numbers of its rows in the source, and the merged report."""
    cleaned = [program.apply(chunk, n) for n, chunk in enumerate(chunks)]
    starts = np.cumsum([0, *(chunk.num_rows for chunk in chunks)])
    rows = [int(start + row) for start, part in zip(starts[:-1], cleaned, strict=True) for row in part.rows]
    assert all(part.table.schema.equals(program.schema) for part in cleaned)
    return (
        pa.concat_tables([part.table for part in cleaned]),
        rows,
        merge_reports(part.report for part in cleaned),
    )


def _cut(table: pa.Table, cuts: Sequence[int]) -> list[pa.Table]:
    places = [0, *sorted(min(cut, table.num_rows) for cut in cuts), table.num_rows]
    return [table.slice(a, b - a) for a, b in itertools.pairwise(places)]


def _same(left: pa.Table, right: pa.Table) -> bool:
    """Bit by bit, NaN equal to NaN."""
    assert left.schema.equals(right.schema)
    return repr(left.to_pylist()) == repr(right.to_pylist())


@settings(max_examples=150, deadline=None)
@given(
    rows=ROWS,
    steps=st.lists(st.sampled_from(STEPS), min_size=1, max_size=4),
    cuts=st.lists(st.integers(0, 14), max_size=4),
    training=st.integers(0, 2**14 - 1),
)
def test_chunks_change_nothing(
    rows: list[tuple[Any, ...]], steps: list[dict[str, Any]], cuts: list[int], training: int
) -> None:
    table = _table(rows)
    chunks = _cut(table, cuts)
    train = np.array([bool(training >> row & 1) for row in range(table.num_rows)])
    try:
        whole = _program(steps, [table])
    except SourceError:  # the steps do not go together
        with pytest.raises(SourceError):
            _program(steps, chunks)
        return
    program = _program(steps, chunks)
    expected, parts = _joined(whole, [table]), _joined(program, chunks)
    assert _same(expected[0], parts[0])
    assert expected[1:] == parts[1:]
    try:
        whole, fills = _refit(whole, [table], train)
    except SourceError:
        with pytest.raises(SourceError, match="null in every training row"):
            _refit(program, chunks, train)
        return
    program, others = _refit(program, chunks, train)
    assert repr(others) == repr(fills)
    assert repr(program.bounds()) == repr(whole.bounds())
    final, refitted = _joined(whole, [table]), _joined(program, chunks)
    assert _same(final[0], refitted[0])
    assert final[1:] == refitted[1:]
    assert final[1] == expected[1], "the rows that stay are those of the split"


@pytest.mark.parametrize("step", STEPS, ids=lambda step: " ".join(str(value) for value in step.values()))
def test_every_step_on_more_rows(step: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)

    def some(values: Sequence[Any]) -> list[Any]:
        return [None if rng.random() < 0.1 else values[i] for i in rng.integers(0, len(values), 400)]

    columns = [some(list(rng.normal(size=200).round(2))), some(range(30)), some(["p", "q", "zz"]),
               some([0, 86_400_000_000]), some([[], [0], [1, 2]]), [0, 1] * 200]  # fmt: skip
    table = _table(list(zip(*columns, strict=True)))
    train = rng.random(400) < 0.6
    whole, _ = _refit(_program([step], [table]), [table], train)
    expected = _joined(whole, [table])
    assert step["kind"] == "cast" or expected[2][0]["rows"] > 0, "the step has something to do"
    for count in (2, 7, 60):
        chunks = _cut(table, [i * 400 // count for i in range(1, count)])
        program, _ = _refit(_program([step], chunks), chunks, train)
        found = _joined(program, chunks)
        assert _same(expected[0], found[0])
        assert expected[1:] == found[1:]


def test_training_rows_alone_teach_fills_and_bounds() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=300)
    values[rng.random(300) < 0.2] = np.nan
    train = rng.random(300) < 0.5
    steps = [
        {"kind": "fill_nulls", "value": "mean"},
        {"kind": "clip_outliers", "method": "quantile", "low": 0.1, "high": 0.75},
    ]

    def taught(
        values: np.ndarray[Any, Any],
    ) -> tuple[dict[str, Fill], dict[str, tuple[float, float]], pa.Table]:
        table = pa.table({"a": values, "y": np.zeros(300)})
        chunks = _cut(table, [100, 150])
        program, fills = _refit(_program(steps, chunks, ["a"]), chunks, train)
        return fills, program.bounds(), _joined(program, chunks)[0]

    fills, bounds, table = taught(values)
    known = pd.Series(values[train]).dropna()
    assert fills["a"] == pytest.approx(known.mean())
    assert bounds["a"] == pytest.approx((known.quantile(0.1), known.quantile(0.75)))
    expected = pd.Series(values).fillna(known.mean()).clip(*bounds["a"])
    assert table["a"].to_pylist() == pytest.approx(expected.tolist())
    others = np.where(train, values, 1e6 * rng.normal(size=300))
    assert taught(others)[:2] == (fills, bounds)


def test_a_fill_is_what_later_clips_make_of_it() -> None:
    table = pa.table({"a": [0.0, 1.0, 2.0, None], "y": [0, 0, 0, 0]})
    steps: list[dict[str, Any]] = [
        {"kind": "fill_nulls", "value": -9},
        {"kind": "clip_outliers", "method": "fixed", "min": 0.5},
        {"kind": "clip_outliers", "method": "fixed", "min": 0.0, "max": 1.5},
    ]
    program = _program(steps, [table], ["a"])
    program, fills = _refit(program, [table], np.ones(4, dtype=bool))
    assert fills == {"a": 0.5}
    assert program.bounds() == {"a": (0.5, 1.5)}
    assert _joined(program, [table])[0]["a"].to_pylist() == [0.5, 1.0, 1.5, 0.5]


def test_rows_that_provisional_values_dropped_stay_dropped() -> None:
    """Over all rows the median is 5, over the training rows it is 1: the filter asks the former."""
    table = pa.table({"a": [1.0, 1.0, None, 9.0, 9.0], "y": [0] * 5})
    steps = [{"kind": "fill_nulls"}, {"kind": "filter", "where": "a != 5"}]
    program = _program(steps, [table], ["a"])
    assert program.apply(table).rows.tolist() == [0, 1, 3, 4]
    program, fills = _refit(program, [table], np.array([True, True, False, False, False]))
    assert fills == {"a": 1.0}
    assert program.apply(table).rows.tolist() == [0, 1, 3, 4]


def test_that_no_row_is_left_is_said_over_all_chunks() -> None:
    table = pa.table({"a": [1.0, 2.0, 3.0, 4.0], "y": [0, 0, 1, 1]})
    chunks = _cut(table, [2])
    steps: list[dict[str, Any]] = [
        {"kind": "filter", "where": "a < 3"},
        {"kind": "filter", "where": "y == 1"},
    ]
    program = _program(steps[:1], chunks, ["a"])
    report = _joined(program, chunks)[2]
    program.require_rows(report, 4)
    assert program.apply(chunks[1], 1).table.num_rows == 0
    program = _program(steps, chunks, ["a"])
    with pytest.raises(SourceError, match=r"data.clean\[1\] \(filter\) dropped all 2 rows.*columns y"):
        program.require_rows(_joined(program, chunks)[2], 4)


def test_a_forward_fill_goes_before_what_is_learned() -> None:
    table = pa.table({"a": [1.0, None], "y": [0, 0]})
    with pytest.raises(SourceError, match="put the forward fill before"):
        _program([{"kind": "clip_outliers"}, {"kind": "fill_nulls", "value": "forward"}], [table], ["a"])


def test_raw_rows_are_cleaned_for_prediction_as_in_training() -> None:
    table = pa.table(
        {
            "a": [" 1", "2", None, "x", "90", "3"],
            "b": [-999, 4, 5, 6, 7, -999],
            "c": ["p", None, "q", "p", "q", "p"],
            "y": [0, 1, 0, 1, 0, 1],
        }
    )
    steps = [
        {"kind": "cast", "columns": ["a"], "to": "float", "errors": None},
        {"kind": "map", "column": "b", "values": {"-999": None}, "default": "keep"},
        {"kind": "fill_nulls", "value": "median"},
        {"kind": "clip_outliers", "method": "quantile", "low": 0.1, "high": 0.8},
        {"kind": "fill_nulls", "value": "mode", "columns": ["c"]},
    ]
    program = _program(steps, [table], ["a", "b", "c"])
    # The median is learned of the numbers only: the default columns are those that are numbers by then.
    program, fills = _refit(program, [table], np.array([True] * 5 + [False]))
    assert set(fills) == {"a", "b", "c"}
    changes = value_changes(program, ["a", "b", "c"])
    again = replay(table.select(["a", "b", "c"]), changes)
    assert _same(again, program.apply(table).table.select(["a", "b", "c"]))
    single = replay(pa.table({"a": ["1000"], "b": [None], "c": [None]}), changes)
    assert single["a"].to_pylist() == [program.bounds()["a"][1]]
    assert single["c"].to_pylist() == ["p"]


def test_clean_and_refit_fills_are_the_program_with_one_chunk() -> None:
    table = pa.table({"a": [1.0, None, 5.0, 100.0], "y": [0, 1, 0, 1]})
    steps = [_STEP.validate_python({"kind": "fill_nulls"}), _STEP.validate_python(
        {"kind": "clip_outliers", "method": "quantile", "low": 0.0, "high": 0.5})]  # fmt: skip
    cleaned: Cleaned = clean(table, steps, features=["a"], target="y")
    cleaned = cleaned.keep(np.array([True, True, True, False]))
    filled, values = refit_fills(cleaned, np.array([0, 2]))
    assert values == {"a": 3.0}
    assert filled["a"].to_pylist() == [1.0, 3.0, 3.0]
