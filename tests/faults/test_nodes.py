"""Nodes that die, are cut off, come back, or give notice: same size, same bits; other sizes, same samples."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.local_cluster import network
from tests.faults.case import STEPS, Case, worker_processes

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
CUTS: tuple[network.Cut, ...] = ("link", "packets")


def busy_node(case: Case) -> str:
    """A node with a worker on it."""
    return sorted(worker_processes(case.cluster).values())[0]


def finish_like(case: Case, driver: Any, undisturbed: dict[str, Any]) -> None:
    """The run ends as if nothing had happened."""
    case.hurry()
    assert driver.wait() == 0, driver.output()
    assert case.verdict.status == "SUCCEEDED"
    assert case.result() == undisturbed


def test_a_dead_nodes_worker_goes_to_the_spare_node(case: Case, undisturbed: dict[str, Any]) -> None:
    driver = case.start()
    case.wait_for_step(12)
    case.dawdle()
    for silent, next_attempt in ((False, 2), (True, 3)):
        dead = busy_node(case)
        case.cluster.kill(dead, silent=silent)
        case.wait_for_attempt(next_attempt)
        assert dead not in worker_processes(case.cluster).values()
        case.cluster.start(dead)
    finish_like(case, driver, undisturbed)


def test_without_a_spare_node_the_run_waits_says_so_and_goes_on_when_it_is_back(
    case: Case, undisturbed: dict[str, Any]
) -> None:
    driver = case.start()
    case.wait_for_step(12)
    busy = sorted(set(worker_processes(case.cluster).values()))
    (spare,) = {"w1", "w2", "w3"} - set(busy)
    case.cluster.kill(spare)
    case.cluster.kill(busy[0])
    case.wait_until(lambda: "needs 2" in driver.output(), 60, "word of what is waited for")
    case.cluster.start(busy[0])
    case.wait_for_attempt(2)
    finish_like(case, driver, undisturbed)


def test_an_elastic_run_shrinks_and_grows_and_sees_every_sample_once(
    case: Case, undisturbed: dict[str, Any]
) -> None:
    driver = case.start("resources.num_workers=[1, 2]", "resources.resize_cooldown=1s")
    case.wait_for_step(12)
    busy = sorted(set(worker_processes(case.cluster).values()))
    (spare,) = {"w1", "w2", "w3"} - set(busy)
    case.cluster.kill(spare)
    case.cluster.kill(busy[0])
    case.wait_for_attempt(2)
    case.dawdle()
    assert set(worker_processes(case.cluster).values()) == {busy[1]}
    case.cluster.start(busy[0])
    case.wait_for_attempt(3)
    assert set(worker_processes(case.cluster).values()) == set(busy)
    case.hurry()
    assert driver.wait() == 0, driver.output()
    result = case.result()
    for key in ("train/loss", "val/loss"):
        steps, values = zip(*result[key], strict=True)
        expected_steps, expected = zip(*undisturbed[key], strict=True)
        assert steps == expected_steps
        assert values == pytest.approx(expected, rel=1e-3)


def test_a_short_cut_does_not_hurt(case: Case, undisturbed: dict[str, Any]) -> None:
    driver = case.start()
    case.wait_for_step(12)
    cut_off = busy_node(case)
    for how in CUTS:
        case.cluster.cut(cut_off, how)
        reached = max(case.steps())
        case.cluster.heal(cut_off)  # well before anybody notices
        case.wait_for_step(reached + 5)
    finish_like(case, driver, undisturbed)


def test_a_node_that_is_cut_off_is_replaced_and_may_come_back(
    case: Case, undisturbed: dict[str, Any]
) -> None:
    driver = case.start()
    case.wait_for_step(12)
    case.dawdle()
    for next_attempt, how in enumerate(CUTS, start=2):
        cut_off = busy_node(case)
        case.cluster.cut(cut_off, how)
        case.cluster.wait_for({cut_off: "DEAD"})
        case.wait_for_attempt(next_attempt)
        case.cluster.heal(cut_off)
        case.cluster.wait_for({cut_off: "ALIVE"})
    finish_like(case, driver, undisturbed)
    # What its stale worker may have tried to write did no harm: the history is whole.
    assert sorted(case.steps()) == list(range(1, STEPS + 1))


def test_a_node_that_cannot_be_reached_is_given_up_without_waiting_for_ray(
    case: Case, undisturbed: dict[str, Any]
) -> None:
    driver = case.start("failure.unreachable_timeout=2s")
    case.wait_for_step(12)
    case.dawdle()
    cut_off = busy_node(case)
    case.cluster.cut(cut_off, "link")
    case.wait_for_attempt(2)
    case.cluster.heal(cut_off)
    finish_like(case, driver, undisturbed)
    assert "does not answer: its node may be lost" in driver.output()


def test_a_drain_notice_lets_the_run_save_and_move(case: Case, undisturbed: dict[str, Any]) -> None:
    driver = case.start()
    case.wait_for_step(12)
    going = busy_node(case)
    case.cluster.drain(going, 30)
    case.wait_for_attempt(2)
    assert going not in worker_processes(case.cluster).values()
    case.cluster.kill(going)
    finish_like(case, driver, undisturbed)
