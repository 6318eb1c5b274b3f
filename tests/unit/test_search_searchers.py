"""What suggests values: our own draws, and the libraries behind Tune's wrappers."""

from __future__ import annotations

import logging
import math
import sys
from collections import Counter
from typing import Any

import optuna
import pytest

from orchestrator.errors import MissingPackage, UsageError
from orchestrator.runners.search import spaces
from orchestrator.runners.search.searchers import Searcher, make_searcher
from tests.unit.search_simulation import HIDDEN, LR, MOMENTUM, Pool, settings, space_of, states

DOMAINS: dict[str, Any] = {
    "train.optimizer.lr": {"loguniform": [1e-4, 1e-1]},
    "train.optimizer.weight_decay": {"uniform": [0.0, 0.3]},
    "train.optimizer.momentum": {"quniform": [0.1, 0.9, 0.2]},
    "train.global_batch_size": {"randint": [8, 12]},
    "data.batching.num_workers": {"lograndint": [1, 100]},
    "model.args.hidden": {"choice": [[64], [128, 64], None]},
    "model.name": {"choice": ["mlp", "cnn"]},
    "train.drop_last": {"choice": [True, False]},
}
ALGS: list[dict[str, Any]] = [
    {"kind": "random"},
    *(
        {"kind": "optuna", "sampler": sampler, "startup_trials": 4}
        for sampler in ("tpe", "cmaes", "nsgaii", "random")
    ),
    {"kind": "hyperopt", "startup_trials": 4},
]


def searcher_of(seed: int = 3, **fields: Any) -> Searcher:
    section = settings(**fields)
    return make_searcher(section, space_of(section), seed)


def told(searcher: Searcher, number: int) -> list[dict[str, Any]]:
    """So many suggestions, each of which is told a loss."""
    found = []
    for index in range(number):
        suggestion = searcher.suggest(f"trial-{index}")
        assert suggestion is not None
        found.append(suggestion)
        loss = abs(math.log10(suggestion[LR]) + 2)
        searcher.reported(f"trial-{index}", 1, [loss])
        if index % 5 == 4:
            searcher.failed(f"trial-{index}")
        elif index % 5 == 3:
            searcher.pruned(f"trial-{index}", [loss])
        else:
            searcher.completed(f"trial-{index}", [loss])
    return found


@pytest.mark.parametrize("alg", ALGS, ids=lambda alg: alg.get("sampler", alg["kind"]))
def test_suggestions_lie_in_their_domains_and_hang_on_the_seed(alg: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"param_space": DOMAINS, "search_alg": alg}
    domains = settings(**fields).param_space
    found = told(searcher_of(**fields), 25)
    for suggestion in found:
        assert list(suggestion) == list(DOMAINS)
        for path, domain in domains.items():
            value = suggestion[path]
            assert domain.holds(value), (path, value)
            assert type(value) in (bool, int, float, str, list, type(None))
    assert all(len({str(suggestion[path]) for suggestion in found}) > 1 for path in DOMAINS)
    assert told(searcher_of(**fields), 25) == found
    assert told(searcher_of(seed=4, **fields), 25) != found


@pytest.mark.parametrize("alg", ALGS, ids=lambda alg: alg.get("sampler", alg["kind"]))
def test_points_to_evaluate_come_first(alg: dict[str, Any]) -> None:
    points = [
        {LR: 0.03, MOMENTUM: 0.25, HIDDEN: [128, 64]},
        {LR: 0.01, MOMENTUM: 0.5, HIDDEN: None},
        {LR: 0.2, HIDDEN: [64]},
    ]
    searcher = searcher_of(search_alg=alg, points_to_evaluate=points)
    found = told(searcher, 4)
    assert found[:2] == points[:2]
    assert found[2].items() >= points[2].items() if HIDDEN not in found[2] else found[2][LR] == 0.2
    assert found[2][HIDDEN] == [64]
    assert 0 <= found[2][MOMENTUM] <= 0.99
    assert found[3][LR] not in (0.03, 0.01, 0.2)


def test_a_grid_is_walked_as_often_as_asked_for() -> None:
    space = {
        HIDDEN: {"grid_search": [[64], [128, 64]]},
        MOMENTUM: {"grid_search": [0.5, 0.9]},
        LR: {"loguniform": [1e-4, 1e-1]},
    }
    section = settings(param_space=space, num_samples=2, points_to_evaluate=[{LR: 0.07}])
    pool = Pool(section, space_of(section), max_epochs=1).run()
    params = [trial.params for trial in pool.conductor.trials.values()]
    assert len(params) == pool.conductor.num_trials == 9
    assert params[0] == {HIDDEN: [64], MOMENTUM: 0.5, LR: 0.07}
    corners = [(one[HIDDEN], one[MOMENTUM]) for one in params[1:5]]
    assert corners == [([64], 0.5), ([64], 0.9), ([128, 64], 0.5), ([128, 64], 0.9)]
    assert [(one[HIDDEN], one[MOMENTUM]) for one in params[5:]] == corners
    assert len({one[LR] for one in params}) == 9


