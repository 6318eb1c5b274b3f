"""Compare new data with the data that a model learned from, column by column. Imports: numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from orchestrator.data.quality.report import ColumnReport, Counted, NumberSummary, QualityReport
from orchestrator.data.quality.statistics import (
    chi_square,
    kolmogorov_smirnov,
    population_stability_index,
    psi_p_value,
    shares_p_value,
)

Level = Literal["none", "moderate", "large"]

PSI_MODERATE = 0.1
PSI_LARGE = 0.25
_CHANCE = 0.01
"""A distance that chance gives more often than this is none, whatever its size."""
_KS_MODERATE = 0.2
_NULLS_MODERATE, _NULLS_LARGE = 0.05, 0.2
_UNSEEN = 0.005
"""Share of the rows in categories never seen, from which on a column has drifted."""
_CATEGORIES = 50
_NAMED = 5
_ORDER = ("none", "moderate", "large")


@dataclass(frozen=True)
class ColumnDrift:
    """How one column changed. What does not apply to its kind is None."""

    name: str
    kind: str
    level: Level
    reasons: tuple[str, ...]
    """What changed, in words; new categories in few rows are told without being a drift."""
    psi: float | None = None
    """Population stability index, over the reference's deciles or categories."""
    ks: float | None = None
    """Kolmogorov and Smirnov's statistic, of numbers."""
    p_value: float | None = None
    """Of the Kolmogorov-Smirnov test, of categories of the chi-square test."""
    null_shares: tuple[float, float] = (0.0, 0.0)
    new_categories: Counted = ()
    """Values that the reference does not have, with their rows."""
    bins: tuple[str, ...] = ()
    shares: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    """Of the bins, in the reference and in the new data."""


@dataclass(frozen=True)
class DriftReport:
    """New rows against reference rows. `columns`: those of the reference, the farthest apart first."""

    reference_rows: int
    new_rows: int
    columns: tuple[ColumnDrift, ...]
    added: tuple[str, ...]
    """Columns that the reference does not have."""

    @property
    def level(self) -> Level:
        """The worst of all columns."""
        return max((column.level for column in self.columns), key=_ORDER.index, default="none")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"level": self.level, **asdict(self)}


def compare(reference: QualityReport, new: QualityReport) -> DriftReport:
    """How far `new` is from `reference`.

    A column has drifted (moderate or large) where its PSI is at least 0.1 or 0.25 and larger than chance would give,
    where the Kolmogorov-Smirnov statistic of its numbers is, where its share of nulls changed, where it holds
    categories never seen, or where it is missing or of another kind. Chance is what happens in one of 100 cases.
    """
    # Rows that are to be predicted have no target yet.
    absent = {reference.target} if reference.target and new.column(reference.target) is None else set()
    columns = [
        _column(column, new.column(column.name)) for column in reference.columns if column.name not in absent
    ]
    known = {column.name for column in reference.columns}
    return DriftReport(
        reference_rows=sum(reference.rows),
        new_rows=sum(new.rows),
        columns=tuple(sorted(columns, key=lambda one: (-_ORDER.index(one.level), -(one.psi or 0.0)))),
        added=tuple(column.name for column in new.columns if column.name not in known),
    )


def verdicts(report: DriftReport) -> list[str]:
    """Short lines for the terminal: each column that drifted and why, then what else there is to say."""
    lines = [
        f"{column.name}: {'no' if column.level == 'none' else column.level} drift: {'; '.join(column.reasons)}"
        for column in report.columns
        if column.reasons
    ]
    if report.added:
        lines.append(f"new columns, which no model has learned from: {', '.join(report.added[:_NAMED])}")
    drifted = sum(column.level != "none" for column in report.columns)
    return [*lines, f"{drifted} of {len(report.columns)} columns drifted, over {report.new_rows} new rows"]


def _column(old: ColumnReport, new: ColumnReport | None) -> ColumnDrift:
    if new is None:
        return ColumnDrift(old.name, old.kind, "large", ("the new data does not have it",))
    if new.kind != old.kind:
        return ColumnDrift(old.name, old.kind, "large", (f"it holds {new.kind} instead of {old.kind}",))
    nulls, reasons = _nulls(old, new)
    if old.is_category:
        found = _categories(old, new)
    elif old.numbers is not None and old.numbers.bins:
        found = _numbers(old.numbers, new.numbers)
    else:
        found = ColumnDrift(old.name, old.kind, "none", ())
    return replace(
        found,
        name=old.name,
        kind=old.kind,
        level=_worse(nulls, found.level),
        reasons=(*reasons, *found.reasons),
        null_shares=(old.null_share, new.null_share),
    )


