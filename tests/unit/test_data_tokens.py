"""Tokenizers against a plain reading of their definition, and the stream that a language model learns from."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.features import tokens
from orchestrator.data.features.documents import Piece, cut_samples, joined, part_documents
from orchestrator.data.features.tokens import (
    Tokenizer,
    count_tokens,
    fit_vocabulary,
    merge_counts,
)
from orchestrator.errors import SourceError
from orchestrator.spec.data import Split, Text
from tests.unit.tokens_case import fit_tokenizer

TEXTS = st.lists(st.text(st.sampled_from("abcABC 1_é😀\n.,"), max_size=40), min_size=1, max_size=6)
KINDS = ["char", "byte", "word"]


def _naive_tokens(text: str, kind: str, lowercase: bool) -> list[str]:
    if kind == "char":
        return list(text)
    tokens, run = [], ""
    for sign in [*(text.lower() if lowercase else text), " "]:
        if sign.isalnum():
            run += sign
            continue
        tokens += [run] if run else []
        tokens += [sign] if not sign.isspace() else []
        run = ""
    return tokens


def _naive_rows(texts: list[str], train: list[str], section: Text) -> list[list[int]]:
    if section.tokenizer == "byte":
        ids = [[byte + 2 for byte in text.encode()] for text in texts]
    else:
        cut = [_naive_tokens(text, section.tokenizer, section.lowercase) for text in texts]
        known = [
            token for text in train for token in _naive_tokens(text, section.tokenizer, section.lowercase)
        ]
        ranked = sorted(Counter(known).items(), key=lambda item: (-item[1], item[0]))
        index = {token: i + 2 for i, (token, _) in enumerate(ranked[: section.vocab_size - 2])}
        ids = [[index.get(token, 1) for token in tokens] for tokens in cut]
    return [(row + [0] * section.length)[: section.length] for row in ids]


@pytest.mark.parametrize("kind", KINDS)
@given(train=TEXTS, more=TEXTS, vocab_size=st.integers(3, 12), lowercase=st.booleans())
@settings(max_examples=60, deadline=None)
def test_rows_are_those_of_the_definition(
    kind: str, train: list[str], more: list[str], vocab_size: int, lowercase: bool
) -> None:
    section = Text(tokenizer=kind, length=12, vocab_size=vocab_size, lowercase=lowercase)  # type: ignore[arg-type]
    texts = ["x", *train]
    tokenizer = fit_tokenizer(section, texts)
    parted = merge_counts(count_tokens(section, texts[:2]), count_tokens(section, texts[2:]))
    assert fit_vocabulary(section, parted) == tokenizer
    rows = tokenizer.rows([*texts, *more], 12)
    assert rows.tolist() == _naive_rows([*texts, *more], texts, section)
    assert tokenizer.vocab_size <= max(vocab_size, 258 if kind == "byte" else 0)
    copy = Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict())))
    assert copy == tokenizer
    assert np.array_equal(copy.rows(more, 12), rows[len(texts) :])


@pytest.mark.parametrize(
    ("tokens", "dtype"), [(254, np.uint8), (255, np.uint16), (65534, np.uint16), (65535, np.int32)]
)
def test_ids_are_stored_as_small_as_they_fit(tokens: int, dtype: type) -> None:
    tokenizer = Tokenizer("word", tuple(f"w{i}" for i in range(tokens)))
    rows = tokenizer.rows([f"w{tokens - 1} new"], 3)
    assert rows.dtype == dtype
    assert rows.tolist() == [[tokens + 1, 1, 0]]


def test_tokens_have_their_text_back() -> None:
    text = "Ärger, 2 mal 2!\n"
    for kind in ("char", "byte"):
        tokenizer = fit_tokenizer(Text(tokenizer=kind), [text])
        told = "".join(tokenizer.token(index) for index in tokenizer.ids(text).tolist())
        assert told == (text if kind == "char" else "\\xc3\\x84" + text[1:])
    words = fit_tokenizer(Text(lowercase=False), [text])
    assert [words.token(index) for index in words.ids(text).tolist()] == ["Ärger", ",", "2", "mal", "2", "!"]
    assert words.token(0) == words.token(1) == ""


def test_the_end_that_is_kept() -> None:
    section = Text(tokenizer="char")
    first, last = fit_tokenizer(section, ["abcd"]), fit_tokenizer(section, ["abcd"], language_model=True)
    assert first.rows(["abcd", "a"], 2).tolist() == [[2, 3], [2, 0]]
    assert last.rows(["abcd", "a"], 2).tolist() == [[4, 5], [2, 0]]


@pytest.mark.parametrize("kind", [*KINDS, "bpe"])
@pytest.mark.parametrize(
    ("pad", "truncate", "expected"),
    [
        ("right", "right", [[0, 1], [0, None]]),
        ("left", "right", [[0, 1], [None, 0]]),
        ("right", "left", [[2, 3], [0, None]]),
        ("left", "left", [[2, 3], [None, 0]]),
    ],
)
def test_either_end_is_padded_or_cut(
    kind: str, pad: str, truncate: str, expected: list[list[int | None]]
) -> None:
    section = Text.model_validate({"tokenizer": kind, "pad": pad, "truncate": truncate})
    tokenizer = fit_tokenizer(section, ["a ; 5 b"])
    ids = tokenizer.ids("a;5.")
    assert len(ids) == 4
    rows = tokenizer.rows(["a;5.", "a"], 2)
    assert rows.tolist() == [[0 if at is None else int(ids[at]) for at in row] for row in expected]
    assert Tokenizer.from_dict(json.loads(json.dumps(tokenizer.to_dict()))) == tokenizer


def test_tokenizers_of_older_models_still_load() -> None:
    tokenizer = fit_tokenizer(Text(tokenizer="word"), ["a b"])
    old = {name: value for name, value in tokenizer.to_dict().items() if name not in ("pad_start", "merges")}
    assert Tokenizer.from_dict(old) == tokenizer


def test_tokens_of_more_texts_than_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MAX_COUNTED", 3)
    section = Text(tokenizer="char")
    merged = merge_counts(count_tokens(section, ["aaabbc"]), count_tokens(section, ["aaddde"]))
    assert merged == {"a": 5, "d": 3, "b": 2}
    assert fit_vocabulary(section, merged).vocabulary == ("a", "d", "b")


def test_texts_without_a_token_teach_nothing() -> None:
    with pytest.raises(SourceError, match="no token"):
        fit_tokenizer(Text(), [" ", "\n"])


SPLIT = Split(train=0.6, val=0.2, test=0.2)


def test_few_documents_are_parted_by_position() -> None:
    texts = ["0123456789" * 3, "abcdefghij"]
    parts = part_documents(texts, SPLIT, None)
    for row, text in enumerate(texts):
        pieces = [
            piece.text for name in ("train", "val", "test") for piece in parts[name] if piece.row == row
        ]
        assert "".join(pieces) == text
        assert [len(piece) / len(text) for piece in pieces] == pytest.approx([0.6, 0.2, 0.2])


def test_documents_of_known_parts_stay_whole() -> None:
    texts = [f"text {i}" for i in range(20)]
    codes = np.array([0, 1, 2, 0] * 5, np.int8)
    parts = part_documents(texts, SPLIT, codes)
    assert {name: len(pieces) for name, pieces in parts.items()} == {"train": 10, "val": 5, "test": 5}
    assert sorted(piece.row for pieces in parts.values() for piece in pieces) == list(range(20))
    assert all(piece.text == texts[piece.row] for pieces in parts.values() for piece in pieces)
    assert [piece.row for piece in parts["val"]] == [1, 5, 9, 13, 17]


@given(st.lists(st.text("ab\n", max_size=9), max_size=5), st.integers(1, 7))
@settings(max_examples=100, deadline=None)
def test_samples_tile_the_stream(texts: list[str], length: int) -> None:
    tokenizer = fit_tokenizer(Text(tokenizer="char"), ["aab\n"])
    pieces = [Piece(10 + row, text) for row, text in enumerate(texts)]
    samples = cut_samples(pieces, tokenizer, length)
    stream = "".join(joined(pieces))
    assert stream == "\n".join(texts)
    assert len(samples.features) == max(0, len(stream) - 1) // length
    for i, (features, targets, row) in enumerate(
        zip(samples.features, samples.targets, samples.rows, strict=True)
    ):
        start = i * length
        assert "".join(map(tokenizer.token, features.tolist())) == stream[start : start + length]
        assert "".join(map(tokenizer.token, targets.tolist())) == stream[start + 1 : start + length + 1]
        assert row == 10 + sum(end <= start for end in np.cumsum([len(text) for text in joined(pieces)]))
