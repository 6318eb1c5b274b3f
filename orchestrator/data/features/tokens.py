"""Text to token ids by a vocabulary that is fitted on the training part and saved with the model.

Id 0 pads, id 1 stands for what the training part never had (or had too rarely). Imports: numpy.
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

from orchestrator.errors import SourceError
from orchestrator.spec.data import Text

PADDING, UNKNOWN = 0, 1
FIRST_TOKEN = 2
"""The first id of a token proper."""

_WORD = re.compile(r"[^\W_]+|\S")
_CODE_POINTS = 0x110000


@dataclass(frozen=True)
class Tokenizer:
    """A fitted tokenizer. `vocabulary` holds the tokens by id, the first one's id being 2; `byte` needs none:
    its ids are the byte's value plus 2."""

    kind: Literal["char", "byte", "word"]
    vocabulary: tuple[str, ...] = ()
    lowercase: bool = False
    """Of words only."""
    keep_end: bool = False
    """A text that is too long keeps its last tokens, which a language model goes on from, not its first."""

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
        if self.kind == "byte":
            values = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8)
            return np.add(values, FIRST_TOKEN, dtype=self.dtype)
        if self.kind == "char":
            code_points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
            return self._by_code_point[code_points]
        known = self._by_token
        return np.array([known.get(token, UNKNOWN) for token in _words(text, self.lowercase)], self.dtype)

    def rows(self, texts: Sequence[str], length: int) -> NDArray[Any]:
        """Texts as they are stored: cut to `length` tokens, or padded at their end; shape (texts, length)."""
        rows = np.full((len(texts), length), PADDING, self.dtype)
        for row, text in zip(rows, texts, strict=True):
            ids = self.ids(text)
            kept = ids[-length:] if self.keep_end else ids[:length]
            row[: len(kept)] = kept
        return rows

    def token(self, index: int) -> str:
        """The text of a token's id; a byte that is no character by itself as `\\xe4`. Empty for 0 and 1."""
        if index < FIRST_TOKEN:
            return ""
        if self.kind == "byte":
            return bytes([index - FIRST_TOKEN]).decode("utf-8", "backslashreplace")
        return self.vocabulary[index - FIRST_TOKEN]

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "vocabulary": list(self.vocabulary),
            "lowercase": self.lowercase,
            "keep_end": self.keep_end,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Tokenizer:
        return cls(value["kind"], tuple(value["vocabulary"]), value["lowercase"], value["keep_end"])

    @cached_property
    def _by_token(self) -> dict[str, int]:
        return {token: index for index, token in enumerate(self.vocabulary, FIRST_TOKEN)}

    @cached_property
    def _by_code_point(self) -> NDArray[Any]:
        """The id of every character there is, shape (code points,)."""
        table = np.full(_CODE_POINTS, UNKNOWN, self.dtype)
        table[[ord(token) for token in self.vocabulary]] = range(FIRST_TOKEN, self.vocab_size)
        return table


def fit_tokenizer(section: Text, texts: Iterable[str], *, keep_end: bool = False) -> Tokenizer:
    """The tokenizer of the section with the vocabulary of these texts: the most frequent tokens first, of
    equally frequent ones the smaller text first, at most `vocab_size` ids in all.

    Raises SourceError where the texts hold no token at all.
    """
    if section.tokenizer == "byte":
        return Tokenizer("byte", keep_end=keep_end)
    counts: Counter[str] = Counter()
    lowercase = section.lowercase and section.tokenizer == "word"
    for text in texts:
        counts.update(_words(text, lowercase) if section.tokenizer == "word" else text)
    if not counts:
        raise SourceError(
            "data.text: the texts of the training part hold no token",
            "look at the text column and data.clean",
        )
    ranked = sorted(counts, key=lambda token: (-counts[token], token))
    kept = tuple(ranked[: section.vocab_size - FIRST_TOKEN])
    return Tokenizer(section.tokenizer, kept, lowercase, keep_end)


def _words(text: str, lowercase: bool) -> list[str]:
    """Runs of letters and digits, and every other sign by itself; white space only parts them."""
    return _WORD.findall(text.lower() if lowercase else text)
