"""Decisions of a search, with pretended workers."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest

from orchestrator.errors import UsageError
from orchestrator.records import EpochReport, Failure
from orchestrator.runners.search.conductor import Conductor
from orchestrator.runners.search.trial import Ending
from orchestrator.spec.tune import TuneSection
from tests.unit.search_simulation import HIDDEN, LR, MOMENTUM, Pool, settings, space_of, states

ASHA = {"kind": "asha", "grace_period": 1, "reduction_factor": 3}
USER_ERROR = Failure(0, 1, 0.0, "ValueError: shape 3x4 of /data/a.npy", "user error")


def conductor_of(max_epochs: int = 9, seed: int = 7, **fields: Any) -> Conductor:
    section = settings(**fields)
    return Conductor(section, space_of(section), seed=seed, max_epochs=max_epochs, record=lambda event: None)


def report(epoch: int, loss: float, **more: Any) -> EpochReport:
    return EpochReport(epoch, 10 * epoch, {"val/loss": loss}, **more)


def begun(conductor: Conductor) -> str:
    trial = conductor.next_trial(0.0)
    assert trial is not None
    return trial.trial_id


def test_trials_are_made_as_they_are_asked_for() -> None:
    conductor = conductor_of(num_samples=2)
    assert conductor.num_trials == 2
    assert [begun(conductor), begun(conductor)] == ["trial-001", "trial-002"]
    assert conductor.next_trial(0.0) is None
    assert not conductor.finished
    assert not conductor.why_ended
    for trial_id in conductor.trials:
        conductor.ended(trial_id, "completed")
    assert conductor.finished
    assert conductor.why_ended == "all 2 trials have ended"


def test_ids_grow_with_their_number() -> None:
    assert begun(conductor_of(num_samples=1000)) == "trial-0001"


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_is_of_any_epoch_and_its_params_are_kept(mode: str) -> None:
    conductor = conductor_of(mode=mode)
    sign = 1 if mode == "min" else -1
    first, second = begun(conductor), begun(conductor)
    assert conductor.best is None
    for epoch, loss in enumerate([3.0, 1.0, 2.0], 1):
        conductor.report(first, report(epoch, sign * loss))
    conductor.report(second, report(1, sign * 1.0))
    best = conductor.best
    assert best is conductor.trials[first]
    assert (best.score, best.best_epoch, best.best_params) == (sign * 1.0, 2, best.params)
    conductor.report(second, report(2, sign * 0.5))
    assert conductor.best is conductor.trials[second]
    conductor.ended(second, "failed", USER_ERROR)
    assert conductor.best is best


def test_a_metric_that_is_not_reported_is_named() -> None:
    conductor = conductor_of(metric="val/acc")
    with pytest.raises(UsageError, match=r"'val/acc' is not among .* name one of those there are: val/loss"):
        conductor.report(begun(conductor), report(1, 0.5))


def test_a_repeated_epoch_is_answered_as_before_and_counts_once() -> None:
    conductor = conductor_of(scheduler=ASHA)
    first, second = begun(conductor), begun(conductor)
    assert conductor.report(first, report(1, 0.5)) == "go on"
    assert conductor.report(first, report(1, 0.1, seconds=5)) == "go on"
    assert (conductor.trials[first].score, conductor.trials[first].seconds) == (0.5, 5)
    assert conductor.report(second, report(1, 0.9)) == "stop"
    assert conductor.report(second, report(1, 0.9)) == "stop"


def test_a_trial_that_broke_off_goes_on_before_others_begin() -> None:
    conductor = conductor_of()
    first, second = begun(conductor), begun(conductor)
    conductor.report(first, report(1, 0.5))
    conductor.ended(first, "broken off")
    assert conductor.trials[first].state == "PENDING"
    assert begun(conductor) == first
    assert conductor.trials[first].attempts == 2
    assert conductor.trials[second].attempts == 1
    assert begun(conductor) == "trial-003"


def test_a_report_that_comes_too_late_says_nothing() -> None:
    conductor = conductor_of(scheduler=ASHA)
    first, second = begun(conductor), begun(conductor)
    conductor.report(first, report(1, 0.5))
    conductor.ended(second, "broken off")
    assert conductor.report(second, report(1, 0.9)) == "go on"
    assert conductor.trials[second].epoch == 0
    assert begun(conductor) == second
    assert conductor.report(second, report(1, 0.9)) == "stop"
    conductor.ended(second, "broken off")
    assert conductor.trials[second].state == "PRUNED"


@pytest.mark.parametrize(
    ("how", "state"), [("completed", "COMPLETED"), ("stopped", "STOPPED"), ("failed", "FAILED")]
)
def test_how_a_trial_ends(how: Ending, state: str) -> None:
    conductor = conductor_of()
    trial_id = begun(conductor)
    conductor.report(trial_id, report(1, 0.5))
    for _ in range(2):  # once more changes nothing
        conductor.ended(trial_id, how, USER_ERROR if how == "failed" else None)
        assert conductor.trials[trial_id].state == state
    conductor.ended(trial_id, "broken off")
    assert conductor.trials[trial_id].state == state


def test_the_last_epoch_is_no_gate_and_completes() -> None:
    section = settings(scheduler=ASHA, num_samples=30)
    pool = Pool(section, space_of(section), max_epochs=9).run()
    assert [epoch for epoch in range(1, 10) if pool.conductor.gate(epoch)] == [1, 3]
    assert {trial.state for trial in pool.conductor.trials.values()} == {"COMPLETED", "PRUNED"}
    for trial in pool.conductor.trials.values():
        assert (trial.state == "COMPLETED") == (trial.epoch == 9)


RACES: list[tuple[str, str]] = [
    *(
        (kind, alg)
        for kind in ("fifo", "asha", "hyperband", "median_stopping")
        for alg in ("random", "optuna", "hyperopt")
    ),
    *((kind, "random") for kind in ("pbt", "pb2")),
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("kind", "alg"), RACES)
def test_values_that_are_none_are_the_worst(kind: str, alg: str, value: float) -> None:
    scheduler: dict[str, Any] = {"kind": kind}
    if kind in ("pbt", "pb2"):
        scheduler["perturbation_interval"] = 2

    def learn(params: Any, loss: float) -> float:
        bad = params[MOMENTUM] > 0.5 or not math.isfinite(loss)
        return value if bad else 0.5 * loss + 0.1 * params[MOMENTUM]

    num_samples = 4 if kind == "pb2" else 9
    section = settings(scheduler=scheduler, search_alg={"kind": alg}, num_samples=num_samples)
    pool = Pool(section, space_of(section), learn=learn, num_slots=2, max_epochs=5).run()
    best = pool.conductor.best
    assert best is not None
    assert best.score is not None
    assert math.isfinite(best.score)
    assert all(trial.last_result["val/loss"] < 1e10 for trial in pool.conductor.trials.values())


def test_all_trials_without_a_number_have_no_best() -> None:
    section = settings(search_alg={"kind": "optuna"}, scheduler=ASHA)
    pool = Pool(section, space_of(section), learn=lambda params, loss: math.nan).run()
    assert pool.conductor.best is None
    assert pool.conductor.summary()["best"] is None


@pytest.mark.parametrize("alg", ["random", "optuna", "hyperopt"])
def test_a_diverged_trial_is_no_fault_of_the_search(alg: str) -> None:
    section = settings(search_alg={"kind": alg}, max_equal_failures=2)
    pool = Pool(section, space_of(section), fault=lambda trial_id, epoch: "diverged" if epoch == 2 else "")
    pool.run()
    assert states(pool.conductor) == ["FAILED"] * 12
    assert pool.conductor.verdict_failure is None
    assert "no good" in pool.conductor.trials["trial-001"].error


@pytest.mark.parametrize("alg", ["random", "optuna", "hyperopt"])
def test_failures_that_are_alike_end_the_search(alg: str) -> None:
    section = settings(search_alg={"kind": alg}, max_equal_failures=4)

    def fault(trial_id: str, epoch: int) -> str:
        return "failed" if epoch == int(trial_id[-3:]) else ""

    pool = Pool(section, space_of(section), fault=fault, num_slots=3).run()
    conductor = pool.conductor
    assert states(conductor)[:4] == ["FAILED"] * 4
    assert "RUNNING" not in states(conductor)
    assert conductor.verdict_failure is not None
    assert conductor.why_ended.startswith("4 trials failed alike: epoch")
    assert len(conductor.trials) == 6


def test_a_search_that_failed_has_failed_when_it_is_taken_up_again_unless_more_is_allowed() -> None:
    """It must not pass for one that came to its end, with what its first trials found."""
    section, patient = settings(max_equal_failures=3), settings(max_equal_failures=9)
    events: list[dict[str, Any]] = []
    facts: dict[str, Any] = {"seed": 0, "max_epochs": 4}
    conductor = Conductor(section, space_of(section), **facts, record=events.append)
    for now_s in range(1, 4):
        failing = conductor.next_trial(float(now_s))
        assert failing is not None
        conductor.ended(failing.trial_id, "failed", Failure(0, 1, 0.0, "ValueError: no", "user error"))
    assert conductor.verdict_failure is not None

    def again(section: TuneSection) -> Conductor:
        return Conductor.replay(section, space_of(section), **facts, record=lambda event: None, events=events)

    assert again(section).finished
    assert again(section).verdict_failure == conductor.verdict_failure
    assert again(section).why_ended == conductor.why_ended
    going_on = again(patient)
    assert (going_on.verdict_failure, going_on.why_ended, going_on.finished) == (None, "", False)
    fourth = going_on.next_trial(9.0)
    assert fourth is not None
    assert fourth.trial_id == "trial-004"


def test_failures_between_good_trials_do_not_end_it() -> None:
    section = settings(max_equal_failures=2)

    def fault(trial_id: str, epoch: int) -> str:
        return "failed" if int(trial_id[-3:]) % 2 else ""

    pool = Pool(section, space_of(section), fault=fault).run()
    assert states(pool.conductor) == ["FAILED", "COMPLETED"] * 6
    assert pool.conductor.verdict_failure is None


def test_patience_ends_the_search() -> None:
    section = settings(stop={"patience": 3}, num_samples=100)
    pool = Pool(section, space_of(section)).run()
    scores = [trial.score or 9.0 for trial in pool.conductor.trials.values()]
    assert pool.conductor.why_ended == "the last 3 trials brought no better best"
    assert min(scores) == scores[-4]


def test_patience_asks_for_a_true_improvement() -> None:
    conductor = conductor_of(stop={"patience": 2, "min_improvement": 0.1})
    for loss in (1.0, 0.95, 0.8, 0.79, 0.73):
        assert not conductor.why_ended
        trial_id = begun(conductor)
        conductor.report(trial_id, report(1, loss))
        conductor.ended(trial_id, "completed")
    assert conductor.why_ended


def test_the_time_budget_ends_the_search() -> None:
    conductor = conductor_of(time_budget=60, scheduler={"kind": "hyperband"})
    trial = conductor.next_trial(1000.0)
    assert trial is not None
    conductor.tick(1059.0)
    assert not conductor.why_ended
    assert conductor.next_trial(1060.0) is None
    assert conductor.why_ended == "the time budget of 60 s is used up"
    assert not conductor.finished
    assert conductor.report(trial.trial_id, report(1, 0.5)) == "stop"
    conductor.ended(trial.trial_id, "stopped")
    assert conductor.finished
    assert set(states(conductor)) == {"STOPPED"}


def test_a_stopped_search_begins_nothing() -> None:
    conductor = conductor_of()
    trial_id = begun(conductor)
    conductor.stop_search("told so")
    conductor.stop_search("told so again")
    assert conductor.next_trial(0.0) is None
    conductor.ended(trial_id, "broken off")
    assert conductor.finished
    assert conductor.why_ended == "told so"


@pytest.mark.parametrize(("final", "state"), [(True, "COMPLETED"), (False, "PRUNED")])
def test_a_trial_that_is_at_its_end_anyway_is_not_pruned(final: bool, state: str) -> None:
    conductor = conductor_of(num_samples=4, scheduler=ASHA)
    for loss in (0.1, 0.2, 0.3):
        good = begun(conductor)
        conductor.report(good, report(1, loss))
        conductor.ended(good, "completed")
    bad = begun(conductor)
    decision = conductor.report(bad, report(1, 9.0, final=final))  # say, early stopping ends it here
    assert decision == ("go on" if final else "stop")
    conductor.ended(bad, "completed")
    assert conductor.trials[bad].state == state


@pytest.mark.parametrize("num_slots", [1, 3])
def test_a_search_ended_at_its_last_trial_keeps_it(num_slots: int) -> None:
    conductor = conductor_of(max_epochs=2)
    trial_id = begun(conductor)
    conductor.report(trial_id, report(1, 0.5))
    conductor.stop_search("told so")
    assert conductor.report(trial_id, report(2, 0.4)) == "go on"
    conductor.ended(trial_id, "completed")
    assert conductor.trials[trial_id].state == "COMPLETED"


def test_stoppers_make_every_epoch_a_gate_and_complete_trials() -> None:
    conductor = conductor_of(stop={"metric": {"val/loss": 0.2}})
    assert all(conductor.gate(epoch) for epoch in range(1, 9))
    assert not conductor.gate(9)
    trial_id = begun(conductor)
    assert conductor.report(trial_id, report(1, 0.3)) == "go on"
    assert conductor.report(trial_id, report(2, 0.2)) == "stop"
    conductor.ended(trial_id, "stopped")
    trial = conductor.trials[trial_id]
    assert (trial.state, trial.why) == ("COMPLETED", "val/loss reached 0.2")


def test_several_metrics_have_a_front() -> None:
    conductor = conductor_of(metric=["a", "b"], mode=["min", "max"])
    points = [(1.0, 1.0), (2.0, 2.0), (2.0, 1.5), (3.0, 1.0), (1.0, 1.0), (math.nan, 9.0)]
    for a, b in points:
        conductor.report(begun(conductor), EpochReport(1, 1, {"a": a, "b": b}))
    assert [trial.trial_id for trial in conductor.pareto] == ["trial-001", "trial-002", "trial-005"]
    assert conductor.best is conductor.trials["trial-001"]
    assert conductor.summary()["pareto"] == ["trial-001", "trial-002", "trial-005"]
    conductor.ended("trial-002", "failed", USER_ERROR)
    assert [trial.trial_id for trial in conductor.pareto] == ["trial-001", "trial-003", "trial-005"]


def test_conditions_and_expressions_make_the_params() -> None:
    space = {
        "train.optimizer.kind": {"choice": ["adamw", "sgd"]},
        MOMENTUM: {"uniform": [0.5, 0.9], "when": {"train.optimizer.kind": "sgd"}},
        "train.global_batch_size": {"choice": [32, 64]},
        "train.schedule.warmup_steps": {"expr": "4096 // train.global_batch_size"},
    }
    for alg in ({"kind": "random"}, {"kind": "optuna"}, {"kind": "hyperopt"}):
        section = settings(param_space=space, search_alg=alg, num_samples=20)
        pool = Pool(section, space_of(section), max_epochs=1).run()
        kinds = set()
        for trial in pool.conductor.trials.values():
            params = trial.params
            kinds.add(params["train.optimizer.kind"])
            assert (MOMENTUM in params) == (params["train.optimizer.kind"] == "sgd")
            assert params["train.schedule.warmup_steps"] == 4096 // params["train.global_batch_size"]
        assert kinds == {"adamw", "sgd"}


def test_an_expression_that_comes_to_nothing_fails_its_trial() -> None:
    space = {"train.ema.decay": {"choice": [0, 1]}, "train.clip_grad_norm": {"expr": "1 / train.ema.decay"}}
    section = settings(param_space=space, num_samples=8)
    pool = Pool(section, space_of(section), max_epochs=1).run()
    assert set(states(pool.conductor)) == {"FAILED", "COMPLETED"}
    failed = next(trial for trial in pool.conductor.trials.values() if trial.state == "FAILED")
    assert "train.clip_grad_norm" in failed.error


def test_the_summary_is_plain() -> None:
    section = settings(num_samples=2)
    pool = Pool(section, space_of(section), max_epochs=2).run()
    summary = pool.conductor.summary()
    best = pool.conductor.best
    assert best is not None
    assert summary["best"] == best.trial_id
    assert summary["pareto"] == []
    assert set(summary["trials"][0]) == {
        "id", "state", "params", "epoch", "score", "best_epoch", "best_params", "metrics", "seconds", "error",
        "attempts", "why",
    }  # fmt: skip
    assert {HIDDEN, LR, MOMENTUM} == set(summary["trials"][0]["params"])


@pytest.mark.parametrize("scheduler", [{"kind": "fifo"}, ASHA])
def test_a_thousand_trials_cost_little_each(scheduler: dict[str, Any]) -> None:
    section = settings(num_samples=1000, scheduler=scheduler)
    pool = Pool(section, space_of(section), num_slots=8, max_epochs=9)
    start_s = time.perf_counter()
    pool.run()
    assert (time.perf_counter() - start_s) / len(pool.events) < 1e-3
