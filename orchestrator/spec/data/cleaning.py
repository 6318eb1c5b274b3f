"""How rows are cleaned: one section per kind of step, applied in the order in which they are listed.

A step that needs statistics (`fill_nulls` by mean, median or mode, `drop_outliers`, `clip_outliers`) takes them
from all rows of a source with up to 1,000,000 rows; of a larger one medians, modes and quantiles come from a
sample of that size.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from orchestrator.spec.base import Section
from orchestrator.spec.data.expression import parse_condition

Scalar = str | int | float | bool


def _condition(text: str) -> str:
    parse_condition(text)
    return text


class DropNulls(Section):
    """Drop the rows that hold a null or NaN in one of the columns (features and target by default)."""

    kind: Literal["drop_nulls"]
    columns: list[str] | None = None


class DropDuplicates(Section):
    """Keep the first of rows that are equal in the columns (features and target by default)."""

    kind: Literal["drop_duplicates"]
    columns: list[str] | None = None


class DropOutliers(Section):
    """Drop the rows that hold an outlier in one of the columns (the numeric features by default), by statistics
    over all rows. A null or NaN is no outlier."""

    kind: Literal["drop_outliers"]
    columns: list[str] | None = None
    method: Literal["z_score", "iqr", "quantile"] = "z_score"
    """`z_score`: farther than `z` standard deviations from the mean. `iqr` (Tukey's fences): more than `k`
    interquartile ranges below the first or above the third quartile. `quantile`: below `low` or above `high`."""
    z: float = Field(default=4.0, gt=0)
    """z_score: in standard deviations."""
    k: float = Field(default=1.5, gt=0)
    """iqr: in interquartile ranges; 1.5 marks outliers, 3 far ones. A column whose quartiles are equal has none."""
    low: float = Field(default=0.01, ge=0, le=1)
    """quantile: the share of rows that lies below the lower bound."""
    high: float = Field(default=0.99, ge=0, le=1)
    """quantile: the share of rows that lies below the upper bound."""

    @model_validator(mode="after")
    def _fits_the_method(self) -> Self:
        _require_method(self)
        return self


class ClipOutliers(Section):
    """Move values beyond the bounds to the bounds (numeric features by default; a null or NaN stays).

    Bounds are learned from the training rows alone, and are saved with the model, which clips raw rows the same
    way. Those of whole-number columns are rounded outwards, so that the columns stay whole.
    """

    kind: Literal["clip_outliers"]
    columns: list[str] | None = None
    method: Literal["z_score", "iqr", "quantile", "fixed"] = "z_score"
    """The first three as in drop_outliers; `fixed`: between `min` and `max`."""
    z: float = Field(default=4.0, gt=0)
    """z_score: in standard deviations."""
    k: float = Field(default=1.5, gt=0)
    """iqr: in interquartile ranges; a column whose quartiles are equal is left alone."""
    low: float = Field(default=0.01, ge=0, le=1)
    """quantile: the share of rows that lies below the lower bound."""
    high: float = Field(default=0.99, ge=0, le=1)
    """quantile: the share of rows that lies below the upper bound."""
    min: float | None = None
    """fixed: the lower bound; null for none."""
    max: float | None = None
    """fixed: the upper bound; null for none."""

    @model_validator(mode="after")
    def _fits_the_method(self) -> Self:
        _require_method(self)
        if self.method == "fixed" and self.min is None and self.max is None:
            raise ValueError("method fixed needs min, max or both")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min ({self.min:g}) is above max ({self.max:g})")
        return self


_OF_METHOD = {
    "z": "z_score",
    "k": "iqr",
    "low": "quantile",
    "high": "quantile",
    "min": "fixed",
    "max": "fixed",
}


def _require_method(step: DropOutliers | ClipOutliers) -> None:
    for name, method in _OF_METHOD.items():
        field = type(step).model_fields.get(name)
        # A value equal to the default is what a rendered spec holds.
        if field and step.method != method and getattr(step, name) != field.default:
            raise ValueError(f"'{name}' goes with method: {method}, and the method is {step.method}")
    if step.low >= step.high:
        raise ValueError(f"low ({step.low:g}) must be less than high ({step.high:g})")


class FillNulls(Section):
    """Replace nulls and NaN by a constant, by the column's mean, median or mode over the training rows, or by the
    last value before the gap.

    Numeric features by default, with mode and forward those of text too. Constants and statistics are saved with
    the model, which fills raw rows the same way.
    """

    kind: Literal["fill_nulls"]
    columns: list[str] | None = None
    value: float | int | str | Literal["mean", "median", "mode", "forward"] = "median"
    """A number, a text, `mean`, `median`, `mode` (the most frequent value, the smallest of several), or
    `forward`: the last value before, in the order of the source. A gap that nothing stands before stays, for a
    later step; and raw rows, which have no order, are never filled forward."""

    @model_validator(mode="after")
    def _text_needs_columns(self) -> Self:
        if isinstance(self.value, str) and self.value not in STATISTICS and not self.columns:
            raise ValueError(
                f"name the columns that '{self.value}' fills, or write {', '.join(STATISTICS)} or a number"
            )
        return self


STATISTICS = ("mean", "median", "mode", "forward")
"""The texts that fill_nulls does not fill as they stand."""


class Filter(Section):
    """Keep the rows that meet a condition. A row for which it is neither true nor false, since a value is null or
    NaN, is dropped."""

    kind: Literal["filter"]
    where: Annotated[str, AfterValidator(_condition)] = Field(min_length=1)
    """As `age >= 18 and country in ('DE', 'FR')`: columns (`in backticks` where they hold spaces), numbers and
    'text', comparisons, arithmetic, and, or, not, in, is None, and the functions lower, upper, len, abs, isnull."""

    @property
    def columns(self) -> list[str]:
        """The columns that the condition names."""
        return list(parse_condition(self.where).columns)


class Cast(Section):
    """Change the type of columns."""

    kind: Literal["cast"]
    columns: list[str] = Field(min_length=1)
    to: Literal["int", "float", "string", "bool", "date", "timestamp"]
    """`int` and `float` have 64 bits; a `timestamp` counts microseconds, without a time zone."""
    format: str | None = Field(default=None, min_length=1)
    """date and timestamp: how the text is written, as `%d.%m.%Y`; ISO 8601 by default."""
    errors: Literal["fail"] | None = "fail"
    """What becomes of a value that does not fit: the run fails, or with `null` the value becomes null."""

    @model_validator(mode="after")
    def _format_is_for_time(self) -> Self:
        if self.format is not None and self.to not in ("date", "timestamp"):
            raise ValueError(f"format goes with to: date or timestamp, not with {self.to}")
        return self


class Map(Section):
    """Replace the values of a column by others, as labels by numbers. A null stays null."""

    kind: Literal["map"]
    column: str = Field(min_length=1)
    values: dict[str, Scalar | None] = Field(min_length=1)
    """What each value becomes, as `{cat: 0, dog: 1}`: all of one type, or null. The keys are read as the column's
    type."""
    default: Scalar | None = "fail"
    """What values become that are not listed: `fail` fails the run, `keep` keeps them, anything else (null too)
    takes their place."""

    @model_validator(mode="after")
    def _one_type(self) -> Self:
        made = [*self.values.values(), *([] if self.default in ("fail", "keep") else [self.default])]
        kinds = {"text" if isinstance(value, str) else "bool" if isinstance(value, bool) else "number"
                 for value in made if value is not None}  # fmt: skip
        if len(kinds) != 1 and (kinds or self.default != "keep"):
            found = " and ".join(sorted(kinds)) if kinds else "nothing but null"
            raise ValueError(
                f"values (and default) must all be numbers, all text or all true/false, not {found}"
            )
        return self

    @property
    def columns(self) -> list[str]:
        """The one column."""
        return [self.column]


CleanStep = Annotated[
    DropNulls | DropDuplicates | DropOutliers | ClipOutliers | FillNulls | Filter | Cast | Map,
    Field(discriminator="kind"),
]
