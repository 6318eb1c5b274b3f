from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.spec import load_spec, redact, render, secret_values, to_plain
from orchestrator.spec.document import parse
from tests.unit.spec_helpers import FULL_YAML, MINIMAL, minimal


@pytest.fixture
def full(tmp_path: Path) -> Path:
    path = tmp_path / "full.yaml"
    path.write_text(FULL_YAML)
    return path


def test_the_rendered_text_loads_to_an_equal_spec(full: Path, tmp_path: Path) -> None:
    for source in (full, MINIMAL):
        spec = load_spec(source).spec
        again = tmp_path / "again.yaml"
        again.write_text(render(spec))
        reloaded = load_spec(again).spec
        assert reloaded.model_copy(update={"secrets": spec.secrets}) == spec
        assert set(reloaded.secrets) == set(spec.secrets)
        assert render(reloaded) == render(spec)


def test_every_field_is_written_in_the_order_of_the_models() -> None:
    spec = load_spec(MINIMAL).spec
    written = yaml.safe_load(render(spec))
    assert list(written) == list(type(spec).model_fields)
    for name in ("data", "train", "resources", "runtime_env", "checkpoint", "failure", "mlflow"):
        assert list(written[name]) == list(type(getattr(spec, name)).model_fields)


def test_secrets_are_masked_everywhere(full: Path) -> None:
    spec = load_spec(full).spec
    assert to_plain(spec)["secrets"] == {"TOKEN": "***"}
    assert to_plain(spec, with_secrets=True)["secrets"] == {"TOKEN": "correct horse"} == secret_values(spec)
    for text in (render(spec), json.dumps(to_plain(spec)), repr(spec), str(spec), spec.model_dump_json()):
        assert "correct" not in text


def test_redact_masks_a_secret_in_any_writing() -> None:
    secret = 'pass"wörd\\\n'
    text = f"raw {secret} json {json.dumps(secret)} repr {secret!r}"
    assert redact(text, [secret, "", "other"]) == "raw *** json \"***\" repr '***'"
    assert redact("longest first: abcdef abcd", ["abcd", "abcdef"]) == "longest first: *** ***"
    assert redact("nothing", []) == "nothing"


def test_text_that_looks_like_a_reference_stays_text(tmp_path: Path) -> None:
    spec = load_spec(minimal(description="write $${env:HOME} and $$${env:HOME}")).spec
    assert spec.description == "write ${env:HOME} and $${env:HOME}"
    path = tmp_path / "again.yaml"
    path.write_text(render(spec))
    assert load_spec(path).spec.description == spec.description


AWKWARD = [
    "yes", "1e-3", "010", "2026-11-01", "12:30", "~", "", "***", "a: b", "- x", "# no", "1_000", ".inf",
    "<<", "=", "null", "\x85", "\u2028", " x ", "a\nb\n", "\t", "\r\n", "\ufeff", "{", "*x", "&x", "!x", "%x",
]  # fmt: skip
texts = st.one_of(
    st.sampled_from(AWKWARD), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
)
plain_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts.filter(bool), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    args=st.dictionaries(st.text(string.ascii_lowercase, min_size=1), plain_values, max_size=3),
    tags=st.dictionaries(texts.filter(bool), texts, max_size=3),
)
def test_whatever_a_spec_holds_survives_rendering(args: dict[str, object], tags: dict[str, str]) -> None:
    source = minimal(tags={key: value.replace("${env:", "") for key, value in tags.items()})
    source["model"]["args"] = json.loads(json.dumps(args).replace("${env:", ""))
    spec = load_spec(source).spec
    document, faults = parse(render(spec), "rendered")
    assert faults == []
    assert load_spec(document.values).spec == spec
    assert repr(load_spec(document.values).spec.model.args) == repr(spec.model.args)
