"""Byte-level byte-pair encoding (Sennrich et al. 2016; on bytes as in GPT-2) by the library `tokenizers`.

The library learns and applies the merges; what is saved is only the vocabulary and the merges, so that a model
does not depend on the library's own file format. A byte is written as one visible character, in GPT-2's way.
Imports: the library, inside functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import chain
from typing import Any

from orchestrator.imports import import_optional

MIN_PAIRS = 2
"""A pair of tokens must stand so often in the training part to be merged."""

_REPEATED = 10_000
"""Occurrences of a run that are written into one line."""


def runs(texts: Iterable[str]) -> Iterator[str]:
    """The runs of letters, of digits, of signs and of white space (with one space before each) into which GPT-2
    cuts texts, and within which tokens are merged; a character per byte."""
    cut = _library().pre_tokenizers.ByteLevel(add_prefix_space=False)
    for text in texts:
        yield from (run for run, _ in cut.pre_tokenize_str(without_surrogates(text)))


def train(counts: Mapping[str, int], vocab_size: int) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The vocabulary in the order of its ids, all 256 bytes first, and the merges; of runs with their counts.

    The same counts give the same result, in whatever order they are.
    """
    import json

    library = _library()
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = (
        library.pre_tokenizers.WhitespaceSplit()
    )  # no run holds a space: it is a character too
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_PAIRS,
        initial_alphabet=sorted(_characters()),
        show_progress=False,
    )
    # The library counts by itself and takes no counts.
    lines = (
        " ".join([run] * min(_REPEATED, count - done))
        for run, count in sorted(counts.items())
        for done in range(0, count, _REPEATED)
    )
    tokenizer.train_from_iterator(lines, trainer)
    learned = json.loads(tokenizer.to_str())["model"]
    vocabulary = tuple(sorted(learned["vocab"], key=learned["vocab"].__getitem__))
    return vocabulary, tuple((left, right) for left, right in learned["merges"])


def encoder(vocabulary: Sequence[str], merges: Sequence[tuple[str, str]]) -> Any:
    """The library's tokenizer, whose ids are positions in the vocabulary."""
    library = _library()
    ids = {token: index for index, token in enumerate(vocabulary)}
    tokenizer = library.Tokenizer(library.models.BPE(vocab=ids, merges=list(merges)))
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


def token_bytes(token: str) -> bytes:
    """The bytes that a token stands for."""
    known = _characters()
    return bytes(known[character] for character in token)


def without_surrogates(text: str) -> str:
    """Halves of surrogate pairs, which are no text, become question marks: the library takes UTF-8 only."""
    return text.encode("utf-8", "replace").decode("utf-8")


@cache
def _characters() -> dict[str, int]:
    """The byte that each character stands for: printable Latin-1 for itself, others from U+0100 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    written = chain(
        ((chr(byte), byte) for byte in plain), ((chr(256 + i), byte) for i, byte in enumerate(others))
    )
    return dict(written)


def _library() -> Any:
    return import_optional("tokenizers", extra="text", purpose="data.text.tokenizer: bpe")
