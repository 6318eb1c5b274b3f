"""How far one column alone tells the target. Imports: numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.hashing import Hashes

MIN_ROWS = 50
_MIN_ERRORS = 10
"""Of guessing the most frequent class: with fewer, chance alone may leave none."""
_ROWS_PER_VALUE = 5
_BINS = 50
_CLOSE = 0.95


def guessed_right(hashes: Hashes, numbers: NDArray[np.float64] | None, labels: Hashes) -> float | None:
    """Goodman and Kruskal's lambda: of the rows that guessing the most frequent class gets wrong, the share that
    guessing the most frequent class of the row's value gets right.

    Values that stand in few rows each tell nothing (a row's number fixes its class, too); numbers of that sort are
    put into bins. None where neither can be done, or there are too few rows. Nulls are a value.
    """
    known = labels != 0
    hashes, labels = hashes[known], labels[known]
    if len(labels) < MIN_ROWS:
        return None
    _, classes, per_class = np.unique(labels, return_inverse=True, return_counts=True)
    errors = len(labels) - int(per_class.max())
    if errors < _MIN_ERRORS:
        return None
    _, values = np.unique(hashes, return_inverse=True)
    if (int(values.max()) + 1) * _ROWS_PER_VALUE > len(labels):
        if numbers is None:
            return None
        fine = _lambda(_binned(numbers[known], len(labels) // _ROWS_PER_VALUE), classes, errors)
        # Few rows a bin flatter any column. Where that is not all, many are needed at the classes' borders.
        return fine if fine > _CLOSE else min(fine, _lambda(_binned(numbers[known], _BINS), classes, errors))
    return _lambda(values, classes, errors)


def _lambda(values: NDArray[np.int64], classes: NDArray[np.int64], errors: int) -> float:
    """With the value (rows,) and the class (rows,) of each row, both counted from 0."""
    num_classes = int(classes.max()) + 1
    pairs, counts = np.unique(values * num_classes + classes, return_counts=True)
    best = np.zeros(int(values.max()) + 1, np.int64)
    np.maximum.at(best, pairs // num_classes, counts)
    return 1 - (len(classes) - int(best.sum())) / errors


def correlation(numbers: NDArray[np.float64], target: NDArray[np.float64]) -> float | None:
    """The size of Pearson's correlation over the rows that have both numbers; None for fewer than 50 rows, or where
    one of them is constant."""
    known = np.isfinite(numbers) & np.isfinite(target)
    numbers, target = numbers[known], target[known]
    if len(numbers) < MIN_ROWS or np.ptp(numbers) == 0 or np.ptp(target) == 0:
        return None
    with np.errstate(over="ignore", invalid="ignore"):
        value = float(abs(np.corrcoef(numbers, target)[0, 1]))
    return min(value, 1.0) if np.isfinite(value) else None


def _binned(numbers: NDArray[np.float64], bins: int) -> NDArray[np.int64]:
    """The bin of each number, shape (rows,): about equal counts, not a number in one of its own."""
    finite = np.isfinite(numbers)
    if not finite.any():
        return np.zeros(len(numbers), np.int64)
    bins = max(2, min(bins, int(finite.sum()) // _ROWS_PER_VALUE))
    edges = np.unique(np.quantile(numbers[finite], np.linspace(0, 1, bins + 1)[1:-1]))
    found = np.searchsorted(edges, numbers, side="right")
    return np.where(finite, found, len(edges) + 1)
