"""Statistics that compare two samples. Imports: numpy."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def population_stability_index(
    reference: Sequence[float], new: Sequence[float], least: float = 1e-4
) -> float:
    """Σ (new − reference) · ln(new / reference) over the shares of bins.

    A bin that holds less than the share `least` on one side counts as if it held that: an empty one would make it
    infinite. By custom, 0.1 is a moderate change and 0.25 a large one.
    """
    first = np.maximum(np.asarray(reference, np.float64), least)
    second = np.maximum(np.asarray(new, np.float64), least)
    return float(((second - first) * np.log(second / first)).sum())


def psi_p_value(psi: float, bins: int, rows: int, new_rows: int) -> float:
    """How often samples of one distribution are so far apart: PSI / (1/rows + 1/new_rows) is about chi-square
    distributed with bins − 1 degrees of freedom (Yurdakul and Naranjo 2020)."""
    if bins < 2 or not rows or not new_rows:
        return 1.0
    return chi2_tail(psi / (1 / rows + 1 / new_rows), bins - 1)


def kolmogorov_smirnov(first: Sequence[float], second: Sequence[float]) -> tuple[float, float]:
    """The two-sample statistic (the largest distance of the two distribution functions, 0 to 1) and its p-value.

    The p-value is that of the limit distribution, with Stephens' correction for small samples (1970).
    """
    if not first or not second:
        return 0.0, 1.0
    one, two = np.sort(np.asarray(first, np.float64)), np.sort(np.asarray(second, np.float64))
    every = np.concatenate([one, two])
    below = np.searchsorted(one, every, side="right") / len(one)
    statistic = float(np.abs(below - np.searchsorted(two, every, side="right") / len(two)).max())
    root = math.sqrt(len(one) * len(two) / (len(one) + len(two)))
    return statistic, kolmogorov_tail((root + 0.12 + 0.11 / root) * statistic)


def kolmogorov_tail(value: float) -> float:
    """The share of Kolmogorov's distribution above a value."""
    if value < 0.2:
        return 1.0
    terms = (math.exp(-2 * k * k * value * value) * (1 if k % 2 else -1) for k in range(1, 101))
    return min(1.0, max(0.0, 2 * sum(terms)))


def chi_square(first: Sequence[int], second: Sequence[int]) -> tuple[float, float]:
    """Pearson's statistic for two rows of counts of the same categories, and its p-value.

    Categories with fewer than 5 expected in a row are joined to one, as the approximation asks for.
    """
    counts = np.array([first, second], np.float64)
    counts = counts[:, counts.sum(axis=0) > 0]
    if counts.size == 0 or (counts.sum(axis=1) == 0).any():
        return 0.0, 1.0
    rare = _expected(counts).min(axis=0) < 5
    if rare.any():
        counts = np.column_stack([counts[:, ~rare], counts[:, rare].sum(axis=1)])
    if counts.shape[1] < 2:
        return 0.0, 1.0
    expected = _expected(counts)
    statistic = float((np.square(counts - expected) / expected).sum())
    return statistic, chi2_tail(statistic, counts.shape[1] - 1)


def _expected(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.outer(counts.sum(axis=1), counts.sum(axis=0)) / counts.sum(), np.float64)


def chi2_tail(value: float, degrees: int) -> float:
    """The share of the chi-square distribution above a value, by its closed form for whole degrees of freedom."""
    if value <= 0:
        return 1.0
    half = value / 2
    if degrees % 2:
        total, power = math.erfc(math.sqrt(half)), 0.5
    else:
        total, power = math.exp(-half), 1.0
    # The rest of the sum: e^(−half) · half^power / Γ(power + 1), in logarithms since factors overflow.
    while power < degrees / 2:
        total += math.exp(power * math.log(half) - half - math.lgamma(power + 1))
        power += 1.0
    return min(1.0, total)


def shares_p_value(first: int, first_rows: int, second: int, second_rows: int) -> float:
    """How often two shares of one probability are so far apart: the two-sided z test with the pooled share."""
    if not first_rows or not second_rows:
        return 1.0
    pooled = (first + second) / (first_rows + second_rows)
    spread = math.sqrt(pooled * (1 - pooled) * (1 / first_rows + 1 / second_rows))
    if spread == 0:
        return 1.0
    return math.erfc(abs(first / first_rows - second / second_rows) / spread / math.sqrt(2))
