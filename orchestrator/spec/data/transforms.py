"""Transforms that are fitted on the training part: one section per kind."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.spec.base import Section


class Standardize(Section):
    """Subtract the mean and divide by the standard deviation of the training part.

    Per column for tables, per channel for images.
    """

    kind: Literal["standardize"]


class MinMax(Section):
    """Scale to 0…1 by the minimum and maximum of the training part; per column or per channel."""

    kind: Literal["min_max"]


class Scale(Section):
    """Divide by a constant, as 255 for eight-bit images."""

    kind: Literal["scale"]
    by: float = Field(gt=0)


Transform = Annotated[Standardize | MinMax | Scale, Field(discriminator="kind")]
