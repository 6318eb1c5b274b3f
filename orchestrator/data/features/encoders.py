"""Fitted encoders: categories of a column to the numbers that are stored of it.

`one_hot` and `hashing` store the number of a category, which becomes a column of 0 and 1 for each only when a
model's input is made of it; so stored rows stay small. Imports: numpy, pyarrow.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.data.features.categories import FOLDS, TYPES, Category, CategoryStats
from orchestrator.errors import DataError, SourceError
from orchestrator.spec.data import CategoryTransform, Hashing, OneHot, Ordinal

MAX_ONE_HOT = 10_000
"""Categories of a column of which one_hot makes a column each."""


@dataclass(frozen=True)
class Encoder:
    """What is stored of a category: its number, or of `target` the row of `values`.

    `categories` are sorted, null (None) last where the training part has any. `dtype` is the raw schema's.
    """

    kind: Literal["one_hot", "ordinal", "hashing", "target"]
    dtype: str
    categories: tuple[Category, ...] = ()
    unknown: tuple[float, ...] = (-1.0,)
    """What is stored of a category that the training part lacks."""
    values: tuple[tuple[float, ...], ...] = ()
    """Of `target`: as many numbers as `unknown` for each category."""
    buckets: int = 0
    """Of `hashing`."""
    out_of_fold: NDArray[np.float64] | None = field(default=None, repr=False, compare=False)
    """Of `target`, while data is prepared: the values that leave out each fold, shape (folds, categories + 1,
    numbers), the last ones being for a category that no other fold has. Not saved with a model."""

    @property
    def stored_width(self) -> int:
        """Numbers stored of a category."""
        return len(self.unknown)

    @property
    def is_indicator(self) -> bool:
        """Whether a model's input has columns of 0 and 1 in the place of the stored number."""
        return self.kind in ("one_hot", "hashing")

    @property
    def indicators(self) -> int:
        """How many such columns."""
        return self.buckets if self.kind == "hashing" else len(self.categories)

    def encode(self, values: pa.Array, folds: NDArray[np.int64] | None = None) -> NDArray[np.float32]:
        """Rows as they are stored, shape (rows, stored_width), of what `category_values` gives.

        `folds` (rows,): of a training row its fold, whose rows its target means leave out; else -1. Raises
        DataError for these where the encoder was saved in between.
        """
        if self.kind == "hashing":
            return self._bucket_numbers(values)
        found = pc.index_in(values, value_set=self._value_set)
        codes = np.asarray(found.fill_null(len(self.categories)).to_numpy(), dtype=np.int64)
        stored = self._table[codes]
        known = np.zeros(len(codes), bool) if folds is None or self.kind != "target" else folds >= 0
        if folds is not None and known.any():
            if self.out_of_fold is None:
                raise DataError(
                    "a saved pipeline cannot encode training rows", "fit it anew on the training part"
                )
            stored[known] = self.out_of_fold[folds[known], codes[known]]
        return stored

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "dtype": self.dtype,
            "categories": list(self.categories),
            "unknown": list(self.unknown),
            "values": [list(row) for row in self.values],
            "buckets": self.buckets,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Encoder:
        return cls(
            value["kind"],
            value["dtype"],
            tuple(value["categories"]),
            tuple(value["unknown"]),
            tuple(tuple(row) for row in value["values"]),
            value["buckets"],
        )

    @cached_property
    def _value_set(self) -> pa.Array:
        return pa.array(self.categories, TYPES.get(self.dtype, pa.int64()))

    @cached_property
    def _table(self) -> NDArray[np.float32]:
        """What is stored of each category and, last, of an unknown one, shape (categories + 1, stored_width)."""
        values = self.values or [[code] for code in range(len(self.categories))]
        return np.array([*values, self.unknown], dtype=np.float32)

    def _bucket_numbers(self, values: pa.Array) -> NDArray[np.float32]:
        encoded = pc.dictionary_encode(values, null_encoding="encode")
        buckets = [bucket_number(value, self.buckets) for value in encoded.dictionary.to_pylist()]
        codes = np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
        return np.array(buckets, dtype=np.float32)[codes][:, None]


