"""When the clock asks for a save."""

from __future__ import annotations

import os

import pytest

from orchestrator.checkpoints.cadence import FIRST_AUTO_S, Cadence
from orchestrator.checkpoints.interval import auto_interval_s
from orchestrator.checkpoints.saver import Saved


def _saved(stall_s: float, seconds: float, busy_s: float = 0.0) -> Saved:
    return Saved(step=1, seconds=seconds, stall_s=stall_s, busy_s=busy_s, size_bytes=1)


def test_never_unless_asked() -> None:
    cadence = Cadence(None, 100.0)
    cadence.saved(0.0)
    assert not cadence.due(1e9)
    assert cadence.learn(_saved(1.0, 2.0)) is None


def test_every_so_many_seconds_after_the_last_save_whoever_asked_for_it() -> None:
    cadence = Cadence(10.0, 100.0)
    cadence.saved(1000.0)
    assert [cadence.due(1000.0 + after) for after in (0.0, 9.9, 10.0, 11.0)] == [False, False, True, True]
    cadence.saved(1011.0)
    assert not cadence.due(1020.9)
    assert cadence.due(1021.0)


def test_the_automatic_interval_follows_what_checkpoints_cost() -> None:
    cadence = Cadence("auto", 10800.0)
    cadence.saved(0.0)
    assert cadence.interval_s == FIRST_AUTO_S
    first = cadence.learn(_saved(0.2, 4.0, busy_s=0.5 * (os.cpu_count() or 1)))
    assert first == cadence.interval_s == pytest.approx(auto_interval_s(0.7, 4.0, 10800.0))
    assert cadence.learn(_saved(0.2, 4.0, busy_s=0.5 * (os.cpu_count() or 1))) is None
    for _ in range(5):  # the storage got slow
        cadence.learn(_saved(0.2, 600.0))
    assert cadence.interval_s is not None
    assert cadence.interval_s >= 599  # no more than one save is written at a time


def test_dear_saves_stall_no_more_than_their_share() -> None:
    cadence = Cadence("auto", 60.0)
    interval_s = cadence.learn(_saved(7.0, 7.0))
    assert interval_s is not None
    assert 7.0 / (7.0 + interval_s) <= 0.035 + 1e-9
