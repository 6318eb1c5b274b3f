"""Byte-pair encoding against the library's own way from texts to tokens."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer

from orchestrator.data.features import bpe
from orchestrator.data.features.tokens import (
    Tokenizer,
    count_tokens,
    fit_vocabulary,
    merge_counts,
)
from orchestrator.errors import MissingPackage
from orchestrator.spec.data import Text
from tests.unit.spec_helpers import faults_of, minimal
from tests.unit.tokens_case import fit_tokenizer

WORDS = ["the", "quick", "Über", "fox", "jumps,", "over\n", "12 345", "lazy  dog", "😀", "don't", "日本語"]
RNG = np.random.default_rng(0)
TEXTS = [" ".join(RNG.choice(WORDS, RNG.integers(1, 30))) for _ in range(80)]
SECTION = Text(tokenizer="bpe", vocab_size=300)
FITTED = fit_tokenizer(SECTION, TEXTS)


def _told(tokenizer: Tokenizer, text: str) -> bytes:
    return b"".join(
        bpe.token_bytes(tokenizer.vocabulary[index - 2]) for index in tokenizer.ids(text).tolist()
    )


def test_merges_and_tokens_are_the_librarys_own() -> None:
    theirs = ByteLevelBPETokenizer()
    theirs.train_from_iterator(TEXTS, vocab_size=298, min_frequency=2, show_progress=False)
    model = json.loads(theirs.to_str())["model"]
    assert [list(pair) for pair in FITTED.merges] == model["merges"]
    assert {token: index for index, token in enumerate(FITTED.vocabulary)} == model["vocab"]
    assert FITTED.vocab_size == 300
    for text in [*TEXTS, "a new text, the fox"]:
        assert (FITTED.ids(text) - 2).tolist() == theirs.encode(text).ids


@given(st.text(max_size=30))
@settings(max_examples=200, deadline=None)
def test_no_text_is_unknown(text: str) -> None:
    assert _told(FITTED, text) == text.encode("utf-8", "replace")
    assert FITTED.dtype == np.uint16


def test_frequent_words_are_one_token() -> None:
    fitted = fit_tokenizer(Text(tokenizer="bpe"), TEXTS)
    told = [fitted.token(index) for index in fitted.ids("the quick dog").tolist()]
    assert told == ["the", " quick", " dog"]
    assert FITTED.token(0) == FITTED.token(1) == ""
    assert FITTED.token(FITTED.ids("ä")[0]) == "\\xc3"


def test_what_is_learned_depends_neither_on_chunks_nor_on_order() -> None:
    counts = [count_tokens(SECTION, TEXTS[start : start + 7]) for start in range(0, len(TEXTS), 7)]
    merged = counts[-1]
    for one in reversed(counts[:-1]):
        merged = merge_counts(one, merged)
    assert fit_vocabulary(SECTION, merged) == FITTED
    script = (
        "import json, sys; from orchestrator.data.features.tokens import count_tokens, fit_vocabulary;"
        "from orchestrator.spec.data import Text;"
        "texts = json.load(sys.stdin)[::-1];"
        "section = Text(tokenizer='bpe', vocab_size=300)\n"
        "print(json.dumps(fit_vocabulary(section, count_tokens(section, texts)).to_dict()))"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", script],
            input=json.dumps(TEXTS),
            env={**os.environ, "PYTHONHASHSEED": seed, "TOKENIZERS_PARALLELISM": "false"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert Tokenizer.from_dict(json.loads(done.stdout)) == FITTED


def test_runs_that_are_more_frequent_than_a_line_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bpe, "_REPEATED", 3)
    assert fit_tokenizer(SECTION, TEXTS) == FITTED


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingPackage, match=r"bpe needs the package 'tokenizers'.*ray-orchestrator\[text\]"):
        fit_tokenizer(SECTION, TEXTS)


def test_every_byte_has_an_id() -> None:
    source = {"source": {"kind": "text", "path": "a.txt"}, "target": "y"}
    faults = faults_of(minimal(data=source | {"text": {"tokenizer": "bpe", "vocab_size": 257}}))
    assert any("at least 258" in str(fault) for fault in faults.values())
