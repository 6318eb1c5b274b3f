"""Figures of columns in bounded memory, which merge: of chunks seen apart they give what one look would.

Each has `of(...)`, which looks at one chunk, and `merge(other)`, which may be called in any order of brackets.
Imports: numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.hashing import Hashes

MAX_VALUES = 1000
"""Distinct values that are counted one by one; of more, the most frequent of each chunk are."""
MAX_DISTINCT = 10_000
"""Up to so many distinct values are counted exactly; more are estimated, within 1% or so."""
MAX_ROWS = 250_000
"""Up to so many distinct rows are compared for duplicates; of more, a sample by their hashes is."""


@dataclass(frozen=True)
class Distinct:
    """How many distinct values there are, by the smallest of their hashes (Bar-Yossef et al. 2002)."""

    hashes: Hashes = field(default_factory=lambda: np.zeros(0, np.uint64))
    exact: bool = True

    @classmethod
    def of(cls, hashes: Hashes) -> Distinct:
        """Of hashed values, of which 0 stands for a null."""
        return cls._smallest(hashes[hashes != 0], True)

    def merge(self, other: Distinct) -> Distinct:
        return self._smallest(np.concatenate([self.hashes, other.hashes]), self.exact and other.exact)

    @classmethod
    def _smallest(cls, hashes: Hashes, exact: bool) -> Distinct:
        hashes = np.sort(hashes)  # twenty times as fast as np.unique, which builds a hash table
        hashes = hashes[np.append(True, hashes[1:] != hashes[:-1])[: len(hashes)]]
        return cls(hashes[:MAX_DISTINCT], exact and len(hashes) <= MAX_DISTINCT)

    @property
    def count(self) -> int:
        if self.exact:
            return len(self.hashes)
        return round((len(self.hashes) - 1) / (float(self.hashes[-1]) / 2.0**64))


@dataclass(frozen=True)
class Values:
    """How often each value stands, by its text. Where not `complete`, rare values are missing, and frequent ones
    may be counted too low."""

    counts: Mapping[str, int] = field(default_factory=dict)
    complete: bool = True

    @classmethod
    def of(cls, counts: Mapping[str, int], complete: bool = True) -> Values:
        if len(counts) <= MAX_VALUES:
            return cls(dict(counts), complete)
        kept = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:MAX_VALUES]
        return cls(dict(kept), False)

    def merge(self, other: Values) -> Values:
        counts = dict(self.counts)
        for value, count in other.counts.items():
            counts[value] = counts.get(value, 0) + count
        return self.of(counts, self.complete and other.complete)

    def top(self, number: int) -> tuple[tuple[str, int], ...]:
        """The most frequent values, equal ones by their text."""
        return tuple(sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))[:number])


@dataclass(frozen=True)
class Rows:
    """The distinct rows by 128 bits of hash, and how many of each part there are: `hashes` (n, 2), `counts` (n, 3).

    With more than MAX_ROWS of them, only those whose first hash is below 2^(64 − level) are kept. All copies of a
    row have the same hash, so that the duplicates among the rows that are kept are complete.
    """

    hashes: Hashes = field(default_factory=lambda: np.zeros((0, 2), np.uint64))
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 3), np.int64))
    level: int = 0

    @classmethod
    def of(cls, hashes: Hashes, parts: NDArray[np.int8]) -> Rows:
        """`parts` (rows,) are 0, 1 or 2."""
        counts = np.zeros((len(parts), 3), np.int64)
        counts[np.arange(len(parts)), parts] = 1
        return cls._kept(hashes, counts, 0)

    def merge(self, other: Rows) -> Rows:
        hashes = np.concatenate([self.hashes, other.hashes])
        counts = np.concatenate([self.counts, other.counts])
        return self._kept(hashes, counts, max(self.level, other.level))

    @classmethod
    def _kept(cls, hashes: Hashes, counts: NDArray[np.int64], level: int) -> Rows:
        order = np.lexsort((hashes[:, 1], hashes[:, 0]))
        hashes, counts = hashes[order], counts[order]
        if len(hashes):
            begins = np.flatnonzero(np.append(True, (hashes[1:] != hashes[:-1]).any(axis=1)))
            hashes, counts = hashes[begins], np.add.reduceat(counts, begins)
        while True:
            kept = len(hashes)
            if level:
                kept = int(np.searchsorted(hashes[:, 0], np.uint64(1 << (64 - level))))
            if kept <= MAX_ROWS:
                return cls(hashes[:kept], counts[:kept], level)
            level += 1
