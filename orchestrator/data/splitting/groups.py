"""Give whole groups of rows to parts or folds. Imports: numpy."""

from __future__ import annotations

import heapq
from typing import Any

import numpy as np
from numpy.typing import NDArray


def share_groups(
    groups: NDArray[Any], ratios: NDArray[np.float64], generator: np.random.Generator
) -> NDArray[np.int8]:
    """The part of each row, shape (rows,): no group in two parts, rows as near to the ratios as can be had cheaply.

    Groups come in order of size, equal ones by chance. Each goes to the part that lacks the largest share of its
    rows among those it fits into; so every part gets large groups and small ones. With at least as many groups as
    parts with a ratio above 0, none of these is empty.
    """
    which, counts, order = _largest_first(groups, generator)
    wanted = np.flatnonzero(ratios > 0).tolist()
    exact = {part: float(ratios[part]) * len(groups) for part in wanted}
    lack = dict(exact)
    parts = np.zeros(len(counts), np.int8)
    for group in order.tolist():
        size = int(counts[group])
        fitting = [part for part in wanted if size <= lack[part] + 1e-9]
        if fitting:
            chosen = max(fitting, key=lambda part: lack[part] / exact[part])
        else:
            chosen = max(wanted, key=lack.__getitem__)
        parts[group] = chosen
        lack[chosen] -= size
    _fill_empty(parts, order, wanted)
    return parts[which]


def fold_groups(groups: NDArray[Any], folds: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """The fold of each row, shape (rows,): no group in two folds, each group to the smallest fold there is."""
    which, counts, order = _largest_first(groups, generator)
    sizes = [(0, fold) for fold in range(folds)]
    chosen = np.zeros(len(counts), np.int64)
    for group in order.tolist():
        size, fold = heapq.heappop(sizes)
        chosen[group] = fold
        heapq.heappush(sizes, (size + int(counts[group]), fold))
    return chosen[which]


def _largest_first(
    groups: NDArray[Any], generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Each row's group (rows,), the groups' rows (groups,), and the groups from large to small."""
    values, which, counts = np.unique(groups, return_inverse=True, return_counts=True)
    shuffled = generator.permutation(len(values))
    return which, counts, shuffled[np.argsort(-counts[shuffled], kind="stable")]


def _fill_empty(parts: NDArray[np.int8], order: NDArray[np.int64], wanted: list[int]) -> None:
    """Move the smallest group of the part with the most groups to a part that got none."""
    for part in wanted:
        tally = np.bincount(parts, minlength=max(wanted) + 1)
        if tally[part] == 0 and tally.max() > 1:
            richest = int(tally.argmax())
            parts[order[np.flatnonzero(parts[order] == richest)[-1]]] = part
