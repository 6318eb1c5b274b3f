"""Numbers that look random and are always the same, by SplitMix64 (Steele et al. 2014). Imports: numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]

STEP = np.uint64(0x9E3779B97F4A7C15)
"""What SplitMix64 adds before it mixes: the golden ratio of 2^64. `mix` alone leaves 0 as it is."""


def mix(words: Words) -> Words:
    """Each number scrambled over its 64 bits, one to one: the finaliser of SplitMix64. Any shape."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def place_keys(rows: NDArray[np.int64], *, chunk: int = 0, seed: int = 0) -> Words:
    """A key for each row by its place in the source, shape (rows,): what draws it for samples and folds.

    `rows` are the rows' numbers within the chunk, shape (rows,); no two rows of a source may share both numbers.
    Of the same row the key is the same, whatever it holds and whatever rows stand beside it.
    """
    base = mix(np.array([((seed << 32) ^ chunk) % 2**64], np.uint64) + STEP)
    return mix((base ^ rows.astype(np.uint64)) + STEP)
