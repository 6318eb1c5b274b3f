"""Random numbers that are hashes of (seed, epoch, step, row, draw), and so need no order. Imports: numpy.

Any number of workers, any microbatch and any batch sees the same ones, and none is drawn in a loop.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from orchestrator.data.splitmix import STEP, mix

_MASK = (1 << 64) - 1
_INTERVALS = 1 << 13

Uniform = NDArray[np.float64]
"""Numbers from 0 up to but not including 1, shape (draws, n)."""


def hashes(seed: int, epoch: int, step: int, rows: NDArray[np.int64], draws: int) -> NDArray[np.uint64]:
    """Random words, shape (draws, n), by the mixing function of SplitMix64 (Steele et al. 2014)."""
    key = np.zeros(1, np.uint64)
    for word in (seed, epoch, step):
        key = mix((key ^ np.uint64(word & _MASK)) + STEP)
    state = mix((rows.astype(np.uint64) ^ key) + STEP)
    counters = np.arange(1, draws + 1, dtype=np.uint64)[:, None] * STEP
    return mix(state + counters + STEP)


def uniform(seed: int, epoch: int, step: int, rows: NDArray[np.int64], draws: int) -> Uniform:
    """Uniform numbers in [0, 1), shape (draws, n). The first draws are the same, however many are asked for."""
    bits: NDArray[np.uint64] = hashes(seed, epoch, step, rows, draws) >> np.uint64(11)
    numbers: Uniform = bits * np.float64(2.0**-53)
    return numbers


def symmetric_beta(u: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """What lies at the quantiles `u` of Beta(alpha, alpha): one number per draw, where the usual ways reject some.

    Read from a table of the distribution function, to about 1e-6.
    """
    cdf, points = _lower_half(alpha)
    lower = np.interp(np.minimum(u, 1 - u), cdf, points) ** max(1.0, 1 / alpha)
    return np.where(u < 0.5, lower, 1 - lower)


@functools.lru_cache(maxsize=8)
def _lower_half(alpha: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The distribution function from 0 to 1/2, at points t = x^min(alpha, 1).

    In t the density stays finite at 0, where that of x does not for alpha below 1.
    """
    power = min(alpha, 1.0)
    points = np.linspace(0.0, 0.5**power, _INTERVALS + 1)
    with np.errstate(divide="ignore"):
        x = points ** (1 / power)
        log_density = (alpha - 1) * np.log1p(-x)
        if alpha > 1:
            log_density += (alpha - 1) * np.log(x)
    density = np.exp(log_density - log_density.max())
    cdf = np.concatenate([[0.0], np.cumsum(density[1:] + density[:-1])])
    return cdf * (0.5 / cdf[-1]), points
