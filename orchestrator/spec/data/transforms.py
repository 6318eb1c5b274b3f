"""Transforms that are fitted on the training part: one section per kind.

Those of numbers (`standardize`, `min_max`, `robust`, `scale`) work in the order in which they are listed, each on
the output of those before it. Those of categories (`one_hot`, `ordinal`, `hashing`, `target`) turn a column into
numbers, once; a transform of numbers looks at such a column only where it names it, further down.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from orchestrator.spec.base import Section

Columns = Annotated[list[str], Field(min_length=1)]
CODES = 2**24
"""Codes are stored as float32, which holds whole numbers exactly up to here."""


class Standardize(Section):
    """Subtract the mean and divide by the standard deviation of the training part.

    Per column for tables, per channel for images.
    """

    kind: Literal["standardize"]
    columns: Columns | None = None
    """Of a table; by default all columns that no transform encodes."""


class MinMax(Section):
    """Scale to 0…1 by the minimum and maximum of the training part; per column or per channel."""

    kind: Literal["min_max"]
    columns: Columns | None = None
    """Of a table; by default all columns that no transform encodes."""


class Robust(Section):
    """Subtract the median and divide by the range between the quartiles of the training part: outliers count
    little. Of columns, not of images. From a sample where the training part has more than 1,000,000 rows."""

    kind: Literal["robust"]
    columns: Columns | None = None
    """Of a table; by default all columns that no transform encodes."""


class Scale(Section):
    """Divide by a constant, as 255 for eight-bit images."""

    kind: Literal["scale"]
    by: float = Field(gt=0)
    columns: Columns | None = None
    """Of a table; by default all columns that no transform encodes."""


class OneHot(Section):
    """A column of 0 and 1 for each category of the training part, in sorted order, nulls last. A category that the
    training part lacks is all zeros."""

    kind: Literal["one_hot"]
    columns: Columns | None = None
    """Columns of strings, booleans or integers; by default all columns of strings that are not encoded yet."""


class Ordinal(Section):
    """The position of the category among the sorted ones of the training part, from 0, nulls last."""

    kind: Literal["ordinal"]
    columns: Columns | None = None
    """Columns of strings, booleans or integers; by default all columns of strings that are not encoded yet."""
    unknown: int = Field(default=-1, ge=-CODES, le=CODES)
    """What a category becomes that the training part lacks."""


class Hashing(Section):
    """A column of 0 and 1 for each of a fixed number of buckets. A stable hash tells a category's bucket, so that
    nothing is fitted and no category is unknown; categories may share a bucket."""

    kind: Literal["hashing"]
    columns: Columns | None = None
    """Columns of strings, booleans or integers; by default all columns of strings that are not encoded yet."""
    buckets: int = Field(default=64, ge=2, le=2**16)


class TargetEncoding(Section):
    """The mean of the target over the training rows of the category; with more than two classes a column for the
    share of each.

    A training row's own target is never in it: each fifth of the training rows takes the means of the other four.
    All other rows take those of the whole training part. A category that the training part lacks takes the mean of
    all rows.
    """

    kind: Literal["target"]
    columns: Columns | None = None
    """Columns of strings, booleans or integers; by default all columns of strings that are not encoded yet."""
    smooth: Literal["auto"] | Annotated[float, Field(ge=0)] = "auto"
    """Rows with the mean of all rows that are added to each category, so that rare ones do not lead astray. `auto`
    takes as many as the variances suggest (empirical Bayes), as scikit-learn's TargetEncoder."""


NumberTransform = Standardize | MinMax | Robust | Scale
CategoryTransform = OneHot | Ordinal | Hashing | TargetEncoding
Transform = Annotated[NumberTransform | CategoryTransform, Field(discriminator="kind")]
