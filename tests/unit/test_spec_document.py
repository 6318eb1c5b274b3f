from __future__ import annotations

import math
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec.document import from_python, parse, parse_value, plain_scalar


def values(text: str) -> dict[str, object]:
    document, faults = parse(text, "job.yaml")
    assert faults == []
    return document.values


def refusal(text: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        parse(text, "job.yaml")
    assert len(caught.value.faults) == 1
    return caught.value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 100000.0),
        ("-2.5e+3", -2500.0),
        (".5", 0.5),
        ("3", 3),
        ("+7", 7),
        ("10_000", 10_000),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("yes", "yes"),
        ("off", "off"),
        ("On", "On"),
        ("n", "n"),
        ("2026-11-01", "2026-11-01"),
        ("12:30:45", "12:30:45"),
        ("1_", "1_"),
        ("1e", "1e"),
        ("-", "-"),
        ("3.1.4", "3.1.4"),
        ("10m", "10m"),
        ("3\n", "3\n"),
    ],
)
def test_a_scalar_without_quotes(text: str, value: object) -> None:
    read = plain_scalar(text)
    assert read == value
    assert type(read) is type(value)
    if text.strip() == text and text != "-":
        inside = values(f"key: {text}")["key"]
        assert inside == value
        assert type(inside) is type(value)


def test_quotes_make_text() -> None:
    assert values("a: '3'\nb: \"true\"\nc: !!str 1e-3") == {"a": "3", "b": "true", "c": "1e-3"}


def test_keys_are_text_whatever_they_look_like() -> None:
    assert values("on: {1: a, true: b}") == {"on": {"1": "a", "true": "b"}}


def test_every_field_knows_its_line() -> None:
    document, _ = parse(
        "# a comment\nname: x\ndata:\n  clean:\n    - kind: a\n    -\n      kind: b\n", "job.yaml"
    )
    lines = {path: place.line for path, place in document.places.items()}
    assert lines[("name",)] == 2
    assert lines[("data",)] == 3
    assert lines[("data", "clean")] == 4
    assert lines[("data", "clean", 0, "kind")] == 5
    assert lines[("data", "clean", 1, "kind")] == 7
    assert document.place(("data", "clean", 0, "missing")).line == 5
    assert document.place(("nowhere",)).line == 2
    assert document.place(("data",)).file == "job.yaml"


def test_a_key_written_twice_is_refused_with_both_lines() -> None:
    document, faults = parse("name: a\ntrain:\n  lr: 1\n  lr: 2\nname: b\n", "job.yaml")
    assert [(fault.field, fault.line) for fault in faults] == [("train.lr", 4), ("name", 5)]
    assert "lines 3 and 4" in faults[0].reason
    assert "lines 1 and 5" in faults[1].reason
    assert document.values["name"] == "a"


def test_aliases_and_merge_keys() -> None:
    text = "a: &x {p: 1, q: 2}\nb: *x\nc:\n  <<: *x\n  q: 3\nd: {<<: [{p: 5}, *x]}\n"
    assert values(text) == {
        "a": {"p": 1, "q": 2},
        "b": {"p": 1, "q": 2},
        "c": {"p": 1, "q": 3},
        "d": {"p": 5, "q": 2},
    }
    document, _ = parse(text, "job.yaml")
    assert document.place(("c", "q")).line == 5


@pytest.mark.parametrize("text", ["a: &x [*x]", "a: &x {b: {c: *x}}", "&x a: *x\nb: &y {<<: *y}"])
def test_an_alias_that_holds_itself_is_refused(text: str) -> None:
    assert "itself" in refusal(text).faults[0].reason


def test_an_alias_bomb_is_refused() -> None:
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "too many values" in refusal("\n".join(lines)).faults[0].reason


def test_a_long_chain_of_merge_keys_is_refused() -> None:
    chain = ["a0: &a0 {}"] + [f"a{n}: &a{n} {{<<: *a{n - 1}}}" for n in range(1, 600)]
    assert refusal("\n".join(reversed(chain[1:]))).faults[0].reason
    assert "too" in refusal("\n".join(chain)).faults[0].reason


def test_a_bomb_of_long_texts_is_refused() -> None:
    text = "a: &a " + "x" * 100_000 + "\nb: [" + ", ".join(["*a"] * 1000) + "]"
    assert "too many values" in refusal(text).faults[0].reason


