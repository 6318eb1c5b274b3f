"""Conditions of the filter step, against pandas and against three-valued logic written out."""

from __future__ import annotations

import datetime as dt
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from orchestrator.data.cleaning.compile import compile_cleaning
from orchestrator.data.cleaning.condition import rows_meeting
from orchestrator.errors import SourceError
from orchestrator.spec.data import CleanStep, Filter
from orchestrator.spec.data.expression import parse_condition
from tests.unit.spec_helpers import faults_of, minimal

_STEP: TypeAdapter[CleanStep] = TypeAdapter(CleanStep)


def _rows(table: pa.Table, where: str) -> list[int]:
    return np.flatnonzero(
        rows_meeting(table, parse_condition(where), "data.clean[0] (filter).where")
    ).tolist()


FRAME = pd.DataFrame(
    {
        "age": [17, 18, 30, 64, 65],
        "income": [0.0, -2.5, 1000.5, 3.0, 7.0],
        "country": ["DE", "FR", "US", "de", "FR"],
        "first name": ["Ann", "Bo", "Cy", "", "Eve"],
        "active": [True, False, True, True, False],
    }
)


@pytest.mark.parametrize(
    "where",
    [
        "age >= 18 and country in ('DE', 'FR')",
        "age < 18 or age > 64",
        "18 <= age < 65",
        "not active",
        "active and not (age == 30)",
        "country not in ['DE']",
        "`first name` == 'Bo'",
        '`first name` != "Bo" and age != 17',
        "income / age > 0.1",
        "income - age * 2 + 1 <= -31.5",
        "age // 7 == 2",
        "age % 2 == 0",
        "income % 2 == 1.5",
        "age ** 2 > 900",
        "-income >= 0",
        "+income > 1e3",
        "income == -2.5",
        "income in (-2.5, 3)",
        "age > income",
        "active == True",
        "not not active",
    ],
)
def test_conditions_mean_what_pandas_says(where: str) -> None:
    expected = np.flatnonzero(FRAME.eval(where, engine="python")).tolist()
    assert _rows(pa.Table.from_pandas(FRAME), where) == expected


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("lower(country) == 'de'", [0, 3]),
        ("upper(country) == 'DE'", [0, 3]),
        ("len(`first name`) == 3", [0, 4]),
        ("abs(income) > 2", [1, 2, 3, 4]),
        ("isnull(age) or active", [0, 2, 3]),
        ("active == true and age is not null", [0, 2, 3]),
        ("country == 'it`s' or country == \"`DE`\" or age == 17", [0]),
        ("  age\n  >= 65 ", [4]),
        ("age in {17, 65}", [0, 4]),
    ],
)
def test_functions_and_words(where: str, rows: list[int]) -> None:
    assert _rows(pa.Table.from_pandas(FRAME), where) == rows


GAPS = pa.table(
    {
        "x": [1.0, None, float("nan"), 4.0],
        "s": ["a", "b", None, "d"],
        "when": pa.array([dt.date(2020, 1, 1), None, dt.date(2021, 5, 5), dt.date(2022, 1, 1)]),
        "kind": pa.array(["u", "v", None, "u"]).dictionary_encode(),
        "items": [[1, 2], [], None, [3]],
        "image": pa.FixedShapeTensorArray.from_numpy_ndarray(np.array([[1.0], [np.nan], [0.0], [2.0]])),
    }
)


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("x is None", [1, 2]),
        ("x is not None", [0, 3]),
        ("isnull(x) and isnull(s)", [2]),
        ("x > 0", [0, 3]),
        ("not x > 2", [0]),
        ("x != 1", [3]),
        ("x not in (1, 2)", [3]),
        ("s not in ('a',)", [1, 3]),
        ("x > 2 or s == 'b'", [1, 3]),
        ("not (x > 2 and s == 'b')", [0, 3]),
        ("when > '2020-06-01'", [2, 3]),
        ("when in ('2020-01-01',) or '2021-12-31' < when", [0, 3]),
        ("kind == 'u'", [0, 3]),
        ("kind is None", [2]),
        ("len(items) > 0", [0, 3]),
        ("items is not None", [0, 1, 3]),
        ("image is None", [1]),
        ("0 / (x - 1) == 0", [3]),
        ("not 0 / (x - 1) == 0", []),
    ],
)
def test_a_gap_compares_to_nothing(where: str, rows: list[int]) -> None:
    assert _rows(GAPS, where) == rows


