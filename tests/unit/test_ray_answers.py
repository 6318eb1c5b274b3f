"""A call that hangs is given up."""

from __future__ import annotations

import threading

import pytest
from ray.exceptions import GetTimeoutError

from orchestrator.runners.ray_workers.answers import answer_within


def test_what_the_call_returns_or_raises_comes_back() -> None:
    assert answer_within(60, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        answer_within(60, lambda: 1 // 0)


def test_a_call_that_hangs_is_given_up() -> None:
    answered = threading.Event()
    with pytest.raises(GetTimeoutError, match=r"not answered for 0\.05 s"):
        answer_within(0.05, answered.wait)
    answered.set()
