"""The interval between checkpoints against minimising the expected time numerically."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.recovery.interval import auto_interval_s, best_interval_s, least_interval_s


def expected_time(interval_s: float, save_s: float, mtbf_s: float) -> float:
    """Wall time for one second of training, with failures at random (a Poisson process) at any time: Daly's exact model.

    Each segment of interval and save must pass without a failure, or begins anew.
    """
    return mtbf_s * math.expm1((interval_s + save_s) / mtbf_s) / interval_s


def minimum(save_s: float, mtbf_s: float) -> float:
    """By golden section; the expected time has one minimum."""
    low, high, golden = 1e-9 * mtbf_s, 2 * mtbf_s, (math.sqrt(5) - 1) / 2
    for _ in range(200):
        one, other = high - golden * (high - low), low + golden * (high - low)
        if expected_time(one, save_s, mtbf_s) < expected_time(other, save_s, mtbf_s):
            high = other
        else:
            low = one
    return (low + high) / 2


@given(st.floats(1e-6, 0.5), st.floats(1.0, 1e7))
def test_it_is_where_the_expected_time_is_least(ratio: float, mtbf_s: float) -> None:
    save_s = ratio * mtbf_s
    best, exact = best_interval_s(save_s, mtbf_s), minimum(save_s, mtbf_s)
    assert best == pytest.approx(exact, rel=0.01)
    assert expected_time(best, save_s, mtbf_s) <= 1.0001 * expected_time(exact, save_s, mtbf_s)


def test_young_for_rare_failures() -> None:
    """A save of 10 s and a failure a day: √(2·10·86400) = 1315 s, less the save."""
    assert best_interval_s(10.0, 86_400.0) == pytest.approx(1315 - 10 * 2 / 3, rel=0.001)


@given(st.floats(0.001, 100.0), st.floats(1.0, 1e6), st.floats(1.0, 10.0))
def test_rarer_failures_and_dearer_saves_mean_longer_intervals(
    save_s: float, mtbf_s: float, more: float
) -> None:
    assert best_interval_s(save_s, mtbf_s * more) >= best_interval_s(save_s, mtbf_s) * (1 - 1e-9)
    if save_s * more < mtbf_s / 2:
        assert best_interval_s(save_s * more, mtbf_s) >= best_interval_s(save_s, mtbf_s) * (1 - 1e-9)


def test_the_ends_of_the_range() -> None:
    assert best_interval_s(0.0, 100.0) == 0
    assert best_interval_s(0.0, math.inf) == 0
    assert best_interval_s(1.0, math.inf) == math.inf
    assert best_interval_s(200.0, 100.0) == best_interval_s(1e9, 100.0) == 100
    for save_s, mtbf_s in [(-1.0, 1.0), (1.0, 0.0), (1.0, -1.0), (math.nan, 1.0), (1.0, math.nan)]:
        with pytest.raises(ValueError):
            best_interval_s(save_s, mtbf_s)


@given(st.floats(0.0, 100.0), st.floats(0.001, 1.0))
def test_stalls_keep_to_their_share(stall_s: float, share: float) -> None:
    interval_s = least_interval_s(stall_s, share)
    assert stall_s == pytest.approx(share * (interval_s + stall_s), rel=1e-6, abs=1e-9)
    for wrong in (0.0, -0.1, 1.1):
        with pytest.raises(ValueError):
            least_interval_s(stall_s, wrong)


@given(st.floats(0.0, 10.0), st.floats(0.0, 100.0), st.floats(1.0, 1e6))
def test_the_automatic_interval_is_the_best_within_its_bounds(
    stall_s: float, behind_s: float, mtbf_s: float
) -> None:
    """Training goes on while a checkpoint is written behind it for `behind_s`."""
    found = auto_interval_s(stall_s, stall_s + behind_s, mtbf_s)
    best = best_interval_s(stall_s, mtbf_s)
    assert found >= best
    assert found >= behind_s * (1 - 1e-9) - 1e-9
    assert stall_s <= 0.035 * (found + stall_s) * (1 + 1e-9)
    assert found == best or found == pytest.approx(max(behind_s, stall_s * (1 / 0.035 - 1)))
