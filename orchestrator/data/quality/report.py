"""The quality report: figures of the data as plain values, for a JSON file. Imports: the standard library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

Kind = Literal["number", "boolean", "text", "time", "image", "array", "other"]
Counted = tuple[tuple[str, int], ...]

PARTS = ("train", "val", "test")
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
FORMAT_VERSION = 1

_MAX_CATEGORIES = 1000
_MAX_CODES = 20


@dataclass(frozen=True)
class NumberSummary:
    """Numbers of a column; of text, its lengths in characters; of times, seconds since 1970.

    `count`, `mean`, `std` (of the population), `least` and `most` are exact and of the finite ones. All else comes
    from the sample, which holds all rows of small data: `sample_rows` of them.
    """

    count: int
    mean: float
    std: float
    least: float
    most: float
    sample_rows: int = 0
    quantiles: tuple[float, ...] = ()
    """At 1, 5, 25, 50, 75, 95 and 99%."""
    edges: tuple[float, ...] = ()
    """Of the histogram; what lies beyond the outer ones is counted in the outer bins."""
    counts: tuple[int, ...] = ()
    outliers: float = 0.0
    """Share beyond the quartiles by more than three times their distance (Tukey's outer fences)."""
    farthest: float = 0.0
    """The largest distance from the median, in distances of the quartiles; 0 where these are equal."""
    bins: tuple[float, ...] = ()
    """The deciles, where they differ: what lies between two is a bin that new data is compared in."""
    shares: tuple[float, ...] = ()
    """Of the bins: below the first decile, between them (each with its lower end), and above the last."""
    sample: tuple[float, ...] = ()
    """Some of the numbers, in no order, for Kolmogorov and Smirnov's test."""


@dataclass(frozen=True)
class ColumnReport:
    """One column over the rows of all parts. `count` includes `nulls`; `infinite` ones are counted in neither the
    numbers nor the nulls. `distinct` is an estimate unless `distinct_exact`."""

    name: str
    kind: Kind
    type: str
    count: int
    nulls: int
    infinite: int
    distinct: int
    distinct_exact: bool
    values: Counted
    """The most frequent values and their counts; of images sizes and modes, of arrays shapes."""
    values_complete: bool
    """These are all values there are, and the counts are exact."""
    numbers: NumberSummary | None
    label_link: float | None = None
    """How far the column alone tells the target, 0 to 1: for classes Goodman and Kruskal's lambda (1: no row's class
    is guessed wrong), for numbers the size of Pearson's correlation. None where it cannot be told."""

    @property
    def null_share(self) -> float:
        return self.nulls / self.count if self.count else 0.0

    @property
    def is_category(self) -> bool:
        """It takes few values, again and again."""
        known = self.count - self.nulls
        if self.kind == "boolean":
            return True
        if self.kind == "text":
            return self.values_complete and self.distinct <= _MAX_CATEGORIES and 2 * self.distinct <= known
        few = self.distinct <= _MAX_CODES and 10 * self.distinct <= known
        return self.kind == "number" and self.values_complete and few


@dataclass(frozen=True)
class ClassCount:
    """Rows of one class in train, val and test."""

    name: str
    counts: tuple[int, int, int]

    @property
    def total(self) -> int:
        return sum(self.counts)


@dataclass(frozen=True)
class Duplicates:
    """Rows whose features are equal. `within`: rows of each part beyond the first of their kind; `across`: rows of
    the second part that have an equal in the first, for train/val, train/test and val/test. Estimates, unless
    `exact`."""

    distinct_rows: int
    within: tuple[int, int, int]
    across: tuple[int, int, int]
    exact: bool


@dataclass(frozen=True)
class QualityReport:
    """What there is to say of the prepared rows. `rows` are those of train, val and test; `dropped` ones are in no
    other figure. `task` is classification or regression, None without a target."""

    rows: tuple[int, int, int]
    dropped: int
    target: str | None
    task: Literal["classification", "regression"] | None
    text: bool
    """The features are one column of free text."""
    filled: tuple[str, ...] | None
    """The columns whose nulls a step of data.clean fills, None: all numeric ones."""
    columns: tuple[ColumnReport, ...]
    classes: tuple[ClassCount, ...]
    """Largest first; the 1,000 largest, where there are more."""
    duplicates: Duplicates

    @property
    def features(self) -> tuple[ColumnReport, ...]:
        return tuple(column for column in self.columns if column.name != self.target)

    def column(self, name: str) -> ColumnReport | None:
        """None where the report has no such column."""
        return next((column for column in self.columns if column.name == name), None)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> QualityReport:
        """Reads what `to_dict` gave, from JSON, too."""
        return cls(
            **{
                **_known(cls, value),
                "columns": tuple(_column(column) for column in value["columns"]),
                "classes": tuple(ClassCount(**_known(ClassCount, item)) for item in value["classes"]),
                "duplicates": Duplicates(**_known(Duplicates, value["duplicates"])),
            }
        )


def _column(value: Mapping[str, Any]) -> ColumnReport:
    numbers = value["numbers"]
    return ColumnReport(
        **{
            **_known(ColumnReport, value),
            "values": tuple((text, count) for text, count in value["values"]),
            "numbers": NumberSummary(**_known(NumberSummary, numbers)) if numbers is not None else None,
        }
    )


def _known(kind: type[Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a dataclass has, lists as tuples; what a later version may have added is left out."""
    names = {field.name for field in fields(kind)}
    return {
        name: tuple(item) if isinstance(item, list) else item for name, item in value.items() if name in names
    }
