"""Documents to samples of a language model: part them, then join each part into one stream of tokens and cut it,
or take each document by itself.

Imports: numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.features.tokens import IGNORED, PADDING, Tokenizer
from orchestrator.data.splitting.rows import PARTS
from orchestrator.errors import SourceError
from orchestrator.spec.data import Split, Text

FEW_DOCUMENTS = 20
"""With fewer, every document gives a piece to every part: whole ones would make parts of chance sizes."""


class Piece(NamedTuple):
    """A document or a contiguous piece of it; `row` is the document's number."""

    row: int
    text: str


@dataclass(frozen=True)
class Samples:
    """Samples of tokens; `targets` are the `features` one token later, both (samples, length), and IGNORED where
    that is padding. `rows` (samples,) are the documents in which the samples begin."""

    features: NDArray[Any]
    targets: NDArray[Any]
    rows: NDArray[np.int64]


def part_documents(
    texts: Sequence[str], split: Split, parts: NDArray[np.int8] | None
) -> dict[str, list[Piece]]:
    """The pieces of each part, in the order of the documents: whole documents where `parts` (documents,) says
    which part each is in; with None every one is cut by position (counted in characters), train first, then val,
    then test."""
    pieces: dict[str, list[Piece]] = {name: [] for name in PARTS}
    if parts is not None:
        for code, name in enumerate(PARTS):
            pieces[name] = [Piece(row, texts[row]) for row in np.flatnonzero(parts == code).tolist()]
        return pieces
    ends = np.cumsum([split.train, split.val, split.test])
    for row, text in enumerate(texts):
        start = 0
        for name, end in zip(PARTS, ends, strict=True):
            stop = round(end * len(text))
            if stop > start:
                pieces[name].append(Piece(row, text[start:stop]))
            start = stop
    return pieces


def joined(pieces: Sequence[Piece]) -> list[str]:
    """The texts of the pieces, each but the last with a newline at its end: the one separator between
    documents. Words are parted by it; for characters and bytes it is a token as any other."""
    return [f"{piece.text}\n" for piece in pieces[:-1]] + [piece.text for piece in pieces[-1:]]


def fitting_texts(pieces: Sequence[Piece], section: Text) -> list[str]:
    """What the tokenizer is fitted on: the texts as the samples have them."""
    return joined(pieces) if section.pack else [piece.text for piece in pieces]


def make_samples(pieces: Sequence[Piece], tokenizer: Tokenizer, section: Text) -> Samples:
    """The samples of a part, of `section.length` tokens: packed into a stream, or one for each piece."""
    if section.pack:
        return cut_samples(pieces, tokenizer, section.length)
    return piece_samples(pieces, tokenizer, section.length, keep_end=section.truncate == "left")


def cut_samples(pieces: Sequence[Piece], tokenizer: Tokenizer, length: int) -> Samples:
    """All samples of `length` tokens that follow each other in the stream of the pieces; the last token of
    one sample's targets is the first of the next one's features. What is left at the end is dropped."""
    ids = tokenizer.batch(joined(pieces))
    stream = np.concatenate([np.empty(0, tokenizer.dtype), *ids])
    count = max(0, len(stream) - 1) // length
    used = count * length
    begins = np.cumsum([0, *map(len, ids)])[:-1]
    first = np.searchsorted(begins, np.arange(0, used, length), side="right") - 1
    return Samples(
        stream[:used].reshape(count, length),
        stream[1 : used + 1].reshape(count, length),
        np.array([piece.row for piece in pieces], np.int64)[first],
    )


def piece_samples(
    pieces: Sequence[Piece], tokenizer: Tokenizer, length: int, *, keep_end: bool = False
) -> Samples:
    """A sample for each piece of two tokens or more, padded behind its end. Of one with more than `length` + 1
    tokens the first ones are kept, or with `keep_end` the last."""
    tokens = tokenizer.batch([piece.text for piece in pieces])
    used = [(piece.row, ids) for piece, ids in zip(pieces, tokens, strict=True) if len(ids) > 1]
    features = np.full((len(used), length), PADDING, tokenizer.dtype)
    # Wide enough for the ids and for IGNORED.
    targets = np.full(
        features.shape, IGNORED, np.int16 if tokenizer.vocab_size <= np.iinfo(np.int16).max else np.int32
    )
    for sample, (_, ids) in enumerate(used):
        kept = ids[-length - 1 :] if keep_end else ids[: length + 1]
        features[sample, : len(kept) - 1] = kept[:-1]
        targets[sample, : len(kept) - 1] = kept[1:]
    return Samples(features, targets, np.array([row for row, _ in used], np.int64))


def require_samples(counts: Mapping[str, int], split: Split, section: Text) -> None:
    """Raises SourceError where a part that should have samples has none; `counts` are those of each part."""
    needed = section.length + 1 if section.pack else 2
    for name, count in counts.items():
        wanted = getattr(split, name) > 0 and (split.kind != "given" or name == "train")
        if wanted and not count:
            raise SourceError(
                f"data.split: the {name} part holds fewer than the {needed} tokens of one sample",
                f"give more text, lower data.text.length, or change data.split.{name}",
            )
