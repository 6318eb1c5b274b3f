"""Fitted batch transforms: fit on the training part in chunks, apply to whole batches of tensors.

Every transform is affine per column or channel, `(x - shift) / divide`, so one pass over the rows yields all
that a chain of them needs, and a chain folds into a single one. Imports: numpy; torch for types only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.spec.data import MinMax, Scale, Standardize

if TYPE_CHECKING:
    from torch import Tensor

_CHUNK_VALUES = 1 << 22
"""Values converted to float64 at a time: 32 MiB."""


@dataclass(frozen=True)
class Affine:
    """`(x - shift) / divide`, one number per column or channel. `kind` tells where it came from."""

    kind: str
    shift: tuple[float, ...]
    divide: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "shift": list(self.shift), "divide": list(self.divide)}

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Affine:
        return cls(value["kind"], tuple(value["shift"]), tuple(value["divide"]))


@dataclass(frozen=True)
class Moments:
    """Mean, population standard deviation, minimum and maximum per column or channel, float64."""

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def moments(features: NDArray[Any]) -> Moments:
    """Moments over all axes but the last of a non-empty array, read in chunks of rows."""
    channels = features.shape[-1]
    rows_per_chunk = max(1, _CHUNK_VALUES // max(1, features[0].size))
    count = 0
    mean, squares = np.zeros(channels), np.zeros(channels)
    low, high = np.full(channels, np.inf), np.full(channels, -np.inf)
    for start in range(0, len(features), rows_per_chunk):
        chunk = features[start : start + rows_per_chunk].astype(np.float64).reshape(-1, channels)
        n, chunk_mean = len(chunk), chunk.mean(axis=0)
        # Chan et al. 1979: merge means and sums of squared deviations without cancellation.
        delta = chunk_mean - mean
        squares += ((chunk - chunk_mean) ** 2).sum(axis=0) + delta**2 * count * n / (count + n)
        mean += delta * n / (count + n)
        count += n
        low, high = np.minimum(low, chunk.min(axis=0)), np.maximum(high, chunk.max(axis=0))
    return Moments(mean, np.sqrt(squares / count), low, high)


def fit(transforms: Sequence[Standardize | MinMax | Scale], features: NDArray[Any]) -> list[Affine]:
    """Fit a chain of transforms, each on the output of those before it.

    `features` is the training part, shape (rows, columns) or (rows, height, width, channels). A constant
    column is shifted, never divided by its spread of zero.
    """
    if not transforms:
        return []
    now = moments(features)
    fitted: list[Affine] = []
    for transform in transforms:
        ones = np.ones_like(now.mean)
        if isinstance(transform, Standardize):
            shift, divide = now.mean, _nonzero(now.std, now)
        elif isinstance(transform, MinMax):
            shift, divide = now.low, _nonzero(now.high - now.low, now)
        else:
            shift, divide = 0 * ones, transform.by * ones
        fitted.append(Affine(transform.kind, tuple(shift.tolist()), tuple(divide.tolist())))
        now = Moments(
            (now.mean - shift) / divide,
            now.std / divide,
            (now.low - shift) / divide,
            (now.high - shift) / divide,
        )
    return fitted


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


def _nonzero(spread: NDArray[np.float64], now: Moments) -> NDArray[np.float64]:
    """The spread, or 1 where it is nothing but rounding: the features are float32."""
    largest = np.maximum(np.abs(now.low), np.abs(now.high))
    return np.where(spread > largest * 1e-7, spread, 1.0)
