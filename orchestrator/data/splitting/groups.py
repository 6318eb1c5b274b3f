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
    exact = [max(float(ratio) * len(groups), 1e-9) for ratio in ratios]
    lack, chosen = list(exact), []
    for size in counts[order].tolist():  # plain lists: there may be millions of groups
        best, most = -1, -1.0
        for part in wanted:
            if size <= lack[part] + 1e-9 and lack[part] / exact[part] > most:
                best, most = part, lack[part] / exact[part]
        if best < 0:
            best = max(wanted, key=lack.__getitem__)
        lack[best] -= size
        chosen.append(best)
    parts = np.zeros(len(counts), np.int8)
    parts[order] = chosen
    _fill_empty(parts, order, wanted)
    return parts[which]


def fold_groups(groups: NDArray[Any], folds: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """The fold of each row, shape (rows,): no group in two folds, each group to the smallest fold there is."""
    which, counts, order = _largest_first(groups, generator)
    heap, chosen = [(0, fold) for fold in range(folds)], []
    for size in counts[order].tolist():
        total, fold = heap[0]
        heapq.heapreplace(heap, (total + size, fold))
        chosen.append(fold)
    found = np.zeros(len(counts), np.int64)
    found[order] = chosen
    return found[which]


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
