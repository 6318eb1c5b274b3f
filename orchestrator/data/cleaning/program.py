"""The cleaning steps of a spec as a program that runs chunk by chunk, on any machine. Imports: numpy, pyarrow.

    program = compile_cleaning(section.clean, schema, features, target)
    while program.pending:                                             # one pass over the chunks for each such step
        program = program.fit(program.survey(table, n) for n, table in enumerate(chunks))
    cleaned = [program.apply(table, n) for n, table in enumerate(chunks)]
    ...                                                                # the split says which rows train
    program, fills = program.refit(program.refit_survey(c, train) for c, train in zip(cleaned, trains))

What fills gaps and clips outliers must not look at validation and test rows, yet cleaning comes before the split.
So it is provisional at first: over all rows, to let later steps decide which rows stay. `refit` learns it anew
from the training rows; the rows that stay remain the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.data.cleaning.cleaned import Cleaned, Fill, Mask
from orchestrator.data.cleaning.fills import ForwardFill, GapFill, find_fill, remember, survey_known
from orchestrator.data.cleaning.outliers import Bounds, Clip, OutlierRows, clipped, find_bounds
from orchestrator.data.cleaning.rows import DuplicateRows, FilteredRows, NullRows
from orchestrator.data.cleaning.statistics import Counts, Numbers, clip_numbers, merged_columns
from orchestrator.data.cleaning.values import CastColumns, MapColumn
from orchestrator.errors import SourceError

AnyStep = (
    NullRows
    | DuplicateRows
    | FilteredRows
    | OutlierRows
    | GapFill
    | ForwardFill
    | Clip
    | CastColumns
    | MapColumn
)
Surveying = DuplicateRows | OutlierRows | GapFill | ForwardFill | Clip
Learning = GapFill | Clip
ROW_STEPS = (NullRows, DuplicateRows, FilteredRows, OutlierRows)
"""The steps that drop rows; all others change values."""


@dataclass(frozen=True)
class Program:
    """Compiled cleaning steps, with the statistics they need once they are fitted."""

    source_schema: pa.Schema
    steps: tuple[AnyStep, ...]
    refitted: tuple[AnyStep, ...] | None = None
    """The steps with what was learned from the training rows; None before `refit`."""

    @property
    def pending(self) -> bool:
        """Whether a step needs statistics before the program can be applied."""
        return self._next_pending is not None

    @property
    def schema(self) -> pa.Schema:
        """The columns of a cleaned table; what is known of their types so far."""
        schema = self.source_schema
        for step in self.refitted or self.steps:
            schema = step.schema_after(schema)
        return schema

    def survey(self, table: pa.Table, chunk: int = 0) -> Any:
        """What the first pending step needs to know of one chunk, after the steps before it."""
        step = self._next_pending
        assert step is not None, "no step is pending"
        cleaned, _ = _run(self.steps[: step.head.index], Cleaned.of(table, chunk))
        return step.survey(cleaned)

    def fit(self, partials: Iterable[Any]) -> Program:
        """With the first pending step fitted to its surveys, given in the order of the chunks, which may be an
        iterator: of what numbers it holds, only samples are kept."""
        step = self._next_pending
        assert step is not None, "no step is pending"
        place = step.head.index
        return replace(self, steps=(*self.steps[:place], step.fit(partials), *self.steps[place + 1 :]))

    def apply(self, table: pa.Table, chunk: int = 0) -> Cleaned:
        """One chunk, cleaned by all steps. Raises SourceError where a value is of no use; that no row is left is
        for `require_rows` to say, which sees the reports of all chunks."""
        assert not self.pending, "a step is pending"
        cleaned = Cleaned.of(table, chunk)
        if self.refitted is None:
            return _run(self.steps, cleaned)[0]
        # Rows that were dropped by provisional values stay dropped: the split has been made.
        masks = _run(self.steps, cleaned)[1] if self._rows_depend_on_training() else []
        return _run(self.refitted, cleaned, masks)[0]

    def refit_survey(self, cleaned: Cleaned, train: Mask) -> dict[tuple[int, str], Numbers | Counts]:
        """What there is to learn from the training rows of a chunk that the program, not yet refitted, cleaned;
        `train` has a truth value per row of the cleaned table."""
        return {
            key: survey_known(column.values, column.known & train, cleaned)
            for key, column in cleaned.learned.items()
        }

    def refit(
        self, partials: Iterable[Mapping[tuple[int, str], Numbers | Counts]]
    ) -> tuple[Program, dict[str, Fill]]:
        """The program with what the training rows taught, and the value that each column's gaps take: the one
        after any clipping by later steps. Surveys come in the order of the chunks.

        Raises SourceError where a column that is to be filled is null in all training rows.
        """
        found = merged_columns(partials)
        steps = list(self.steps)
        for place, step in enumerate(steps):
            if not isinstance(step, Learning) or not step.learns:
                continue
            values: dict[str, Any] = {}
            for name in step.head.names:
                key = (step.starts[name], name)
                values[name], found[key] = _learn(step, name, found.get(key))
            steps[place] = (
                step.with_bounds(values) if isinstance(step, Clip) else replace(step, values=values)
            )
        program = replace(self, refitted=tuple(steps))
        return program, program.fills()

    def fills(self) -> dict[str, Fill]:
        """What the gaps of each column become, after any clipping by later steps; forward fills have no value."""
        fills: dict[str, Fill] = {}
        for step in self.refitted or self.steps:
            if isinstance(step, GapFill):
                fills = dict(step.values or {}) | fills
            elif isinstance(step, Clip):
                for name in set(step.head.names) & set(fills):
                    fills[name] = clipped(float(fills[name]), (step.bounds or {})[name])
        return fills

    def bounds(self) -> dict[str, Bounds]:
        """Between which values each clipped column lies; infinite where there is no bound."""
        bounds: dict[str, Bounds] = {}
        for step in self.refitted or self.steps:
            if isinstance(step, Clip):
                for name, pair in (step.bounds or {}).items():
                    low, high = bounds.get(name, pair)
                    bounds[name] = (clipped(low, pair), clipped(high, pair))
        return bounds

    def require_rows(self, report: Sequence[Mapping[str, Any]], rows_read: int) -> None:
        """Raises SourceError where the steps left none of the rows; `report` is that of all chunks, merged."""
        left = rows_read
        for step, entry in zip(self.steps, report, strict=True):
            dropped = entry["rows"] if isinstance(step, ROW_STEPS) else 0
            if dropped == left:
                shown = ", ".join(step.head.names[:5])
                raise SourceError(
                    f"{step.head.place} dropped all {left} rows that were left (columns {shown})",
                    "change the step, name fewer columns in it, or put fill_nulls before it",
                )
            left -= dropped

    @property
    def _next_pending(self) -> Surveying | None:
        return next((step for step in self.steps if isinstance(step, Surveying) and step.pending), None)

    def _rows_depend_on_training(self) -> bool:
        """Whether a step that drops rows comes after one that was refitted."""
        learns = [isinstance(step, Learning) and step.learns for step in self.steps]
        return any(
            isinstance(step, ROW_STEPS) and any(learns[:place]) for place, step in enumerate(self.steps)
        )


def merge_reports(reports: Iterable[Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The reports of all chunks as one: what each step touched, summed."""
    merged: list[dict[str, Any]] = []
    for report in reports:
        if not merged:
            merged = [dict(entry) for entry in report]
            continue
        for total, entry in zip(merged, report, strict=True):
            total["rows"] += entry["rows"]
    return merged