@pytest.mark.parametrize(
    "text",
    [
        "a: " + "[" * 60 + "]" * 60,
        "a: " + "[" * 600 + "]" * 600,
        "a: " + "{b: " * 600,
        "\n".join("  " * n + "a:" for n in range(80)),
        "- " * 2000 + "x",
    ],
)
def test_deep_nesting_is_refused(text: str) -> None:
    assert "too deeply" in refusal(text).faults[0].reason


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("name: x\nbad: [1, 2\n", 3, "Close the bracket"),
        ("name: a: b\n", 1, "quotes"),
        ("name: x\n\tdata: y\n", 2, "tabs"),
        ("name: x\n data: y\n", 2, "indentation"),
        ('name: "abc\n', 2, "Close the quote"),
        ("a: *nope", 1, "undefined alias"),
        ("a: 1\n---\nb: 2\n", 2, "One file holds one job"),
        ("a: 1\nb: \x07\n", 2, "character"),
        ('a: "\\UFFFFFFFF"', 1, "not valid YAML"),
        ("%YAML 9.9\n---\na: 1\n", 1, "not valid YAML"),
        ("", 1, "is empty"),
        ("# only a comment\n", 1, "is empty"),
        ("- a\n- b\n", 1, "must be a mapping"),
        ("just text", 1, "must be a mapping"),
        ("null", 1, "must be a mapping"),
    ],
)
def test_what_is_no_yaml_mapping_is_refused_with_its_line(text: str, line: int, words: str) -> None:
    fault = refusal(text).faults[0]
    assert (fault.file, fault.line) == ("job.yaml", line)
    assert words in f"{fault.reason}. {fault.mend}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: .nan", "finite"),
        ("a: -.inf", "finite"),
        ("a: 1e999", "finite"),
        ("a: 99999999999999999999", "64 bits"),
        ("a: " + "9" * 5000, "64 bits"),
        ('a: "x\\0y"', "NUL"),
        ('a: "\\ud800"', "Unicode"),
        ("a: !!python/object:os.system {}", "tag"),
        ("a: !mine x", "tag"),
        ("a: !!binary aGk=", "tag"),
        ("a: !!int twelve", "!!int"),
        ("a: !!bool 3", "!!bool"),
        ("? [1, 2]\n: x", "key"),
        ("'': x", "key"),
        ("a: {<<: 3}", "'<<'"),
    ],
)
def test_a_value_that_no_spec_can_hold_is_one_fault_among_others(text: str, words: str) -> None:
    _, faults = parse(text, "job.yaml")
    assert len(faults) == 1
    assert words in faults[0].reason
    assert faults[0].line == 1


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        (" 1e-3 ", 0.001),
        ("null", None),
        ("", None),
        ("[1, 2]", [1, 2]),
        ("{kind: sgd, lr: 1e-2}", {"kind": "sgd", "lr": 0.01}),
        ('"3"', "3"),
        ("'a: b'", "a: b"),
        ("a: b # c", "a: b # c"),
        ("*.parquet", "*.parquet"),
        ("- x", "- x"),
        ("s3://bucket/x=y", "s3://bucket/x=y"),
    ],
)
def test_the_value_of_an_override(text: str, value: object) -> None:
    assert parse_value(text, "command line") == value


@pytest.mark.parametrize("text", ["[1", "{a: 1, a: 2}", "'x", "[" * 600, "{a: .nan}", ".inf", "[1] 2"])
def test_a_broken_override_value_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        parse_value(text, "command line")


def test_values_from_python() -> None:
    plain, faults = from_python({"a": (1, 2.5), "b": {"c": Path("x/y")}, "d": None, "e": True})
    assert faults == []
    assert plain == {"a": [1, 2.5], "b": {"c": "x/y"}, "d": None, "e": True}


def test_values_from_python_that_no_spec_can_hold() -> None:
    endless: dict[str, object] = {}
    endless["a"] = endless
    for value in (
        {1: 2},
        {"a": object()},
        {"a": b"x"},
        {"a": math.nan},
        {"a": {1, 2}},
        {"a": 10**30},
        endless,
    ):
        _, faults = from_python(value)
        assert len(faults) == 1