@dataclass(frozen=True)
class Layout:
    """How a table's columns are stored, and what a model's input has of them.

    `stored_columns` (stored,): the raw column of each stored number. Of each input column: `raw_columns` (width,)
    the raw column, `sources` (width,) the stored number it is made of, and `codes` (width,) the number that makes
    it 1 and all others 0, or NaN where it is the stored number itself.
    """

    stored_columns: NDArray[np.int64]
    raw_columns: NDArray[np.int64]
    sources: NDArray[np.int64]
    codes: NDArray[np.float32]
    expands: bool
    """Whether a model's input is anything but the stored numbers."""


def table_layout(encoders: Sequence[Encoder | None]) -> Layout:
    """The layout of columns with these encoders, None for numbers."""
    stored: list[int] = []
    raw: list[int] = []
    sources: list[int] = []
    codes: list[float] = []
    for column, encoder in enumerate(encoders):
        start, width = len(stored), encoder.stored_width if encoder else 1
        stored += [column] * width
        if encoder is not None and encoder.is_indicator:
            raw += [column] * encoder.indicators
            sources += [start] * encoder.indicators
            codes += range(encoder.indicators)
        else:
            raw += [column] * width
            sources += range(start, start + width)
            codes += [math.nan] * width
    return Layout(
        np.array(stored, np.int64),
        np.array(raw, np.int64),
        np.array(sources, np.int64),
        np.array(codes, np.float32),
        any(encoder is not None and encoder.is_indicator for encoder in encoders),
    )


def bucket_number(category: Category, buckets: int) -> int:
    """The bucket of a category, from 0: BLAKE2b of its text, which no version or machine changes."""
    text = "\0" if category is None else str(category)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") % buckets


def fit_encoder(step: CategoryTransform, stats: CategoryStats | None, dtype: str, column: str) -> Encoder:
    """The encoder of a step, fitted on the training rows' statistics, of which only hashing needs none.

    Raises SourceError where a column has too many categories.
    """
    if isinstance(step, Hashing):
        return Encoder("hashing", dtype, buckets=step.buckets)
    assert stats is not None
    stats = stats.in_order()
    categories = tuple(stats.values.to_pylist())
    if isinstance(step, OneHot):
        if len(categories) > MAX_ONE_HOT:
            raise SourceError(
                f"data.transforms (one_hot): column '{column}' has {len(categories)} distinct values, and one_hot "
                f"makes at most {MAX_ONE_HOT} columns",
                f"write hashing, target or ordinal for '{column}', or leave it out by data.features",
            )
        return Encoder("one_hot", dtype, categories)
    if isinstance(step, Ordinal):
        return Encoder("ordinal", dtype, categories, (float(step.unknown),))
    whole = stats.over_folds()
    values, overall = target_means(whole, step.smooth)
    out_of_fold = np.empty((FOLDS, len(categories) + 1, len(overall)))
    for fold in range(FOLDS):
        others = stats.over_folds(leave_out=fold)
        # With no row in any other fold there is nothing else to take.
        means, mean = target_means(others, step.smooth) if others.count.any() else (values, overall)
        out_of_fold[fold] = np.vstack([means, mean])
    rows = tuple(tuple(row) for row in values.tolist())
    return Encoder("target", dtype, categories, tuple(overall.tolist()), rows, out_of_fold=out_of_fold)


def target_means(
    stats: CategoryStats, smooth: float | Literal["auto"]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Smoothed means of the target for each category, shape (categories, targets), and its mean over all rows,
    shape (targets,); `stats` has one fold.

    A number mixes that many rows with the mean over all rows into each category; `auto` weighs both by their
    variances (Micci-Barreca 2001). A category without rows has the mean over all rows.
    """
    count, mean, squares = stats.count, stats.mean[:, 0], stats.squares[:, 0]  # (k, 1), (k, t), (k, t)
    total = count.sum()
    overall = (count * mean).sum(axis=0) / total
    if smooth != "auto":
        weight = np.divide(count, count + smooth, out=np.zeros_like(count), where=count > 0)
        return overall + weight * (mean - overall), overall
    variance = (squares.sum(axis=0) + (count * (mean - overall) ** 2).sum(axis=0)) / total
    within = np.divide(squares, count, out=np.zeros_like(squares), where=count > 0)
    between = variance * count
    known = (count > 0) & (between + within > 0)
    weight = np.divide(between, between + within, out=np.zeros_like(squares), where=known)
    return overall + weight * (mean - overall), overall