_OPS: dict[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_ATOMS = st.tuples(st.sampled_from("xy"), st.sampled_from(list(_OPS)), st.integers(-2, 2))
_TREES = st.recursive(
    _ATOMS,
    lambda below: st.tuples(st.just("not"), below) | st.tuples(st.sampled_from(["and", "or"]), below, below),
    max_leaves=6,
)


def _text(tree: Any) -> str:
    if tree[0] == "not":
        return f"not ({_text(tree[1])})"
    if tree[0] in ("and", "or"):
        return f"({_text(tree[1])}) {tree[0]} ({_text(tree[2])})"
    return f"{tree[0]} {tree[1]} {tree[2]}"


def _truth(tree: Any, row: dict[str, int | None]) -> bool | None:
    """Kleene's three values."""
    if tree[0] == "not":
        inner = _truth(tree[1], row)
        return None if inner is None else not inner
    if tree[0] in ("and", "or"):
        pair = [_truth(tree[1], row), _truth(tree[2], row)]
        decisive = tree[0] == "or"
        return decisive if decisive in pair else None if None in pair else not decisive
    value = row[tree[0]]
    return None if value is None else _OPS[tree[1]](value, tree[2])


@settings(deadline=None)
@given(_TREES, st.lists(st.tuples(*[st.none() | st.integers(-2, 2)] * 2), max_size=8))
def test_three_valued_logic(tree: Any, rows: list[tuple[int | None, int | None]]) -> None:
    table = pa.table(
        {"x": pa.array([x for x, _ in rows], pa.int8()), "y": pa.array([y for _, y in rows], pa.int64())}
    )
    expected = [i for i, (x, y) in enumerate(rows) if _truth(tree, {"x": x, "y": y}) is True]
    assert _rows(table, _text(tree)) == expected


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("age = 3", "compare with '=='"),
        ("age >", "position 5: invalid syntax; allowed are columns"),
        ("age > 3 & active", "write 'and' for '&'"),
        ("age.real > 3", "position 1: 'age.real' is not allowed"),
        ("1 + __import__('os').system('x') > 0", "position 5: '__import__('os').system('x')' is not allowed"),
        ("eval('1') == age", "'eval('1')' is not allowed"),
        ("age > (lambda: 3)", "is not allowed"),
        ("[n for n in age] == 3", "is not allowed"),
        ("age if active else 3", "is not allowed"),
        ("age[0] > 1", "is not allowed"),
        ("f'{age}' == 'x'", "is not allowed"),
        ("age == None", "write 'is None'"),
        ("age is 3", "'is' goes with None only"),
        ("country in 'DE'", "'in' takes a list of values, as in"),
        ("country in ()", "'in' takes a list"),
        ("country in ('DE', None)", "ask for gaps by 'is None'"),
        ("country in ('DE', age)", "holds values only"),
        ("len(age, age) > 1", "len takes one argument"),
        ("lower() == 'a'", "lower takes one argument"),
        ("age > 99999999999999999999", "the number is too large"),
        ("age > 1e999", "the number is too large"),
        ("age > 1j", "1j is not allowed"),
        ("1 < 2", "names no column"),
        ("'é' == name or age == b'x'", "position 23: b'x' is not allowed"),
        ("   age == b'x'", "position 11"),
        ("`first name` ? 3", "position 14"),
        ("age and None", "None goes with 'is'"),
        ("(" * 300 + "age" + ")" * 300, "too many nested"),
        ("not " * 2000 + "active", "nested too deeply"),
        ("+".join(["age"] * 2000) + " > 1", "nested too deeply"),
        ("age > 1" + " " * 10_000, "longer than"),
        ("age\x00 > 1", "null"),
        ("", "at least 1"),
        ("  ", "position"),
    ],
)
def test_what_is_no_condition(where: str, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        _STEP.validate_python({"kind": "filter", "where": where})
    assert words in str(caught.value)


@given(st.text("age`'\"()[]{}<>=!+-*/%0159., andorisNt\\\n#~&|^:@;é\x00", max_size=40))
def test_any_text_is_a_condition_or_a_value_error(text: str) -> None:
    try:
        condition = parse_condition(text)
    except ValueError:
        return
    assert condition.columns


def test_a_fault_is_found_by_validate() -> None:
    source = {"kind": "sklearn", "name": "iris"}
    steps = [{"kind": "drop_nulls"}, {"kind": "filter", "where": "age = 3"}]
    faults = faults_of(minimal(data={"source": source, "target": "target", "clean": steps}))
    assert "position 5" in str(faults["data.clean.1.where"])


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("aeg > 1", r"data.clean\[0\] \(filter\).where: the source has no column 'aeg'.*did you mean 'age'"),
        ("country > 3", "position 1: does not work with large_string and int64"),
        ("lower(age) == 'x'", "position 1: does not work with int64"),
        ("age + 1", "gives int64, not true or false"),
        ("age and active", "position 1: does not work with int64 and bool"),
        ("active or born > 'x'", "no column 'born'"),
    ],
)
def test_conditions_that_do_not_fit_the_columns(where: str, words: str) -> None:
    step = Filter(kind="filter", where=where)
    with pytest.raises(SourceError, match=words):
        compile_cleaning([step], pa.Table.from_pandas(FRAME).schema, ["age"], None)


def test_an_overflow_is_said() -> None:
    table = pa.table({"x": [2**62]})
    with pytest.raises(SourceError, match="overflow"):
        _rows(table, "x * 4 > 0")


def test_columns_in_the_order_of_their_mention() -> None:
    step = Filter(kind="filter", where="abs(b) > 1 and (`a b` is None or b < lower) and lower(c) == '`d`'")
    assert step.columns == ["b", "a b", "lower", "c"]
