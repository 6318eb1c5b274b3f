"""What ends a trial before its time."""

from __future__ import annotations

import math
from typing import Any

import pytest

from orchestrator.records import EpochReport
from orchestrator.runners.search.stoppers import EqualFailures, TrialStopper, likeness
from tests.unit.search_simulation import settings


def why(stop: dict[str, Any], *reports: tuple[float, float], metric: str = "val/loss") -> list[str]:
    stopper = TrialStopper(settings(stop=stop, metric=metric))
    return [
        stopper.why_done("trial-001", EpochReport(epoch, epoch, {metric: value}, seconds))
        for epoch, (value, seconds) in enumerate(reports, 1)
    ]


def test_nothing_set_ends_nothing() -> None:
    assert not TrialStopper(settings()).active
    assert why({}, (0.0, 1e9)) == [""]


@pytest.mark.parametrize(
    ("metric", "values", "goal"), [("val/loss", (0.3, 0.2), 0.2), ("val/accuracy", (0.8, 0.95), 0.9)]
)
def test_a_value_reached(metric: str, values: tuple[float, float], goal: float) -> None:
    told = why({"metric": {metric: goal}}, (values[0], 1), (math.nan, 1), (values[1], 2), metric=metric)
    assert told == ["", "", f"{metric} reached {goal:g}"]


def test_a_plateau() -> None:
    stop = {"plateau": {"std": 0.01, "num_results": 3, "grace_period": 3}}
    told = why(stop, *((value, 1.0) for value in (1.0, 0.5, math.inf, 0.5, 0.5, 0.501)))
    assert told == [""] * 5 + ["val/loss levelled out"]


def test_its_time() -> None:
    assert why({"trial_time": 60}, (0.5, 59.0), (0.5, 60.0)) == ["", "trained for 60 s"]


def test_messages_that_differ_in_numbers_and_paths_are_alike() -> None:
    one = "RuntimeError: mat1 (32x64) and mat2 (128x10) at /data/run-1/model.py:17, lr=1e-05"
    other = "RuntimeError: mat1 (8x64) and mat2 (12x10) at /data/run-22/model.py:3, lr=0.01"
    assert likeness(one) == likeness(other)
    assert likeness(one) != likeness(one.replace("mat1", "weights"))
    failures = EqualFailures(3)
    assert not failures.failed("user error", one)
    assert not failures.failed("data", one)
    assert not failures.failed("user error", other)
    assert failures.failed("user error", one)
    failures.succeeded()
    assert not failures.failed("user error", one)
