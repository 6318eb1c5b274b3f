"""How images and texts become arrays of a fixed shape."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from orchestrator.spec.base import Section

Pixels = Annotated[int, Field(ge=1, le=4096)]
BYTE_IDS = 258


class Image(Section):
    """How encoded images are decoded. Arrays of a fixed shape need none of it."""

    size: tuple[Pixels, Pixels] = Field(default=(32, 32), strict=False)
    """Height and width in pixels that every image is resized to."""
    mode: Literal["rgb", "grayscale"] = "rgb"


class Text(Section):
    """How a column of text becomes token ids. Id 0 pads, id 1 stands for what the training part never had."""

    tokenizer: Literal["char", "byte", "word", "bpe"] = "word"
    """`word`: runs of letters and digits, and single other signs; white space only parts them. `byte`: of the
    UTF-8 text, always with 258 ids. `bpe`: frequent strings of bytes, found by byte-pair encoding; no text is
    unknown to it (needs the extra `text`)."""
    length: int = Field(default=128, ge=1)
    """Tokens per sample: longer texts are cut, shorter ones padded. A language model reads texts as one
    stream, cut into samples of this length, unless `pack` is false."""
    vocab_size: int = Field(default=20_000, ge=3)
    """The most frequent tokens of the training part are kept, with the ids 0 and 1 at most so many."""
    lowercase: bool = True
    """word only: `The` and `the` are one token."""
    pad: Literal["right", "left"] = "right"
    """Where padding stands; that of a language model only at the right."""
    truncate: Literal["right", "left"] = "right"
    """Which end of a text is cut off that is too long. For prediction, a language model always goes on from the
    text's end."""
    pack: bool = True
    """Language models: true reads all texts as one stream without padding; false makes one sample of each text,
    padded or cut, and learns nothing from padding."""

    @model_validator(mode="after")
    def _bytes_fit(self) -> Self:
        if self.tokenizer == "bpe" and self.vocab_size < BYTE_IDS:
            raise ValueError(f"vocab_size must be at least {BYTE_IDS} for bpe: two ids and one for each byte")
        return self
