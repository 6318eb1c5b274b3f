"""Part rows into train, val and test: a pure function of counts, labels and seed. Imports: numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.errors import SourceError
from orchestrator.spec.data import Split

PARTS = ("train", "val", "test")


def split_rows(
    num_rows: int, split: Split, seed: int, labels: NDArray[np.int64] | None = None
) -> dict[str, NDArray[np.int64]]:
    """Row numbers of each part, ascending within a part, disjoint, together all rows.

    `labels` (class indices, shape (num_rows,)) are needed for a stratified split: each class is parted by
    itself, within one row of its exact share; a class with at least as many rows as there are parts is in
    every part. A part whose ratio is 0 is empty. Raises SourceError where another part would be empty.
    """
    ratios = np.array([split.train, split.val, split.test])
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0x5EED])))
    if split.kind == "stratified":
        if labels is None:
            raise SourceError(
                "data.split: 'stratified' needs one class per row, which the target does not give",
                "write data.split.kind: random",
            )
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    else:
        groups = [np.arange(num_rows)]
    pieces: list[list[NDArray[Any]]] = [[] for _ in PARTS]
    carry = np.zeros(len(PARTS))
    for group in groups:
        exact = ratios * len(group)
        counts = _counts(exact, carry)
        carry += exact - counts
        shuffled = generator.permutation(group)
        for piece, rows in zip(pieces, np.split(shuffled, np.cumsum(counts)[:-1]), strict=True):
            piece.append(rows)
    parts = {name: np.sort(np.concatenate(piece)) for name, piece in zip(PARTS, pieces, strict=True)}
    for name, ratio in zip(PARTS, ratios, strict=True):
        if ratio > 0 and not len(parts[name]):
            raise SourceError(
                f"data.split: {num_rows} rows leave the {name} part (ratio {ratio:g}) empty",
                f"give more rows, a larger data.split.{name}, or 0",
            )
    return parts


def _counts(exact: NDArray[np.float64], carry: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers near `exact`, of the same sum. `carry` is what earlier classes were given too little of:
    without it, many small classes would all round the same way."""
    floor = np.floor(exact + 1e-9)
    counts = floor.astype(np.int64)
    wish = np.where(exact > 0, exact - floor + carry, -np.inf)
    left = round(float(exact.sum())) - int(counts.sum())
    counts[np.argsort(-wish, kind="stable")[:left]] += 1
    # Train comes first in this loop, so that a class with a single row can be learned at all.
    for part in np.flatnonzero((counts == 0) & (exact > 0)):
        largest = int(np.argmax(counts))
        if counts[largest] > 1 or part == 0:
            counts[largest] -= 1
            counts[part] += 1
    return counts
