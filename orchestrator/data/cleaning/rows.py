"""Steps that drop rows: with nulls, duplicates, and by a condition. Imports: numpy, pyarrow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.data.cleaning.cleaned import Cleaned, Mask
from orchestrator.data.cleaning.condition import rows_meeting
from orchestrator.data.cleaning.step import Head
from orchestrator.data.columns import null_rows
from orchestrator.data.hashing import Hashes, hash_rows_128
from orchestrator.spec.data.expression import Condition


@dataclass(frozen=True)
class NullRows:
    """Drops rows that hold a null or NaN."""

    head: Head

    def rows_kept(self, cleaned: Cleaned) -> Mask:
        keep = np.ones(len(cleaned.rows), dtype=bool)
        for name in self.head.names:
            keep &= ~null_rows(cleaned.table[name])
        return keep

    def schema_after(self, schema: pa.Schema) -> pa.Schema:
        return schema


@dataclass(frozen=True)
class FilteredRows:
    """Drops rows that do not meet a condition."""

    head: Head
    condition: Condition

    def rows_kept(self, cleaned: Cleaned) -> Mask:
        return rows_meeting(cleaned.table, self.condition, f"{self.head.place}.where")

    def schema_after(self, schema: pa.Schema) -> pa.Schema:
        return schema


@dataclass(frozen=True)
class DuplicateRows:
    """Drops rows that equal an earlier one, in whichever chunk. The survey holds 16 bytes per row, the fitted step
    one bit."""

    head: Head
    kept: tuple[NDArray[np.uint8], ...] | None = None
    """Of each chunk, one bit per row that reaches the step."""

    @property
    def pending(self) -> bool:
        return self.kept is None

    def survey(self, cleaned: Cleaned) -> Hashes:
        return hash_rows_128(cleaned.table, self.head.names)

    def fit(self, partials: Iterable[Hashes]) -> Self:
        return replace(self, kept=tuple(np.packbits(mask) for mask in first_of_equals(list(partials))))

    def rows_kept(self, cleaned: Cleaned) -> Mask:
        assert self.kept is not None
        return np.unpackbits(self.kept[cleaned.chunk], count=len(cleaned.rows)).astype(bool)

    def schema_after(self, schema: pa.Schema) -> pa.Schema:
        return schema


def first_of_equals(parts: Sequence[Hashes]) -> list[Mask]:
    """For each chunk the rows to keep: those whose hash (rows, 2) stands in no row before, over all chunks in
    order."""
    hashes = np.concatenate([np.empty((0, 2), np.uint64), *parts])
    order = np.lexsort((hashes[:, 1], hashes[:, 0]))  # stable: of equals, the first row stays first
    ordered = hashes[order]
    keep = np.ones(len(hashes), dtype=bool)
    keep[order[1:]] = (ordered[1:] != ordered[:-1]).any(axis=1)
    return np.split(keep, np.cumsum([len(part) for part in parts])[:-1]) if parts else []
