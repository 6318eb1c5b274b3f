"""What cleaning leaves of a table. Imports: numpy, pyarrow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Fill = float | int | str
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Filled:
    """Gaps of a column that were filled: by what, and in which rows of the cleaned table."""

    value: Fill
    """A constant, or how it is found: `mean`, `median` or `mode`."""
    rows: Mask


@dataclass(frozen=True)
class Learned:
    """A column as it was before the first of its steps that learn from training rows."""

    values: pa.ChunkedArray
    known: Mask
    """Where the column holds a value, and not one that an earlier step made up."""


@dataclass(frozen=True)
class Cleaned:
    """A cleaned table; `rows` are its rows' numbers in the table as it was read.

    `report` has one entry per step: `step`, `columns` (as the spec names them) and `rows`, how many rows it
    dropped or changed.
    """

    table: pa.Table
    rows: NDArray[np.int64]
    filled: Mapping[str, Filled] = field(default_factory=dict)
    report: tuple[dict[str, Any], ...] = ()
    chunk: int = 0
    """Which chunk of the source the table was read from."""
    learned: Mapping[tuple[int, str], Learned] = field(default_factory=dict, repr=False)
    """By the number of the step and the column: what `Program.refit_survey` looks at."""

    @classmethod
    def of(cls, table: pa.Table, chunk: int = 0) -> Cleaned:
        """A chunk as it was read."""
        return cls(table, np.arange(table.num_rows, dtype=np.int64), chunk=chunk)

    def keep(self, mask: Mask) -> Cleaned:
        """Only the rows where the mask is true."""
        if mask.all():
            return self
        rows = pa.array(mask)
        filled = {name: Filled(fill.value, fill.rows[mask]) for name, fill in self.filled.items()}
        learned = {
            key: Learned(column.values.filter(rows), column.known[mask])
            for key, column in self.learned.items()
        }
        return replace(
            self, table=self.table.filter(rows), rows=self.rows[mask], filled=filled, learned=learned
        )

    def put(self, name: str, column: pa.ChunkedArray | pa.Array) -> Cleaned:
        """With other values in a column."""
        place = self.table.column_names.index(name)
        return replace(self, table=self.table.set_column(place, name, column))
