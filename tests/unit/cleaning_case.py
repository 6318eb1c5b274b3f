"""Clean a table that is held as a whole: the cleaning program with one chunk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.data.cleaning.cleaned import Cleaned, Fill, Filled
from orchestrator.data.cleaning.compile import compile_cleaning
from orchestrator.spec.data import CleanStep

__all__ = ["Cleaned", "Fill", "Filled", "clean", "refit_fills"]


@dataclass(frozen=True)
class CleanedWhole(Cleaned):
    """With the program and the table that it comes from."""

    origin: Any = None


def clean(
    table: pa.Table, steps: Sequence[CleanStep], *, features: Sequence[str], target: str | None
) -> CleanedWhole:
    """Apply the steps in order. A step without columns sees features and target; one that looks at numbers
    sees the numeric features. Raises SourceError for unknown or unfit columns, and where no row is left."""
    program = compile_cleaning(steps, table.schema, features, target)
    while program.pending:
        program = program.fit([program.survey(table)])
    cleaned = program.apply(table)
    program.require_rows(cleaned.report, table.num_rows)
    return CleanedWhole(**vars(cleaned), origin=(program, table))


def refit_fills(cleaned: CleanedWhole, train: NDArray[np.int64]) -> tuple[pa.Table, dict[str, Fill]]:
    """The table with gaps filled (and outliers clipped) by what its training rows teach, and the value that each
    column's gaps take. `cleaned` comes from `clean`; rows may have been dropped from it since."""
    program, table = cleaned.origin
    if not cleaned.learned:
        return cleaned.table, program.fills()
    mask = np.zeros(len(cleaned.rows), dtype=bool)
    mask[train] = True
    program, fills = program.refit([program.refit_survey(cleaned, mask)])
    whole = program.apply(table)
    return whole.keep(np.isin(whole.rows, cleaned.rows)).table, fills
