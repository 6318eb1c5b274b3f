"""Fitted transforms of numbers, applied to whole batches of tensors.

Every one is affine per column or channel, `(x - shift) / divide`, so one pass over the rows yields all that a
chain of them needs, and a chain folds into a single one. Imports: numpy; torch for types only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.statistics import Moments
from orchestrator.spec.data import MinMax, NumberTransform, Robust, Scale, Standardize

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Affine:
    """`(x - shift) / divide`, one number per column or channel of a model's input. `kind` tells where it came
    from."""

    kind: str
    shift: tuple[float, ...]
    divide: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "shift": list(self.shift), "divide": list(self.divide)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Affine:
        return cls(value["kind"], tuple(value["shift"]), tuple(value["divide"]))


@dataclass(frozen=True)
class Spread:
    """What the transforms are fitted on: float64, shape (columns,) each, and `quartiles` (3, columns), which are
    NaN where nothing needs them."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    quartiles: NDArray[np.float64]

    @classmethod
    def unknown(cls, columns: int) -> Spread:
        """Of columns that no transform looks at."""
        return cls(
            np.zeros(columns),
            np.ones(columns),
            np.zeros(columns),
            np.ones(columns),
            np.full((3, columns), np.nan),
        )

    @classmethod
    def of(cls, moments: Moments, quartiles: NDArray[np.float64] | None = None) -> Spread:
        if quartiles is None:
            quartiles = np.full((3, len(moments.mean)), np.nan)
        return cls(moments.mean, moments.std, moments.low, moments.high, quartiles)

    @classmethod
    def of_counts(cls, values: NDArray[np.float64], counts: NDArray[np.float64]) -> Spread:
        """Of one column, in which each of `values` (n,) stands `counts` times."""
        values, counts = values[counts > 0], counts[counts > 0]
        order = np.argsort(values)
        values, ends = values[order], np.cumsum(counts[order])
        mean = np.average(values, weights=counts[order])
        std = np.sqrt(np.average((values - mean) ** 2, weights=counts[order]))
        ranks = np.array([0.25, 0.5, 0.75]) * (ends[-1] - 1)
        below, above = (
            values[np.searchsorted(ends, place, "right")] for place in (np.floor(ranks), np.ceil(ranks))
        )
        quartiles = below + (above - below) * (ranks - np.floor(ranks))
        return cls(np.array([mean]), np.array([std]), values[:1], values[-1:], quartiles[:, None])

    def put(self, places: NDArray[np.int64], other: Spread) -> None:
        """Write the columns of `other` at these places."""
        for mine, its in zip(self._all(), other._all(), strict=True):
            mine[..., places] = its

    def scaled(self, shift: NDArray[np.float64], divide: NDArray[np.float64]) -> Spread:
        """Of `(x - shift) / divide`, where nothing is divided by a negative number."""
        return Spread(
            (self.mean - shift) / divide,
            self.std / divide,
            (self.low - shift) / divide,
            (self.high - shift) / divide,
            (self.quartiles - shift) / divide,
        )

    def _all(self) -> tuple[NDArray[np.float64], ...]:
        return self.mean, self.std, self.low, self.high, self.quartiles


def fit(steps: Sequence[tuple[NumberTransform, NDArray[np.bool_] | None]], now: Spread) -> list[Affine]:
    """Fit a chain of transforms, each on the output of those before it, and on the columns of its mask (None:
    on all). A constant column is shifted, never divided by its spread of zero."""
    fitted: list[Affine] = []
    for step, mask in steps:
        zeros, ones = np.zeros_like(now.mean), np.ones_like(now.mean)
        if isinstance(step, Standardize):
            shift, divide = now.mean, _nonzero(now.std, now.low, now.high)
        elif isinstance(step, MinMax):
            shift, divide = now.low, _nonzero(now.high - now.low, now.low, now.high)
        elif isinstance(step, Robust):
            first, shift, third = now.quartiles
            divide = _nonzero(third - first, first, third)
        else:
            shift, divide = zeros, step.by * ones
        if mask is not None:
            shift, divide = np.where(mask, shift, zeros), np.where(mask, divide, ones)
        fitted.append(Affine(step.kind, tuple(shift.tolist()), tuple(divide.tolist())))
        now = now.scaled(shift, divide)
    return fitted


def looks_at_rows(steps: Sequence[NumberTransform]) -> bool:
    """Whether any of them needs statistics of the training rows."""
    return any(not isinstance(step, Scale) for step in steps)


def fold(chain: Sequence[Affine]) -> Affine | None:
    """One transform equal to the chain; None where the chain is empty."""
    if not chain:
        return None
    shift, divide = np.zeros(len(chain[0].shift)), np.ones(len(chain[0].shift))
    for step in chain:
        shift = shift + np.array(step.shift) * divide
        divide = divide * np.array(step.divide)
    return Affine("chain", tuple(shift.tolist()), tuple(divide.tolist()))


def apply(features: Tensor, shift: Tensor, divide: Tensor) -> Tensor:
    """`(features - shift) / divide` in float32; `features` itself is left alone."""
    return features.sub(shift).div_(divide)


def _nonzero(
    spread: NDArray[np.float64], low: NDArray[np.float64], high: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The spread of values from low to high, or 1 where it is nothing but rounding: the features are float32."""
    return np.where(spread > np.maximum(np.abs(low), np.abs(high)) * 1e-7, spread, 1.0)
