"""Categories of a column, and what the training rows of each tell: counts, and moments of the target.

Imports: numpy, pyarrow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.data.columns import is_number, is_text
from orchestrator.data.features.target import Label
from orchestrator.data.statistics import merge_means
from orchestrator.errors import DataError, SourceError

FOLDS = 5
"""Training rows are parted into so many folds, for what must not look at a row's own target."""
MAX_NUMBERS = 1_000_000
"""Numbers kept of the categories of one column at most."""

Category = Label | None
"""None stands for null."""

TYPES: dict[str, Any] = {"str": pa.large_string(), "bool": pa.bool_()}
"""By the dtype of a raw schema; all others are integers."""


def fold_numbers(keys: NDArray[np.uint64]) -> NDArray[np.int64]:
    """The fold of each row, 0 to FOLDS - 1, shape (rows,), by its `place_keys`."""
    return ((keys >> np.uint64(32)) % np.uint64(FOLDS)).astype(np.int64)


def category_values(column: pa.ChunkedArray, dtype: str, name: str) -> pa.Array:
    """A column of categories as large strings, booleans or int64, nulls kept, shape (rows,).

    `dtype` is the one that the raw schema has. Whole numbers and booleans may come as floats, NaN for null, as
    pandas has them. Raises DataError where values are of another type.
    """
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    if isinstance(column, pa.ChunkedArray):  # an empty column stays chunked
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind, wanted = column.type, TYPES.get(dtype, pa.int64())
    fits = is_text(kind) if dtype == "str" else is_number(kind)
    try:
        if not fits and not pa.types.is_null(kind):
            raise ValueError(f"they are {kind}")
        if pa.types.is_floating(kind):
            column = pc.if_else(pc.is_nan(column), pa.scalar(None, kind), column).cast(pa.int64())
        if dtype == "bool" and pa.types.is_integer(column.type):
            flags = column.cast(pa.bool_())
            if not pc.all(pc.equal(flags.cast(column.type), column)).as_py():
                raise ValueError("not all are 0 or 1")
            return flags
        return column.cast(wanted)
    except (pa.ArrowException, ValueError) as error:
        words = {"str": "strings", "bool": "booleans"}.get(dtype, "whole numbers")
        raise DataError(f"column '{name}' must hold {words}: {error}") from error


@dataclass(frozen=True)
class CategoryStats:
    """Of each category (and fold, where there is a target): training rows, mean of the target and sum of squared
    deviations from it.

    `values` (categories,) are distinct, null among them; `count` (categories, folds), `mean` and `squares`
    (categories, folds, targets). Without a target there is one fold and no target.
    """

    values: pa.Array
    count: NDArray[np.float64]
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        values: pa.Array,
        targets: NDArray[np.float64] | None = None,
        folds: NDArray[np.int64] | None = None,
    ) -> CategoryStats:
        """Of the rows' categories, their targets (rows, targets) and folds (rows,)."""
        distinct, codes = _codes(values)
        if targets is None or folds is None:
            targets, folds, num_folds = np.zeros((len(values), 0)), np.zeros(len(values), np.int64), 1
        else:
            num_folds = FOLDS
        groups = codes * num_folds + folds
        shape = (len(distinct), num_folds)
        size = shape[0] * shape[1]
        count = np.bincount(groups, minlength=size).astype(np.float64)
        mean, squares = np.zeros((size, targets.shape[1])), np.zeros((size, targets.shape[1]))
        for i, target in enumerate(targets.T):
            mean[:, i] = np.bincount(groups, target, size) / np.maximum(count, 1)
            squares[:, i] = np.bincount(groups, (target - mean[groups, i]) ** 2, size)
        wide = (*shape, targets.shape[1])
        return cls(distinct, count.reshape(shape), mean.reshape(wide), squares.reshape(wide))

    def merge(self, other: CategoryStats) -> CategoryStats:
        distinct, codes = _codes(pa.concat_arrays([self.values, other.values]))
        mine = self._at(codes[: len(self.values)], len(distinct))
        its = other._at(codes[len(self.values) :], len(distinct))
        mean, squares = merge_means(
            mine.count[..., None], mine.mean, mine.squares, its.count[..., None], its.mean, its.squares
        )
        return CategoryStats(distinct, mine.count + its.count, mean, squares)

    def over_folds(self, leave_out: int | None = None) -> CategoryStats:
        """All folds together, or all but one: one fold."""
        shape = self.mean.shape
        count, mean = np.zeros((shape[0], 1)), np.zeros((shape[0], shape[2]))
        squares = np.zeros_like(mean)
        for fold in range(shape[1]):
            if fold != leave_out:
                more = self.count[:, fold, None]
                mean, squares = merge_means(
                    count, mean, squares, more, self.mean[:, fold], self.squares[:, fold]
                )
                count = count + more
        return CategoryStats(self.values, count, mean[:, None], squares[:, None])

    def in_order(self) -> CategoryStats:
        """Sorted by category, null last."""
        order = np.asarray(pc.sort_indices(self.values))
        return CategoryStats(
            self.values.take(pa.array(order)), self.count[order], self.mean[order], self.squares[order]
        )

    def require_few(self, column: str, kind: str) -> None:
        """Raises SourceError where there are more categories than are kept."""
        size = self.count.size + self.mean.size + self.squares.size
        if size > MAX_NUMBERS:
            raise SourceError(
                f"data.transforms ({kind}): column '{column}' has {len(self.values)} distinct values or more, and "
                f"at most {MAX_NUMBERS * len(self.values) // size} can be told apart",
                f"write {{kind: hashing, columns: [{column}]}}, or leave the column out by data.features",
            )

    def _at(self, codes: NDArray[np.int64], size: int) -> CategoryStats:
        """Laid out for `size` categories, these at the positions `codes`."""

        def spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
            wide = np.zeros((size, *values.shape[1:]))
            wide[codes] = values
            return wide

        return CategoryStats(self.values, spread(self.count), spread(self.mean), spread(self.squares))


def _codes(values: pa.Array) -> tuple[pa.Array, NDArray[np.int64]]:
    """The distinct values, and for each row its position among them."""
    encoded = pc.dictionary_encode(values, null_encoding="encode")
    return encoded.dictionary, np.asarray(encoded.indices.to_numpy(zero_copy_only=False), dtype=np.int64)
