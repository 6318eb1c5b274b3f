from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.spec.document import Document, parse
from orchestrator.spec.environment import Substituted, escape, substitute


def filled(text: str, **environ: str) -> Substituted:
    document, faults = parse(text, "job.yaml")
    assert not faults
    return substitute(document, environ)


def test_references_anywhere_in_a_value() -> None:
    found = filled("a: ${env:X}\nb: [{c: 'pre-${env:X}-${env:Y}'}]\nd: 3\n", X="1", Y="2")
    assert found.document.values == {"a": "1", "b": [{"c": "pre-1-2"}], "d": 3}
    assert found.from_environment == {("a",), ("b", 0, "c")}
    assert found.names == ("X", "Y")
    assert found.secret_names == ()
    assert found.faults == ()


def test_defaults_stand_in_for_unset_and_empty() -> None:
    found = filled("a: ${env:X:-x}\nb: ${env:E:-e}\nc: ${env:X:-}\nd: ${env:E}\ne: ${env:X:-a:-b}", E="")
    assert found.document.values == {"a": "x", "b": "e", "c": "", "d": "", "e": "a:-b"}
    assert found.names == ("E",)


def test_variables_of_secrets_are_told_apart() -> None:
    found = filled(
        "secrets: {T: '${env:TOKEN}', U: '${env:BOTH}'}\ntags: {a: '${env:BOTH}'}", TOKEN="t", BOTH="b"
    )
    assert found.secret_names == ("BOTH", "TOKEN")
    assert found.names == ("BOTH",)


def test_a_missing_variable_is_a_fault_that_says_what_to_export() -> None:
    found = filled("name: x\nstorage: ${env:RUNS}\ntags: {a: '${env:OTHER}'}")
    assert [(fault.field, fault.line) for fault in found.faults] == [("storage", 2), ("tags.a", 3)]
    assert "export RUNS=" in found.faults[0].mend


def test_a_variable_that_is_asked_for_says_in_the_spec_s_own_words_what_to_do_without_it() -> None:
    text = "a: '${env:X:? export X=1, or a=1 (see: docs)}'\nb: '${env:X:?}'\nc: ${env:Y:?unused}"
    for environ, state in (({}, "not set"), ({"X": ""}, "empty")):
        found = filled(text, Y="y", **environ)
        assert [(fault.field, fault.reason) for fault in found.faults] == [
            (field, f"the environment variable X is {state}") for field in "ab"
        ]
        assert found.faults[0].mend == "export X=1, or a=1 (see: docs)"
        assert "export X=" in found.faults[1].mend
        assert found.document.values["c"] == "y"
    assert filled(text, X="x", Y="y").document.values == {"a": "x", "b": "x", "c": "y"}


@pytest.mark.parametrize(
    "text", ["${env:}", "${env:1X}", "${env:X", "${env:A-B}", "${env:X:-${env:Y}}", "${env:X:+x}"]
)
def test_malformed_references(text: str) -> None:
    found = filled(f"a: '{text}'", X="x", Y="y")
    assert len(found.faults) == 1
    assert "malformed" in found.faults[0].reason


def test_what_is_no_reference_stays() -> None:
    assert filled("a: '$HOME ${HOME} $${x} env:X'").document.values == {"a": "$HOME ${HOME} $${x} env:X"}
    assert filled("a: '$${env:X}'", X="1").document.values == {"a": "${env:X}"}


def test_a_value_from_the_environment_is_not_filled_in_again() -> None:
    assert filled("a: ${env:X}", X="${env:Y}").document.values == {"a": "${env:Y}"}


def test_a_variable_that_is_no_text_is_a_fault() -> None:
    assert len(filled("a: ${env:X}", X="\udcff").faults) == 1


@given(st.lists(st.sampled_from(["$", "{", "}", "env:", "X", ":-", "${env:", "$${env:", "a"])).map("".join))
def test_escaped_text_comes_back_as_it_was(text: str) -> None:
    found = substitute(Document({"a": escape(text)}, {}), {})
    assert found.faults == ()
    assert found.document.values == {"a": text}