def _nulls(old: ColumnReport, new: ColumnReport) -> tuple[Level, tuple[str, ...]]:
    change = abs(new.null_share - old.null_share)
    chance = shares_p_value(old.nulls, old.count, new.nulls, new.count)
    if change < _NULLS_MODERATE or chance > _CHANCE:
        return "none", ()
    level: Level = "large" if change >= _NULLS_LARGE else "moderate"
    return level, (f"null in {new.null_share:.1%} of the rows instead of {old.null_share:.1%}",)


def _numbers(old: NumberSummary, new: NumberSummary | None) -> ColumnDrift:
    """By the deciles of the old numbers, and by samples of both."""
    if new is None or not new.sample:
        return ColumnDrift("", "", "none", ())
    counts = np.bincount(np.searchsorted(old.bins, new.sample, side="right"), minlength=len(old.bins) + 1)
    shares = tuple((counts / len(new.sample)).tolist())
    psi = population_stability_index(old.shares, shares, _half_a_row(old.sample_rows, len(new.sample)))
    ks, p_value = kolmogorov_smirnov(old.sample, new.sample)
    level = _level(psi, psi_p_value(psi, len(shares), old.sample_rows, len(new.sample)))
    reasons = [f"PSI {psi:.2f}"] if level != "none" else []
    if ks >= _KS_MODERATE and p_value < _CHANCE:
        level = _worse(level, "moderate")
    if level != "none":
        reasons.append(f"KS {ks:.2f} (p {p_value:.2g})")
        reasons.append(f"mean {new.mean:.6g} instead of {old.mean:.6g}")
    edges = [f"{edge:.4g}" for edge in old.bins]
    return ColumnDrift(
        *("", "", level, tuple(reasons), psi, ks, p_value),
        bins=(f"below {edges[0]}", *(f"from {edge}" for edge in edges)),
        shares=(old.shares, shares),
    )


def _categories(old: ColumnReport, new: ColumnReport) -> ColumnDrift:
    """By the rows of each category."""
    before, after = dict(old.values), dict(new.values)
    names = list(before)[:_CATEGORIES]
    first = _tally(before, names, old.count - old.nulls)
    second = _tally(after, names, new.count - new.nulls)
    rows, new_rows = sum(first), sum(second)
    if not rows or not new_rows:
        return ColumnDrift("", "", "none", ())
    shares = tuple(count / rows for count in first), tuple(count / new_rows for count in second)
    psi = population_stability_index(*shares, _half_a_row(rows, new_rows))
    _, p_value = chi_square(first, second)
    level = _level(psi, p_value)
    reasons = [f"PSI {psi:.2f} (chi-square p {p_value:.2g})"] if level != "none" else []
    unseen: Counted = ()
    if old.values_complete:
        unseen = tuple((value, count) for value, count in new.values if value not in before)
    if unseen:
        share = sum(count for _, count in unseen) / new_rows
        if share >= _UNSEEN:
            level = _worse(level, "moderate")
        named = ", ".join(f"'{value}'" for value, _ in unseen[:_NAMED])
        more = ", …" if len(unseen) > _NAMED else ""
        reasons.append(f"{len(unseen)} new categories in {share:.2%} of the rows: {named}{more}")
    return ColumnDrift(
        *("", "", level, tuple(reasons), psi, None, p_value),
        new_categories=unseen,
        bins=(*names, "all others"),
        shares=shares,
    )


def _tally(counts: Mapping[str, int], names: Sequence[str], known: int) -> list[int]:
    """The rows of each named category, then of all others."""
    named = [counts.get(name, 0) for name in names]
    return [*named, max(0, known - sum(named))]


def _level(psi: float, chance: float) -> Level:
    if psi < PSI_MODERATE or chance > _CHANCE:
        return "none"
    return "large" if psi >= PSI_LARGE else "moderate"


def _half_a_row(rows: int, new_rows: int) -> float:
    """What an empty bin counts as: of few rows, a bin is empty by chance."""
    return max(1e-4, 0.5 / min(rows, new_rows))


def _worse(first: Level, second: Level) -> Level:
    return first if _ORDER.index(first) >= _ORDER.index(second) else second
