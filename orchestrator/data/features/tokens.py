"""Text to token ids by a vocabulary that is fitted on the training part and saved with the model.

Id 0 pads, id 1 stands for what the training part never had (or had too rarely).
Imports: numpy; the library `tokenizers` for byte-pair encoding, in `bpe`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.features import bpe
from orchestrator.errors import SourceError
from orchestrator.spec.data import Text

PADDING, UNKNOWN = 0, 1
IGNORED = -100
"""As the target of a language model: nothing is to be learned here (behind it stands padding)."""
MAX_COUNTED = 1_000_000
"""Different tokens that are counted at most; of more, the rarest are forgotten."""
FIRST_TOKEN = 2
"""The first id of a token proper."""

_WORD = re.compile(r"[^\W_]+|\S")
_CODE_POINTS = 0x110000


@dataclass(frozen=True)
class Tokenizer:
    """A fitted tokenizer. `vocabulary` holds the tokens by id, the first one's id being 2; `byte` needs none:
    its ids are the byte's value plus 2. Of `bpe` the tokens are bytes, written as characters (see `bpe`)."""

    kind: Literal["char", "byte", "word", "bpe"]
    vocabulary: tuple[str, ...] = ()
    lowercase: bool = False
    """Of words only."""
    keep_end: bool = False
    """A text that is too long keeps its last tokens, which a language model goes on from, not its first."""
    pad_start: bool = False
    """Padding stands before a text, not behind it."""
    merges: tuple[tuple[str, str], ...] = ()
    """Of `bpe`: which two tokens become one, in the order of learning."""

    @property
    def vocab_size(self) -> int:
        """Number of ids, padding and unknown included."""
        return FIRST_TOKEN + (256 if self.kind == "byte" else len(self.vocabulary))

    @property
    def dtype(self) -> np.dtype[Any]:
        """The smallest of uint8, uint16 and int32 that holds all ids."""
        largest = self.vocab_size - 1
        return np.dtype(np.uint8 if largest < 1 << 8 else np.uint16 if largest < 1 << 16 else np.int32)

    def ids(self, text: str) -> NDArray[Any]:
        """The text's token ids, all of them, shape (tokens,)."""
        return self.batch([text])[0]

    def batch(self, texts: Sequence[str]) -> list[NDArray[Any]]:
        """All token ids of each text, shape (tokens,) each."""
        if self.kind == "bpe":
            found = self._bpe.encode_batch([bpe.without_surrogates(text) for text in texts])
            return [(np.array(one.ids, np.int64) + FIRST_TOKEN).astype(self.dtype) for one in found]
        return [self._ids(text) for text in texts]

    def rows(self, texts: Sequence[str], length: int) -> NDArray[Any]:
        """Texts as they are stored: cut to `length` tokens or padded, shape (texts, length)."""
        rows = np.full((len(texts), length), PADDING, self.dtype)
        for row, ids in zip(rows, self.batch(texts), strict=True):
            kept = ids[-length:] if self.keep_end else ids[:length]
            start = length - len(kept) if self.pad_start else 0
            row[start : start + len(kept)] = kept
        return rows

    def token(self, index: int) -> str:
        """The text of a token's id; a byte that is no character by itself as `\\xe4`. Empty for 0 and 1."""
        if index < FIRST_TOKEN:
            return ""
        if self.kind == "byte":
            return bytes([index - FIRST_TOKEN]).decode("utf-8", "backslashreplace")
        token = self.vocabulary[index - FIRST_TOKEN]
        return bpe.token_bytes(token).decode("utf-8", "backslashreplace") if self.kind == "bpe" else token

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "vocabulary": list(self.vocabulary),
            "lowercase": self.lowercase,
            "keep_end": self.keep_end,
            "pad_start": self.pad_start,
            "merges": [list(pair) for pair in self.merges],
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Tokenizer:
        return cls(
            value["kind"],
            tuple(value["vocabulary"]),
            value["lowercase"],
            value["keep_end"],
            # Models that were logged before there was padding at the start, or bpe, have none of these.
            value.get("pad_start", False),
            tuple((left, right) for left, right in value.get("merges", ())),
        )

    def _ids(self, text: str) -> NDArray[Any]:
        if self.kind == "byte":
            values = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
            return np.add(values, FIRST_TOKEN, dtype=self.dtype)
        if self.kind == "char":
            code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
            return self._by_code_point[code_points]
        known = self._by_token
        return np.array([known.get(token, UNKNOWN) for token in _words(text, self.lowercase)], self.dtype)

    @cached_property
    def _bpe(self) -> Any:
        return bpe.encoder(self.vocabulary, self.merges)

    @cached_property
    def _by_token(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.vocabulary, FIRST_TOKEN)}

    @cached_property
    def _by_code_point(self) -> NDArray[Any]:
        """The id of every character there is, shape (code points,)."""
        table = np.full(_CODE_POINTS, UNKNOWN, self.dtype)
        table[[ord(token) for token in self.vocabulary]] = range(FIRST_TOKEN, self.vocab_size)
        return table


def count_tokens(section: Text, texts: Iterable[str]) -> Counter[str]:
    """How often each candidate for the vocabulary stands in the texts: characters, words, or of `bpe` the runs
    of bytes within which tokens are merged. `byte` needs none. Exact up to 1,000,000 different ones."""
    counts: Counter[str] = Counter()
    if section.tokenizer == "bpe":
        counts.update(bpe.runs(texts))
    elif section.tokenizer != "byte":
        for text in texts:
            counts.update(_words(text, section.lowercase) if section.tokenizer == "word" else text)
    return merge_counts(counts, Counter())


def merge_counts(one: Counter[str], other: Counter[str]) -> Counter[str]:
    """Both together; of more than 1,000,000 different tokens the most frequent, as `fit_vocabulary` ranks them."""
    merged = one + other
    return merged if len(merged) <= MAX_COUNTED else Counter(dict(_ranked(merged)[:MAX_COUNTED]))


def fit_vocabulary(section: Text, counts: Counter[str], *, language_model: bool = False) -> Tokenizer:
    """The tokenizer of the section with the vocabulary of these counts: the most frequent tokens first, of
    equally frequent ones the smaller text first, at most `vocab_size` ids in all.

    That of a language model keeps a long text's end and pads behind it. Raises SourceError where there is no
    token at all, and for a language model that is to pad before a text.
    """
    kind = section.tokenizer
    keep_end = language_model or section.truncate == "left"
    pad_start = section.pad == "left"
    if language_model and pad_start:
        raise SourceError(
            "data.text.pad: left, and a language model learns to go on from the beginning of a text",
            "leave pad out, or write pad: right",
        )
    if kind == "byte":
        return Tokenizer("byte", keep_end=keep_end, pad_start=pad_start)
    if not counts:
        raise SourceError(
            "data.text: the texts of the training part hold no token",
            "look at the text column and data.clean",
        )
    most = section.vocab_size - FIRST_TOKEN
    if kind == "bpe":
        vocabulary, merges = bpe.train(counts, most)
        return Tokenizer("bpe", vocabulary, keep_end=keep_end, pad_start=pad_start, merges=merges)
    kept = tuple(token for token, _ in _ranked(counts)[:most])
    return Tokenizer(kind, kept, section.lowercase and kind == "word", keep_end, pad_start)


def _ranked(counts: Counter[str]) -> list[tuple[str, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _words(text: str, lowercase: bool) -> list[str]:
    """Runs of letters and digits, and every other sign by itself; white space only parts them."""
    return _WORD.findall(text.lower() if lowercase else text)
