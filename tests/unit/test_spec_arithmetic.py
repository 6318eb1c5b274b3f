from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.spec.arithmetic import parse_arithmetic


@pytest.mark.parametrize(
    ("text", "values", "wanted"),
    [
        ("4096 // train.global_batch_size", {"train.global_batch_size": 96}, 42),
        ("-a.b ** 2", {"a.b": 3}, -9),
        ("1 - a.b", {"a.b": 0.25}, 0.75),
        ("a.b / 4 % 2", {"a.b": 10}, 0.5),
        ("min(a.b, seed, 3)", {"a.b": 7, "seed": 5}, 3),
        ("round(a.b, 1) + abs(-2)", {"a.b": 0.26}, 2.3),
        ("int(a.b)", {"a.b": 3.9}, 3),
        ("0.1 if train.optimizer.kind == 'sgd' else 0.001", {"train.optimizer.kind": "sgd"}, 0.1),
        ("0.1 if train.optimizer.kind == 'a.b' else 0.001", {"train.optimizer.kind": "sgd"}, 0.001),
        ("1 < x <= 3 and not y", {"x": 3, "y": False}, True),
        ("x or 5", {"x": 0}, 5),
        ("data.transforms.0.by * 2", {"data.transforms.0.by": 4}, 8),
        (" \n 1 +\n 2 ", {}, 3),
        ("2 ** 10", {}, 1024),
    ],
)
def test_it_computes(text: str, values: dict[str, object], wanted: object) -> None:
    found = parse_arithmetic(text)
    assert set(found.names) == set(values)
    value = found.value(values)
    assert value == pytest.approx(wanted)
    assert type(value) is type(wanted)


def test_names_come_in_the_order_of_their_mention() -> None:
    assert parse_arithmetic("z.a + min(b.c, z.a) * a").names == ("z.a", "b.c", "a")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "position 1"),
        ("1 +", "position"),
        ("open('x')", r"position 1: 'open\('x'\)' is not allowed"),
        ("train.lr.__class__()", "is not allowed"),
        ("(1).real", "is not allowed"),
        ("[1, 2]", "is not allowed"),
        ("lambda: 1", "is not allowed"),
        ("1 in x", "is not allowed"),
        ("x & 1", r"'x & 1' is not allowed; allowed are numbers"),
        ("None", "'None' is not allowed"),
        ("1j", "is not allowed"),
        ("min(1)", "min takes two arguments or more"),
        ("abs(1, 2)", "abs takes one argument"),
        ("round()", "round takes one argument or two"),
        ("max(*x, 1)", "is not allowed"),
        ("x := 1", "position"),
        ("x; y", "position"),
        ("\u4e00", "is not allowed"),
        ("1 + " * 400 + "1", "longer than 1000"),
        ("(" * 300 + "1" + ")" * 300, "position|nested"),
        ("-" * 200 + "1", "nested too deeply"),
    ],
)
def test_all_else_is_refused_with_the_place(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_arithmetic(text)


@pytest.mark.parametrize(
    ("text", "values", "words"),
    [
        ("1 // x", {"x": 0}, "divides by zero"),
        ("x + 1", {"x": "text"}, "computes with 'text', which is no number"),
        ("x + 1", {"x": True}, "computes with True"),
        ("-x", {"x": [1]}, "which is no number"),
        ("x * 3", {"x": [1]}, "which is no number"),
        ("x < 1", {"x": "a"}, "cannot be computed"),
        ("10 ** 10 ** 10", {}, "beyond all measure"),
        ("2.0 ** x", {"x": 10**6}, "cannot be computed"),
        ("(0 - x) ** 0.5", {"x": 4}, "no finite number"),
        ("x * 1e308", {"x": 1e10}, "no finite number"),
    ],
)
def test_what_comes_to_nothing_says_so(text: str, values: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_arithmetic(text).value(values)


numbers = st.integers(-50, 50) | st.floats(-50, 50)


@settings(max_examples=200, deadline=None)
@given(st.recursive(
    st.sampled_from(["p.q", "r"]) | numbers.map(lambda number: f"({number!r})"),
    lambda inner: st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner).map(
        lambda parts: f"({' '.join(parts)})"
    ) | st.tuples(inner, inner, inner).map(lambda three: f"({three[0]} if {three[1]} < {three[2]} else {three[0]})"),
    max_leaves=8,
), numbers, numbers)  # fmt: skip
def test_it_agrees_with_python(text: str, first: float, second: float) -> None:
    try:
        wanted = eval(text.replace("p.q", "p"), {"p": first, "r": second})  # the test's own texts
    except (ZeroDivisionError, OverflowError):
        wanted = math.nan
    found = parse_arithmetic(text)
    values = {"p.q": first, "r": second}
    if math.isfinite(wanted):
        assert found.value(values) == wanted
    else:
        with pytest.raises(ValueError):
            found.value(values)