@pytest.mark.parametrize("sampler", ["tpe", "cmaes", "random"])
def test_optuna_alone_would_suggest_the_same(sampler: str) -> None:
    space = {
        LR: {"loguniform": [1e-4, 1.0]},
        MOMENTUM: {"uniform": [0.0, 0.99]},
        "seed": {"randint": [0, 50]},
    }
    alg = {"kind": "optuna", "sampler": sampler, "startup_trials": 5}
    section = settings(param_space=space, search_alg=alg, num_samples=40)

    def loss_of(params: Any) -> float:
        return float(abs(math.log10(params[LR]) + 1.5) + abs(params[MOMENTUM] - 0.9) + 0.01 * params["seed"])

    pool = Pool(section, space_of(section), learn=lambda params, loss: loss_of(params), max_epochs=1, seed=11)
    pool.run()
    samplers: dict[str, Any] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=11, n_startup_trials=5),
        "cmaes": lambda: optuna.samplers.CmaEsSampler(
            seed=11, n_startup_trials=5, warn_independent_sampling=False
        ),
        "random": lambda: optuna.samplers.RandomSampler(seed=11),
    }
    study = optuna.create_study(sampler=samplers[sampler]())
    alone = []
    distributions = {
        LR: optuna.distributions.FloatDistribution(1e-4, 1.0, log=True),
        MOMENTUM: optuna.distributions.FloatDistribution(0.0, 0.99),
        "seed": optuna.distributions.IntDistribution(0, 49),
    }
    for _ in range(40):
        trial = study.ask(distributions)
        alone.append(trial.params)
        study.tell(trial, loss_of(trial.params))
    assert [trial.params for trial in pool.conductor.trials.values()] == alone


def test_optuna_is_told_of_pruned_and_diverged_trials() -> None:
    section = settings(
        search_alg={"kind": "optuna"}, scheduler={"kind": "asha", "reduction_factor": 3}, num_samples=20
    )

    def fault(trial_id: str, epoch: int) -> str:
        return "diverged" if trial_id == "trial-004" and epoch == 1 else ""

    pool = Pool(section, space_of(section), fault=fault).run()
    searcher: Any = pool.conductor._searcher
    told = {str(index): trial.state.name for index, trial in enumerate(searcher._tuned._ot_study.trials)}
    ours = [trial.state for trial in pool.conductor.trials.values()]
    assert [told[str(index)] for index in range(20)] == [
        "PRUNED" if state == "FAILED" else "COMPLETE" if state == "COMPLETED" else state for state in ours
    ]
    assert {"FAILED", "COMPLETED", "PRUNED"} == set(ours)


def second_fails(trial_id: str, epoch: int) -> str:
    return "failed" if trial_id == "trial-002" else ""


def test_no_library_complains(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:
    """Tune's wrapper of Optuna turns errors of Optuna's into warnings of the log."""
    for alg in ALGS[1:]:
        section = settings(search_alg=alg, scheduler={"kind": "asha"}, num_samples=15, param_space=DOMAINS)
        with caplog.at_level(logging.WARNING):
            Pool(section, space_of(section), fault=second_fails).run()
    assert not caplog.records
    assert capfd.readouterr().err == ""


def test_conditions_on_others_are_asked_by_run() -> None:
    space = {
        "train.optimizer.kind": {"choice": ["adamw", "sgd"]},
        MOMENTUM: {"uniform": [0.5, 0.9], "when": {"train.optimizer.kind": "sgd"}},
        LR: {"loguniform": [1e-4, 1.0]},
    }
    searcher = searcher_of(param_space=space, search_alg={"kind": "optuna", "startup_trials": 4})
    found = told(searcher, 30)
    assert all((MOMENTUM in one) == (one["train.optimizer.kind"] == "sgd") for one in found)
    assert any(MOMENTUM in one for one in found)


def test_what_cannot_be_done_is_said() -> None:
    grid = {"param_space": {LR: {"grid_search": [0.1, 0.2]}}}
    with pytest.raises(UsageError, match="walks no grid"):
        searcher_of(search_alg={"kind": "optuna"}, **grid)
    with pytest.raises(UsageError, match="hyperopt searches by one metric, not 2"):
        searcher_of(search_alg={"kind": "hyperopt"}, metric=["val/loss", "val/other"])


def test_ax_suggests_where_it_is_installed() -> None:
    pytest.importorskip("ax")
    section = settings(
        search_alg={"kind": "ax"}, param_space=DOMAINS, num_samples=5, points_to_evaluate=[{LR: 0.03}]
    )
    params = []
    for _ in range(2):
        pool = Pool(section, space_of(section), fault=second_fails, num_slots=2).run()
        params.append([trial.params for trial in pool.conductor.trials.values()])
        assert Counter(states(pool.conductor)) == {"COMPLETED": 4, "FAILED": 1}
    assert params[0] == params[1]
    assert params[0][0][LR] == 0.03
    for path, domain in section.param_space.items():
        assert all(domain.holds(one[path]) for one in params[0])


def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ax", None)
    with pytest.raises(MissingPackage, match=r"tune.search_alg: ax needs the package 'ax'"):
        searcher_of(search_alg={"kind": "ax"})


def test_values_are_brought_back_into_their_domains() -> None:
    section = settings(param_space=DOMAINS)
    space = space_of(section)
    low = {path: -1.0 for path, domain in section.param_space.items() if domain.kind != "choice"}
    assert spaces.clip(space, low) == {
        "train.optimizer.lr": 1e-4,
        "train.optimizer.weight_decay": 0.0,
        "train.optimizer.momentum": pytest.approx(0.2),
        "train.global_batch_size": 8,
        "data.batching.num_workers": 1,
    }
    high = dict.fromkeys(low, 1e9)
    assert spaces.clip(space, high) == {
        "train.optimizer.lr": 0.1,
        "train.optimizer.weight_decay": 0.3,
        "train.optimizer.momentum": pytest.approx(0.8),
        "train.global_batch_size": 11,
        "data.batching.num_workers": 99,
    }
