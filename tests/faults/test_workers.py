"""Workers that die or fail: the run goes on by itself, or says who failed and goes on when it is run again."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

from tests.faults.case import STEPS, Case, worker_processes

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def test_killed_workers_are_replaced(case: Case, undisturbed: dict[str, Any]) -> None:
    driver = case.start()
    case.wait_for_step(12)
    case.dawdle()
    for rank, next_attempt in ((1, 2), (0, 3)):
        nodes = {node: process for process, node in worker_processes(case.cluster).items()}
        assert len(nodes) == 2
        os.kill(nodes[case.node_of(rank)], signal.SIGKILL)
        case.wait_for_attempt(next_attempt)
    case.hurry()
    assert driver.wait() == 0, driver.output()
    assert case.verdict.status == "SUCCEEDED"
    assert case.record.attempts == 3
    assert case.result() == undisturbed


def test_a_users_error_is_not_retried_and_the_mended_job_goes_on(
    case: Case, undisturbed: dict[str, Any]
) -> None:
    driver = case.start()
    case.wait_for_step(12)
    (case.control / "raise").touch()
    assert driver.wait() == 1
    assert case.verdict.cause == "user error"
    assert "told to raise" in case.verdict.reason
    assert case.verdict.rank in (0, 1)
    assert case.record.attempts == 1
    assert case.mlflow_statuses() == ["FAILED"]
    case.check_nothing_is_left()
    (case.control / "raise").unlink()
    case.hurry()
    again = case.start()
    assert again.wait() == 0, again.output()
    assert case.result() == undisturbed
    assert case.mlflow_statuses() == ["FINISHED"]
    assert sorted(case.steps()) == list(range(1, STEPS + 1))
