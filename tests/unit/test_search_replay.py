"""A search whose driver was killed goes on from its events as if nothing had happened."""

from __future__ import annotations

import json
import logging
import random
from typing import Any

import numpy as np
import pytest

from orchestrator.records import EpochReport
from orchestrator.runners.search.conductor import Conductor
from tests.unit.search_simulation import LR, MOMENTUM, Pool, settings, space_of

ASHA = {"kind": "asha", "grace_period": 1, "reduction_factor": 3}
SEARCHES: dict[str, dict[str, Any]] = {
    "random": {},
    "grid": {
        "param_space": {LR: {"grid_search": [0.01, 0.1]}, MOMENTUM: {"uniform": [0.1, 0.9]}},
        "num_samples": 4,
    },
    "points": {"points_to_evaluate": [{LR: 0.03}, {LR: 0.5, MOMENTUM: 0.1}]},
    "optuna": {"search_alg": {"kind": "optuna", "startup_trials": 3}},
    "optuna, asha": {"search_alg": {"kind": "optuna", "startup_trials": 3}, "scheduler": ASHA},
    "cmaes": {"search_alg": {"kind": "optuna", "sampler": "cmaes", "startup_trials": 2}},
    "nsgaii": {
        "search_alg": {"kind": "optuna", "sampler": "nsgaii", "startup_trials": 4},
        "metric": ["val/loss", "val/other"],
        "mode": ["min", "min"],
    },
    "hyperopt": {"search_alg": {"kind": "hyperopt", "startup_trials": 3}},
    "asha": {"scheduler": ASHA},
    "asha in brackets": {"scheduler": {**ASHA, "brackets": 2, "reduction_factor": 2}},
    "hyperband": {"scheduler": {"kind": "hyperband"}},
    "hyperband, optuna": {"scheduler": {"kind": "hyperband"}, "search_alg": {"kind": "optuna"}},
    "median": {"scheduler": {"kind": "median_stopping", "grace_period": 2}},
    "pbt": {"scheduler": {"kind": "pbt", "perturbation_interval": 2}, "num_samples": 6},
    "stoppers": {"stop": {"plateau": {"std": 0.01}, "metric": {"val/loss": 0.1}, "patience": 5}},
}


def assert_same_after_each_cut(pool: Pool, stride: int) -> None:
    """However many of the events are there, the search comes to the same end: tried with each `stride`-th number."""
    whole = pool.run().outcome()
    for num_events in range(0, len(pool.events) + 1, stride):
        again = pool.resumed(num_events).run()
        assert again.outcome() == whole, f"after {num_events} events"


@pytest.mark.parametrize("save_every", [1, 3])
@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_goes_on_the_same_from_any_event(
    search: str, save_every: int, caplog: pytest.LogCaptureFixture
) -> None:
    section = settings(**SEARCHES[search])
    with caplog.at_level(logging.WARNING):
        pool = Pool(section, space_of(section), save_every=save_every)
        assert_same_after_each_cut(pool, stride=5 if save_every == 1 else 7)
    assert not caplog.records


def test_pb2_goes_on_the_same() -> None:
    section = settings(scheduler={"kind": "pb2", "perturbation_interval": 2}, num_samples=4)
    pool = Pool(section, space_of(section), max_epochs=7)
    assert_same_after_each_cut(pool, stride=20)
    assert [event["event"] for event in pool.events].count("exploited") == 3


@pytest.mark.parametrize("search", SEARCHES)
@pytest.mark.parametrize("num_slots", [2, 5])
def test_with_several_trials_in_flight_nothing_is_lost(search: str, num_slots: int) -> None:
    section = settings(**SEARCHES[search])
    pool = Pool(section, space_of(section), num_slots=num_slots, save_every=2).run()
    for num_events in range(0, len(pool.events), 13):
        again = pool.resumed(num_events).run()
        conductor = again.conductor
        if not section.stop.patience:
            assert len(conductor.trials) == conductor.num_trials
        assert all(trial.is_finished() for trial in conductor.trials.values())
        made = {
            event["trial"]: event["sampled"] for event in pool.events[:num_events] if event["event"] == "made"
        }
        now = {event["trial"]: event["sampled"] for event in again.events if event["event"] == "made"}
        assert made.items() <= now.items() if made else True
        best = conductor.best
        assert best is not None
        if len(section.metrics) == 1:
            assert best.score == min(trial.score or 9 for trial in conductor.trials.values())


