"""Which trials go on, pause and end: what Tune's schedulers do behind ours."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from orchestrator.errors import UsageError
from orchestrator.runners.search.trial import HandOver
from tests.unit.search_simulation import HIDDEN, LR, MOMENTUM, SPACE, Pool, learn, settings, space_of, states

NUMBERS = {path: SPACE[path] for path in (LR, MOMENTUM)}


def pool_of(max_epochs: int = 9, num_slots: int = 1, fault: Any = None, **fields: Any) -> Pool:
    section = settings(**fields)
    more = {"fault": fault} if fault else {}
    return Pool(section, space_of(section), max_epochs=max_epochs, num_slots=num_slots, **more)


def gates(pool: Pool) -> list[int]:
    return [epoch for epoch in range(1, pool.max_epochs + 1) if pool.conductor.gate(epoch)]


@pytest.mark.parametrize(
    ("scheduler", "max_epochs", "expected"),
    [
        ({"kind": "fifo"}, 9, []),
        ({"kind": "asha", "grace_period": 1, "reduction_factor": 4}, 64, [1, 4, 16]),
        ({"kind": "asha", "grace_period": 3, "reduction_factor": 2}, 20, [3, 6, 12]),
        ({"kind": "asha", "grace_period": 1, "reduction_factor": 3, "brackets": 2}, 30, [1, 3, 9, 27]),
        ({"kind": "asha", "grace_period": 50, "reduction_factor": 3}, 5, []),
        ({"kind": "hyperband", "reduction_factor": 3}, 27, [1, 3, 9]),
        ({"kind": "hyperband", "reduction_factor": 3}, 10, [1, 3]),
        ({"kind": "hyperband", "reduction_factor": 3}, 1, []),
        ({"kind": "median_stopping", "grace_period": 3}, 6, [3, 4, 5]),
        ({"kind": "pbt", "perturbation_interval": 3}, 9, [3, 6]),
        ({"kind": "pb2", "perturbation_interval": 2}, 5, [2, 4]),
    ],
)
def test_gates(scheduler: dict[str, Any], max_epochs: int, expected: list[int]) -> None:
    assert gates(pool_of(max_epochs, scheduler=scheduler)) == expected


def test_asha_prunes_what_lies_below_the_cutoff_of_its_rung() -> None:
    pool = pool_of(scheduler={"kind": "asha", "grace_period": 1, "reduction_factor": 3}, num_samples=40).run()
    rungs: dict[int, list[float]] = {1: [], 3: []}
    for event in pool.events:
        if event["event"] == "report" and event["epoch"] in rungs:
            seen, loss = rungs[event["epoch"]], event["metrics"]["val/loss"]
            cutoff = np.percentile([-one for one in seen], (1 - 1 / 3) * 100) if seen else -np.inf
            assert event["decision"] == ("stop" if -loss < cutoff else "go on")
            seen.append(loss)
    assert len(rungs[3]) > 8
    assert Counter(states(pool.conductor))["PRUNED"] > 20


@pytest.mark.parametrize("num_slots", [1, 4])
def test_hyperband_halves_whole_brackets(num_slots: int) -> None:
    """9 epochs, by 3: brackets of 3 that run through, of 5 halved at 3, of 9 halved at 1 and 3 (Tune's sizes)."""
    pool = pool_of(9, num_slots, scheduler={"kind": "hyperband", "reduction_factor": 3}, num_samples=17).run()
    trials = list(pool.conductor.trials.values())
    ends = [Counter(trial.epoch for trial in bracket) for bracket in (trials[:3], trials[3:8], trials[8:])]
    assert ends == [{9: 3}, {3: 3, 9: 2}, {1: 6, 3: 2, 9: 1}]
    for bracket, milestone in ((trials[3:8], 3), (trials[8:], 1)):
        losses = {
            event["trial"]: event["metrics"]["val/loss"]
            for event in pool.events
            if event["event"] == "report" and event["epoch"] == milestone
        }
        kept = [losses[trial.trial_id] for trial in bracket if trial.epoch > milestone]
        out = [losses[trial.trial_id] for trial in bracket if trial.epoch == milestone]
        assert max(kept) <= min(out)


@pytest.mark.parametrize("num_slots", [1, 3])
def test_a_bracket_goes_on_without_the_trials_that_fail(num_slots: int) -> None:
    lost = {("trial-006", 2), ("trial-010", 1), ("trial-016", 2)}

    def fault(trial_id: str, epoch: int) -> str:
        return "failed" if (trial_id, epoch) in lost else ""

    pool = pool_of(9, num_slots, fault, scheduler={"kind": "hyperband"}, num_samples=17).run()
    assert Counter(states(pool.conductor))["FAILED"] >= 2
    assert Counter(states(pool.conductor))["COMPLETED"] >= 5


def test_a_paused_trial_that_was_broken_off_before_it_had_saved_pauses_again() -> None:
    pool = pool_of(9, 1, scheduler={"kind": "hyperband"}, num_samples=8)
    conductor = pool.conductor
    while not any(decision == "pause" for decision in pool.decisions.values()):
        pool.fill()
        slot = pool.slots[0]
        left, pool._left = pool._left, lambda *args: None  # type: ignore[method-assign]
        pool.step(slot)
        pool._left = left  # type: ignore[method-assign]
        if slot.epoch == pool.max_epochs:
            pool._left(slot, "completed")
    trial = slot.trial
    assert trial.pausing
    pool.slots.clear()
    conductor.ended(trial.trial_id, "broken off")
    assert (trial.state, trial.pausing) == ("PENDING", True)
    assert conductor.next_trial(0.0) is trial
    pool.slots.append(pool._begun(trial))
    pool.slots[0].epoch -= 1
    pool.step(pool.slots[0])
    assert trial.state == "PAUSED"
    pool.run()


def test_median_stopping_ends_what_is_worse_than_the_median() -> None:
    pool = pool_of(scheduler={"kind": "median_stopping", "grace_period": 2}, num_samples=20).run()
    curves: dict[str, list[float]] = {}
    stopped = 0
    for event in pool.events:
        if event["event"] != "report":
            continue
        own = curves.setdefault(event["trial"], [])
        own.append(event["metrics"]["val/loss"])
        epoch = event["epoch"]
        others = [curve for trial, curve in curves.items() if trial != event["trial"] and len(curve) >= epoch]
        if 2 <= epoch < 9:
            means = [np.mean(curve[1:epoch]) for curve in others]
            out = len(means) >= 3 and min(own) > np.median(means)
            assert event["decision"] == ("stop" if out else "go on"), event
            stopped += out
    assert stopped >= 3


@pytest.mark.parametrize("num_slots", [1, 2, 8])
def test_a_population_takes_over_from_its_best(num_slots: int) -> None:
    scheduler = {"kind": "pbt", "perturbation_interval": 3}
    pool = pool_of(9, num_slots, scheduler=scheduler, num_samples=8, param_space=NUMBERS).run()
    exploited = [event for event in pool.events if event["event"] == "exploited"]
    assert [event["epoch"] for event in exploited] == [3, 3, 6, 6]
    for event in exploited:
        at = {
            trial_id: loss for (trial_id, epoch), (loss, _) in pool.saved.items() if epoch == event["epoch"]
        }
        ranked = sorted(at, key=lambda trial_id: at[trial_id])
        assert event["from"] in ranked[:2]
        assert event["trial"] in ranked[-2:]
        assert 1e-4 <= event["params"][LR] <= 1.0
        assert 0.0 <= event["params"][MOMENTUM] <= 0.99
        after = pool.saved[event["trial"], event["epoch"] + 1][0]
        assert after == learn(event["params"], at[event["from"]])
    last = exploited[-1]
    assert pool.conductor.trials[last["trial"]].start_from == HandOver(last["from"], 6)
    assert states(pool.conductor) == ["COMPLETED"] * 8
    assert pool.most_at_once == min(num_slots, 8)


@pytest.mark.parametrize("num_slots", [1, 2, 8])
@pytest.mark.parametrize("how", ["failed", "broken off"])
def test_a_population_does_not_wait_for_the_lost(how: str, num_slots: int) -> None:
    lost = {("trial-008", 3), ("trial-001", 4), ("trial-005", 8)}

    def fault(trial_id: str, epoch: int) -> str:
        if (trial_id, epoch) in lost:
            lost.discard((trial_id, epoch))
            return how
        return ""

    pool = pool_of(9, num_slots, fault, scheduler={"kind": "pbt", "perturbation_interval": 3}, num_samples=8)
    pool.run()
    failed = 3 if how == "failed" else 0
    assert Counter(states(pool.conductor)) == {"COMPLETED": 8 - failed, **({"FAILED": 3} if failed else {})}
    assert not lost


def test_a_population_all_gone_but_one() -> None:
    def fault(trial_id: str, epoch: int) -> str:
        return "failed" if trial_id != "trial-002" and epoch == 4 else ""

    pool = pool_of(9, 2, fault, scheduler={"kind": "pbt", "perturbation_interval": 3}, num_samples=4).run()
    assert states(pool.conductor) == ["FAILED", "COMPLETED", "FAILED", "FAILED"]


def test_choices_of_numbers_move_to_a_neighbour_and_whole_numbers_stay_whole() -> None:
    space = {
        "train.schedule.warmup_steps": {"randint": [1, 100]},
        "train.optimizer.weight_decay": {"choice": [0.1, 0.01, 0.001]},
        "train.optimizer.nesterov": {"choice": [True, False]},
    }
    scheduler = {"kind": "pbt", "perturbation_interval": 1, "resample_probability": 0.0}
    section = settings(param_space=space, scheduler=scheduler, num_samples=8)

    def loss_of(params: Mapping[str, Any], loss: float) -> float:
        return float(loss * (1 - 0.001 * params["train.schedule.warmup_steps"]))

    pool = Pool(section, space_of(section), learn=loss_of).run()
    before = {event["trial"]: event["params"] for event in pool.events if event["event"] == "made"}
    for event in pool.events:
        if event["event"] == "exploited":
            old, new = before[event["from"]], event["params"]
            before = {**before, event["trial"]: new}
            decays = [0.001, 0.01, 0.1]
            shift = decays.index(new["train.optimizer.weight_decay"]) - decays.index(
                old["train.optimizer.weight_decay"]
            )
            assert abs(shift) <= 1
            assert isinstance(new["train.optimizer.nesterov"], bool)
            assert isinstance(new["train.schedule.warmup_steps"], int)
            assert 1 <= new["train.schedule.warmup_steps"] < 100


def test_pb2_needs_a_number_to_change() -> None:
    with pytest.raises(UsageError, match=r"tune.param_space draws none. add train.optimizer.lr"):
        pool_of(scheduler={"kind": "pb2"}, param_space={HIDDEN: {"choice": [[64], [32]]}})


def test_pb2_searches_in_the_logarithm() -> None:
    pool = pool_of(7, scheduler={"kind": "pb2", "perturbation_interval": 2}, num_samples=4).run()
    exploited = [event for event in pool.events if event["event"] == "exploited"]
    assert len(exploited) == 3
    for event in exploited:
        assert 1e-4 <= event["params"][LR] <= 1.0
        assert 0.0 <= event["params"][MOMENTUM] <= 0.99
    made = {event["params"][LR] for event in pool.events if event["event"] == "made"}
    assert any(event["params"][LR] not in made for event in exploited)


@pytest.mark.parametrize("kind", ["hyperband", "pbt"])
def test_a_pause_whose_checkpoint_is_there_after_a_crash_needs_no_run(kind: str) -> None:
    pool = pool_of(9, scheduler={"kind": kind}, num_samples=8, param_space=NUMBERS).run()
    whole = pool.outcome()
    cut = next(index for index, event in enumerate(pool.events) if event.get("decision") == "pause") + 1
    again = pool.resumed(cut)
    trial = again.conductor.trials[pool.events[cut - 1]["trial"]]
    assert (trial.state, trial.pausing) == ("PENDING", True)
    again.conductor.ended(trial.trial_id, "paused")
    assert trial.state == "PAUSED"
    third = again.resumed(len(again.events))
    assert third.conductor.trials[trial.trial_id].state == "PAUSED"
    assert again.run().outcome() == whole
    assert third.run().outcome() == whole
