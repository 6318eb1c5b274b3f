"""Steps that drop rows: with nulls, duplicates, and by a condition. Imports: numpy, pyarrow."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.data.cleaning.cleaned import Cleaned, Mask
from orchestrator.data.cleaning.condition import rows_meeting
from orchestrator.data.cleaning.hashing import Hashes, first_of_equals, hash_rows
from orchestrator.data.cleaning.step import Head
from orchestrator.data.columns import null_rows
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
        return hash_rows(cleaned.table, self.head.names)

    def fit(self, partials: Iterable[Hashes]) -> Self:
        return replace(self, kept=tuple(np.packbits(mask) for mask in first_of_equals(list(partials))))

    def rows_kept(self, cleaned: Cleaned) -> Mask:
        assert self.kept is not None
        return np.unpackbits(self.kept[cleaned.chunk], count=len(cleaned.rows)).astype(bool)

    def schema_after(self, schema: pa.Schema) -> pa.Schema:
        return schema
