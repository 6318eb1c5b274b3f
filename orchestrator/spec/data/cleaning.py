"""How rows are cleaned: one section per kind of step."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from orchestrator.spec.base import Section


class DropNulls(Section):
    """Drop the rows that hold a null or NaN in one of the columns (features and target by default)."""

    kind: Literal["drop_nulls"]
    columns: list[str] | None = None


class DropDuplicates(Section):
    """Keep the first of rows that are equal in the columns (features and target by default)."""

    kind: Literal["drop_duplicates"]
    columns: list[str] | None = None


class DropOutliers(Section):
    """Drop the rows farther than `z` standard deviations from the mean in one of the columns (the numeric
    features by default)."""

    kind: Literal["drop_outliers"]
    columns: list[str] | None = None
    z: float = Field(default=4.0, gt=0)


class FillNulls(Section):
    """Replace nulls and NaN by a constant, or by the column's mean or median over the training rows.

    Numeric features by default. The values are saved with the model, which fills raw rows the same way.
    """

    kind: Literal["fill_nulls"]
    columns: list[str] | None = None
    value: float | int | str | Literal["mean", "median"] = "median"

    @model_validator(mode="after")
    def _text_needs_columns(self) -> Self:
        if isinstance(self.value, str) and self.value not in ("mean", "median") and not self.columns:
            raise ValueError(f"name the columns that '{self.value}' fills, or write mean, median or a number")
        return self


CleanStep = Annotated[DropNulls | DropDuplicates | DropOutliers | FillNulls, Field(discriminator="kind")]