def test_a_search_cut_again_and_again() -> None:
    section = settings(**SEARCHES["optuna, asha"])
    pool = Pool(section, space_of(section))
    whole = Pool(section, space_of(section)).run().outcome()
    for _ in range(300):
        num_events = len(pool.events)
        pool.fill()
        for slot in list(pool.slots):
            pool.step(slot)
        if pool.conductor.finished:
            break
        if len(pool.events) > num_events:
            pool = pool.resumed(len(pool.events))
    assert pool.outcome() == whole


def test_events_survive_json() -> None:
    section = settings(**SEARCHES["pbt"])
    pool = Pool(section, space_of(section)).run()
    assert json.loads(json.dumps(pool.events)) == pool.events


def test_what_was_recorded_counts(caplog: pytest.LogCaptureFixture) -> None:
    section = settings(scheduler=ASHA)
    pool = Pool(section, space_of(section)).run()
    events = json.loads(json.dumps(pool.events))
    other = {LR: 0.02, MOMENTUM: 0.5, "model.args.hidden": None}
    for event in events:
        if event["event"] == "made" and event["trial"] == "trial-003":
            event["sampled"] = other
        if event.get("decision") == "stop":
            event["decision"], event["verdict"] = "go on", None
            break
    with caplog.at_level(logging.WARNING):
        again = Conductor.replay(
            section, pool.space, seed=7, max_epochs=9, record=lambda event: None, events=events
        )
    assert again.trials["trial-003"].params == other
    assert "the searcher suggests" in caplog.text
    assert "the recorded 'go on' counts" in caplog.text


def test_others_draws_change_nothing() -> None:
    section = settings(**SEARCHES["pbt"])
    whole = Pool(section, space_of(section)).run().outcome()
    pool = Pool(section, space_of(section))
    random.seed(1)
    np.random.seed(1)
    first = random.random(), np.random.random()
    random.seed(1)
    np.random.seed(1)
    pool.fill()
    assert (random.random(), np.random.random()) == first
    for _ in range(1000):
        random.random()
        np.random.random()
        pool.fill()
        for slot in list(pool.slots):
            pool.step(slot)
    assert pool.outcome() == whole


def test_a_trial_that_was_told_to_stop_does_not_run_again() -> None:
    section = settings(scheduler=ASHA)
    pool = Pool(section, space_of(section)).run()
    cut = next(index for index, event in enumerate(pool.events) if event.get("decision") == "stop")
    events: list[dict[str, Any]] = []
    again = Conductor.replay(
        section, pool.space, seed=7, max_epochs=9, record=events.append, events=pool.events[: cut + 1]
    )
    stopped = again.trials[pool.events[cut]["trial"]]
    assert stopped.state == "PRUNED"
    assert [event["event"] for event in events] == ["ended"]
    assert again.report(stopped.trial_id, EpochReport(9, 90, {"val/loss": 0.0})) == "stop"


def test_the_time_between_drivers_does_not_count() -> None:
    section = settings(time_budget=100)
    events: list[dict[str, Any]] = []
    facts: dict[str, Any] = {"seed": 0, "max_epochs": 3, "record": events.append}
    conductor = Conductor(section, space_of(section), **facts)
    conductor.next_trial(1000.0)
    conductor.next_trial(1090.0)
    again = Conductor.replay(section, space_of(section), **facts, events=list(events))
    assert again.next_trial(5000.0) is not None
    again.tick(5009.0)
    assert not again.why_ended
    again.tick(5011.0)
    assert again.why_ended == "the time budget of 100 s is used up"
