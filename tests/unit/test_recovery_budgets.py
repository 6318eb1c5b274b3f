"""Retry or not, and when: one budget for each cause, forgiven by progress."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.errors import Cause
from orchestrator.recovery.budgets import GiveUp, Lost, Retry, backoff_s, decide
from orchestrator.recovery.nodes import avoided
from orchestrator.spec.cluster import FailureSection

FIELDS: dict[Cause, str] = {
    "hardware": "max_failures",
    "internal": "max_failures",
    "preemption": "max_preemption_failures",
    "control plane": "max_control_plane_failures",
    "out of memory": "max_out_of_memory_failures",
    "data": "max_data_failures",
}
RETRIED = sorted(FIELDS)
HARDWARE = Lost("hardware", 1, "node-a", -9, "the worker process died", 100.0, 0)


def lost(cause: Cause = "hardware", **fields: Any) -> Lost:
    return replace(HARDWARE, cause=cause, **fields)


@pytest.mark.parametrize("cause", RETRIED)
@pytest.mark.parametrize("allowed", [0, 1, 4])
def test_a_budget_is_exact(cause: Cause, allowed: int) -> None:
    section = FailureSection(**{FIELDS[cause]: allowed})
    for failures in range(1, allowed + 1):
        assert isinstance(decide(section, [lost(cause)] * failures), Retry)
    end = decide(section, [lost(cause)] * (allowed + 1))
    assert isinstance(end, GiveUp)
    assert f"failure.{FIELDS[cause]}" in end.why
    assert f"raise failure.{FIELDS[cause]}" in end.mend
    if allowed:
        assert f"{allowed + 1} failures ({cause}) before any checkpoint" in end.why


@given(st.data())
def test_each_cause_spends_only_its_own_budget(data: st.DataObject) -> None:
    """In any order of failures, the run ends with the one that is the first too many of its own kind."""
    allowed = {field: data.draw(st.integers(0, 4)) for field in sorted(set(FIELDS.values()))}
    section, spent = FailureSection(**allowed), dict.fromkeys(allowed, 0)
    history: list[Lost] = []
    for cause in data.draw(st.lists(st.sampled_from(RETRIED), min_size=1, max_size=12)):
        history.append(lost(cause))
        spent[FIELDS[cause]] += 1
        over = spent[FIELDS[cause]] > allowed[FIELDS[cause]]
        assert isinstance(decide(section, history), GiveUp if over else Retry)
        if over:
            return


def test_progress_forgives() -> None:
    section = FailureSection(max_failures=1)
    at = [lost(saved_step=step) for step in (0, 10, 20)]
    for count in range(1, 4):
        assert isinstance(decide(section, at[:count]), Retry)
    end = decide(section, [*at, lost(saved_step=20)])
    assert isinstance(end, GiveUp)
    assert "2 failures (hardware) since the checkpoint of step 20" in end.why


def test_making_a_damaged_checkpoint_again_is_no_progress() -> None:
    history = [lost(saved_step=step) for step in (50, 40, 45, 50)]
    assert isinstance(decide(FailureSection(max_failures=3), history), GiveUp)
    assert isinstance(decide(FailureSection(max_failures=3), [*history[:3], lost(saved_step=51)]), Retry)


@pytest.mark.parametrize("cause", sorted(set(get_args(Cause)) - set(RETRIED)))
def test_some_causes_are_never_retried(cause: Cause) -> None:
    section = FailureSection(**dict.fromkeys(FIELDS.values(), 99))
    assert isinstance(decide(section, [lost(cause)]), GiveUp)


def test_what_a_worker_knows_to_be_final_is_not_retried() -> None:
    assert isinstance(decide(FailureSection(), [lost("out of memory")]), Retry)
    assert isinstance(decide(FailureSection(), [lost("out of memory", final=True)]), GiveUp)


def test_some_exit_codes_are_retried_and_not_counted() -> None:
    section = FailureSection(max_failures=1, recover_on_exit_codes=[42])
    asked = [lost("user error", exit_code=42)]
    found = decide(section, asked * 50)
    assert isinstance(found, Retry)
    assert found.after_s == section.max_backoff
    assert "exit code 42" in found.why
    assert isinstance(decide(section, [*asked, lost(exit_code=42), lost()]), Retry)
    assert isinstance(decide(section, [lost(), *asked, lost()]), GiveUp)
    assert isinstance(decide(section, [lost("user error", exit_code=43)]), GiveUp)


def test_the_wait_doubles_up_to_its_longest() -> None:
    section = FailureSection(initial_backoff=2.0, max_backoff=10.0, max_failures=99)
    waits = [decide(section, [lost()] * count).after_s for count in range(1, 7)]  # type: ignore[union-attr]
    assert waits == [0, 2, 4, 8, 10, 10]
    assert backoff_s(section, 10_000) == 10
    again = decide(section, [lost()] * 5 + [lost(saved_step=1)])
    assert isinstance(again, Retry)
    assert again.after_s == 0


def test_a_node_is_avoided_after_so_many_failures_in_a_time() -> None:
    section = FailureSection(max_node_failures=2, node_failure_window=100.0)
    on_a = [lost(time_s=0.0), lost(time_s=50.0)]
    assert avoided(on_a[:1], 60.0, section) == {}
    assert set(avoided(on_a, 99.0, section)) == {"node-a"}
    assert "2 attempts failed there within 99 s" in avoided(on_a, 99.0, section)["node-a"]
    assert avoided(on_a, 100.0, section) == {}
    assert avoided([on_a[0], lost(time_s=50.0, node="node-b")], 60.0, section) == {}
    assert avoided([lost(node="", time_s=0.0)] * 5, 1.0, section) == {}


@pytest.mark.parametrize("cause", sorted(set(get_args(Cause)) - {"hardware"}))
def test_a_node_is_not_blamed_for_what_it_did_not_do(cause: Cause) -> None:
    assert avoided([lost(cause)] * 5, 101.0, FailureSection()) == {}
