"""Decide which rows train, validate and test: pure functions of counts, of the surveyed columns and of the seed.

Imports: numpy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.splitmix import mix
from orchestrator.data.splitting.groups import fold_groups, share_groups
from orchestrator.errors import SourceError
from orchestrator.spec.data.split import Split

PARTS = ("train", "val", "test")

_NEEDS = {"grouped": "group", "time": "time", "hash": "key", "given": "part"}


def split_rows(
    num_rows: int,
    split: Split,
    seed: int,
    labels: NDArray[np.int64] | None = None,
    columns: Mapping[str, NDArray[Any]] | None = None,
) -> dict[str, NDArray[np.int64]]:
    """Row numbers of each part, ascending within a part, disjoint, together all rows.

    `columns` are those of `split_survey`, of all rows; `labels` (class indices, shape (num_rows,)) may stand for its
    `label`. Random and stratified: each class is parted by itself, within one row of its exact share; a class with at
    least as many rows as there are parts is in every part. Grouped: as near to the shares as whole groups come. Time:
    equal times stay together. Hash: shares hold on average. A part whose ratio is 0 is empty. Raises SourceError
    where another part would be empty; with given parts, where nothing trains.
    """
    columns = columns or {}
    if split.kind in ("random", "stratified"):
        codes = _shuffled(num_rows, split, seed, labels if labels is not None else columns.get("label"))
    else:
        name = _NEEDS[split.kind]
        if name not in columns:
            raise SourceError(
                f"data.split: '{split.kind}' decides by a column, and this task has none to decide by",
                "write data.split.kind: random",
            )
        codes = _decided(split, seed, columns[name])
    parts = {name: np.flatnonzero(codes == code) for code, name in enumerate(PARTS)}
    _require_rows(parts, split, num_rows)
    return parts


def part_codes(parts: Mapping[str, NDArray[np.int64]], num_rows: int) -> NDArray[np.int8]:
    """The part of each row as an index in PARTS, −1 where a row is in none, shape (num_rows,)."""
    codes = np.full(num_rows, -1, np.int8)
    for code, name in enumerate(PARTS):
        codes[parts[name]] = code
    return codes


def _decided(split: Split, seed: int, column: NDArray[Any]) -> NDArray[np.int8]:
    """The part codes of the kinds that look at a column."""
    ratios = np.array([split.train, split.val, split.test])
    if split.kind == "given":
        return column.astype(np.int8)
    if split.kind == "hash":
        return _hashed(column, ratios, seed)
    if split.kind == "time":
        return _by_time(column, ratios)
    generator = _generator(seed)
    if split.folds is None or split.fold is None:
        return share_groups(column, ratios, generator)
    tested = share_groups(column, np.array([1 - split.test, split.test]), generator) == 1
    codes = np.where(tested, np.int8(2), np.int8(0))
    codes[~tested] = fold_groups(column[~tested], split.folds, generator) == split.fold
    return codes


def _shuffled(num_rows: int, split: Split, seed: int, labels: NDArray[np.int64] | None) -> NDArray[np.int8]:
    """Random and stratified splits, with folds and without."""
    if split.kind == "stratified" and labels is None:
        raise SourceError(
            "data.split: 'stratified' needs one class per row, which the target does not give",
            "write data.split.kind: random",
        )
    generator = _generator(seed)
    if split.kind == "stratified" and labels is not None:
        groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    else:
        groups = [np.arange(num_rows)]
    if split.folds is None:
        return _shared(num_rows, groups, np.array([split.train, split.val, split.test]), generator)
    # What is tested is drawn first, and so is the same for every fold.
    tested = _shared(num_rows, groups, np.array([1 - split.test, split.test]), generator) == 1
    codes = np.where(tested, np.int8(2), np.int8(0))
    # Class after class dealt out like cards: each class, and the whole, differ by one row at most between folds.
    rest = np.concatenate([generator.permutation(group[~tested[group]]) for group in groups])
    codes[rest[np.arange(len(rest)) % split.folds == split.fold]] = 1
    return codes


def _shared(
    num_rows: int,
    groups: list[NDArray[np.int64]],
    ratios: NDArray[np.float64],
    generator: np.random.Generator,
) -> NDArray[np.int8]:
    """Part each of the groups by itself in these shares."""
    codes = np.zeros(num_rows, np.int8)
    carry = np.zeros(len(ratios))
    for group in groups:
        exact = ratios * len(group)
        counts = _counts(exact, carry)
        carry += exact - counts
        shuffled = generator.permutation(group)
        for code, rows in enumerate(np.split(shuffled, np.cumsum(counts)[:-1])):
            codes[rows] = code
    return codes


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


def _hashed(keys: NDArray[np.uint64], ratios: NDArray[np.float64], seed: int) -> NDArray[np.int8]:
    """A row's part from its key and the seed alone."""
    salt = mix(np.array([seed], np.uint64) + np.uint64(0x5EED))
    place = (mix(keys ^ salt) >> np.uint64(11)).astype(np.float64) * 2.0**-53  # in [0, 1)
    ends = np.cumsum(ratios)[:-1]
    ends[ratios[1:][::-1].cumsum()[::-1] == 0] = 1.0  # no row falls beyond the last part of a share
    return np.searchsorted(ends, place, side="right").astype(np.int8)


def _by_time(times: NDArray[Any], ratios: NDArray[np.float64]) -> NDArray[np.int8]:
    """Cut the sorted times where the shares end, or at the nearest change of time."""
    _, which, counts = np.unique(times, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)  # rows up to and with each time
    wanted = [code for code in range(len(ratios)) if ratios[code] > 0]
    codes, start = np.zeros(len(counts), np.int8), 0
    for place, code in enumerate(wanted):
        later = len(wanted) - place - 1
        exact = ratios[: code + 1].sum() * len(times)
        nearest = int(np.abs(ends - exact).argmin()) + 1 if len(ends) else 0
        stop = len(counts) if not later else min(max(nearest, start + 1), len(counts) - later)
        codes[start:stop] = code
        start = max(start, stop)
    return codes[which]


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, 0x5EED])))


def _require_rows(parts: Mapping[str, NDArray[np.int64]], split: Split, num_rows: int) -> None:
    for name in PARTS:
        ratio = getattr(split, name)
        if len(parts[name]) or ratio == 0 or (split.kind == "given" and name != "train"):
            continue
        if split.kind == "given":
            raise SourceError(
                f"data.split: none of the {num_rows} rows is given to train",
                "look at data.split.values or files",
            )
        unit = {"grouped": "more groups", "time": "rows of more times"}.get(split.kind, "more rows")
        mend = (
            f"a smaller data.split.folds, or {unit}" if split.folds else f"a larger data.split.{name}, or 0"
        )
        raise SourceError(
            f"data.split: {num_rows} rows leave the {name} part (ratio {ratio:g}) empty",
            f"give {mend}" if split.folds else f"give {unit}, {mend}",
        )
