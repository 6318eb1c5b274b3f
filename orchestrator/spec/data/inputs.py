"""How images and texts become arrays of a fixed shape."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.spec.base import Section

Pixels = Annotated[int, Field(ge=1, le=4096)]


class Image(Section):
    """How encoded images are decoded. Arrays of a fixed shape need none of it."""

    size: tuple[Pixels, Pixels] = Field(default=(32, 32), strict=False)
    """Height and width in pixels that every image is resized to."""
    mode: Literal["rgb", "grayscale"] = "rgb"


class Text(Section):
    """How a column of text becomes token ids. Id 0 pads, id 1 stands for what the training part never had."""

    tokenizer: Literal["char", "byte", "word"] = "word"
    """`word`: runs of letters and digits, and single other signs; white space only parts them. `byte`: of the
    UTF-8 text, always with 258 ids."""
    length: int = Field(default=128, ge=1)
    """Tokens per sample: longer texts are cut, shorter ones padded. A language model reads texts as one
    stream, cut into samples of this length."""
    vocab_size: int = Field(default=20_000, ge=3)
    """The most frequent tokens of the training part are kept, with the ids 0 and 1 at most so many."""
    lowercase: bool = True
    """word only: `The` and `the` are one token."""