def _run(
    steps: Sequence[AnyStep], cleaned: Cleaned, masks: Sequence[Mask] = ()
) -> tuple[Cleaned, list[Mask]]:
    """A chunk after the steps, and the rows that each step that drops rows kept; `masks` says so beforehand."""
    kept: list[Mask] = []
    report: list[dict[str, Any]] = []
    for step in steps:
        if isinstance(step, ROW_STEPS):
            mask = masks[len(kept)] if masks else step.rows_kept(cleaned)
            kept.append(mask)
            cleaned, touched = cleaned.keep(mask), ~mask
        else:
            if isinstance(step, Learning):
                cleaned = remember(step, cleaned)
            cleaned, touched = step.apply(cleaned)
        head = step.head
        report.append({"step": head.kind, "columns": list(head.named), "rows": int(np.sum(touched))})
    return replace(cleaned, report=tuple(report)), kept


def _learn(step: Learning, name: str, found: Numbers | Counts | None) -> tuple[Any, Any]:
    """What a step learned of a column, and the column's survey after the step."""
    if isinstance(step, Clip):
        bounds = find_bounds(step.rule, found)
        return bounds, clip_numbers(found, *bounds) if isinstance(found, Numbers) else found
    value = find_fill(step.value, found)
    if value is None:
        raise SourceError(
            f"data.clean: column '{name}' is null in every training row, so it has no {step.value}",
            "leave it out by data.features, or fill it by a constant",
        )
    return value, found
