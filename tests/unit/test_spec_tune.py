from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest

from orchestrator.spec import json_schema, load_spec, render
from orchestrator.spec.domain import Domain
from orchestrator.spec.tune import TuneSection, default_mode
from tests.unit.spec_helpers import faults_of, minimal
from tests.unit.tune_case import SPACE, loaded, searching

LR = {"train.optimizer.lr": {"loguniform": [1e-4, 1e-1]}}


def tuned(param_space: dict[str, Any] | None = None, **tune: Any) -> TuneSection:
    section = loaded(param_space, **tune).spec.tune
    assert section
    return section


@pytest.mark.parametrize(
    ("effort", "samples", "searcher", "grace", "reduction"),
    [("quick", 10, "random", 1, 4), ("standard", 40, "optuna", 1, 4), ("thorough", 120, "optuna", 2, 3)],
)
def test_effort_fills_what_is_not_written(
    effort: str, samples: int, searcher: str, grace: int, reduction: int
) -> None:
    found = tuned(effort=effort)
    assert (found.num_samples, found.search_alg.kind) == (samples, searcher)
    assert found.scheduler.model_dump() == {
        "kind": "asha",
        "grace_period": grace,
        "reduction_factor": reduction,
        "brackets": 1,
    }
    written = tuned(effort=effort, num_samples=7, search_alg={"kind": "hyperopt"}, scheduler={"kind": "fifo"})
    assert (written.num_samples, written.search_alg.kind, written.scheduler.kind) == (7, "hyperopt", "fifo")


def test_the_default_scheduler_suits_the_number_of_epochs() -> None:
    def scheduler(**train: Any) -> dict[str, Any]:
        section = load_spec(minimal(train=train, tune={"param_space": LR})).spec.tune
        assert section
        return section.scheduler.model_dump()

    assert scheduler(max_epochs=1) == {"kind": "fifo"}
    assert scheduler(max_epochs=160)["grace_period"] == 10
    assert scheduler()["grace_period"] == 1


def test_several_metrics_a_grid_and_a_population_have_defaults_of_their_own() -> None:
    several = tuned(metric=["val/loss", "val/accuracy"], effort="quick")
    assert several.modes == ("min", "max")
    assert (several.then, several.scheduler.kind, several.search_alg.kind) == ("nothing", "fifo", "optuna")
    grid = tuned({"train.optimizer.lr": {"grid_search": [0.1, 0.2]}})
    assert (grid.num_samples, grid.search_alg.kind, grid.then) == (1, "random", "retrain")
    assert tuned(LR, scheduler={"kind": "pbt"}).search_alg.kind == "random"


def test_modes_go_by_the_name_unless_they_are_written() -> None:
    assert [
        default_mode(name) for name in ("val/loss", "val/rmse", "val/perplexity", "val/accuracy", "val/r2")
    ] == [
        "min",
        "min",
        "min",
        "max",
        "max",
    ]
    found = tuned(metric="val/accuracy", mode="min", stop={"metric": {"val/f1": 0.9}})
    assert found.modes == ("min",)
    assert (found.mode_of("val/accuracy"), found.mode_of("val/f1"), found.mode_of("val/loss")) == (
        "min",
        "max",
        "min",
    )


@pytest.mark.parametrize("effort", ["quick", "standard", "thorough"])
def test_the_rendered_search_loads_to_the_same(effort: str, tmp_path: Path) -> None:
    spec = loaded(
        SPACE
        | {
            "train.early_stopping": {"choice": [None, {"patience": 3}]},
            "model.args.hidden": {"choice": [[64], [128, 64], "${env:HOME}", "$${env:X}"]},
        },
        effort=effort,
        points_to_evaluate=[{"train.optimizer.lr": 0.01}],
        stop={"metric": {"val/accuracy": 0.99}, "plateau": {}, "trial_time": "10m", "patience": 20},
        time_budget="1h",
        recycle_worker_at="2GB",
    ).spec
    path = tmp_path / "again.yaml"
    path.write_text(render(spec))
    assert load_spec(path).spec == spec
    assert render(load_spec(path).spec) == render(spec)
    assert "null" not in render(spec).partition("param_space:")[2].partition("train.early_stopping:")[0]


def test_the_schema_knows_a_search() -> None:
    check = jsonschema.Draft202012Validator(json_schema())
    assert check.is_valid(searching())
    assert check.is_valid(
        searching(max_concurrent_trials=3, search_alg={"kind": "optuna", "sampler": "nsgaii"})
    )
    assert not check.is_valid(searching(max_concurrent_trials="many"))
    assert not check.is_valid(searching(scheduler={"kind": "ashaa"}))
    assert not check.is_valid(searching({"train.optimizer.lr": {"normal": [0, 1]}}))


@pytest.mark.parametrize(
    ("domain", "words"),
    [
        (0.1, "is 0.1, not a domain"),
        ([0.1, 0.2], "is a list, not a domain"),
        ({}, "has no values; write exactly one of uniform"),
        ({"uniform": [0, 1], "choice": [1]}, "has uniform and choice"),
        ({"uniform": [1, 1]}, "needs low < high, not [1, 1]"),
        ({"loguniform": [0, 1]}, "low must be greater than 0, not 0"),
        ({"lograndint": [0, 10]}, "low must be greater than 0"),
        ({"quniform": [0, 1, 0]}, "needs q greater than 0"),
        ({"quniform": [0.6, 0.9, 0.5]}, "no multiple of 0.5 lies between 0.6 and 0.9"),
        ({"choice": [1, 2, 1.0]}, "choice lists 1.0 twice"),
        ({"momentum": {"uniform": [0, 1]}}, "write the whole path as one key"),
    ],
)
def test_a_faulty_domain_says_what_is_wrong(domain: object, words: str) -> None:
    faults = faults_of(searching({"train.optimizer.lr": domain}))
    assert list(faults) == ["tune.param_space.train.optimizer.lr"]
    assert words in str(faults["tune.param_space.train.optimizer.lr"])


@pytest.mark.parametrize(
    ("domain", "key", "words"),
    [
        ({"unifrom": [0, 1]}, ".unifrom", "Did you mean 'uniform'"),
        ({"uniform": [0, 1, 2]}, ".uniform", ""),
        ({"uniform": [0, "1"]}, ".uniform.1", "must be a number"),
        ({"randint": [0, 1.5]}, ".randint.1", "must be a whole number"),
        ({"choice": []}, ".choice", "at least 1"),
        ({"choice": [1], "when": {"seed": []}}, ".when", "seed: lists no value"),
        ({"expr": "1 +"}, ".expr", "position"),
    ],
)
def test_a_faulty_key_of_a_domain_is_named(domain: object, key: str, words: str) -> None:
    faults = faults_of(searching({"train.optimizer.lr": domain}))
    assert words in str(faults[f"tune.param_space.train.optimizer.lr{key}"])


@pytest.mark.parametrize(
    ("tune", "field", "words"),
    [
        ({"param_space": {}}, "tune.param_space", "at least 1"),
        ({"effort": "high"}, "tune.effort", "must be one of quick, standard, thorough"),
        ({"num_samples": 0}, "tune.num_samples", "at least 1"),
        ({"max_concurrent_trials": "many"}, "tune.max_concurrent_trials", "must be 'auto'"),
        ({"max_concurrent_trials": 0}, "tune.max_concurrent_trials", "at least 1"),
        ({"time_budget": "0s"}, "tune.time_budget", "greater than 0"),
        ({"time_budget": "soon"}, "tune.time_budget", "not a duration"),
        ({"search_alg": {"kind": "optuma"}}, "tune.search_alg.kind", "Did you mean 'optuna'?"),
        ({"search_alg": "optuna"}, "tune.search_alg", "must be a section with keys"),
        (
            {"search_alg": {"kind": "random", "sampler": "tpe"}},
            "tune.search_alg.sampler",
            "goes with kind: optuna",
        ),
        (
            {"scheduler": {"kind": "asha", "grace": 2}},
            "tune.scheduler.grace",
            "Known here: kind, grace_period",
        ),
        (
            {"scheduler": {"kind": "asha", "reduction_factor": 1}},
            "tune.scheduler.reduction_factor",
            "at least 2",
        ),
        (
            {"scheduler": {"kind": "pbt", "quantile_fraction": 0.6}},
            "tune.scheduler.quantile_fraction",
            "at most 0.5",
        ),
        ({"num_sample": 3}, "tune.num_sample", "Did you mean 'num_samples'?"),
        ({"then": "rest"}, "tune.then", "nothing, retrain, checkpoint"),
        ({"mode": "most"}, "tune.mode", "min, max"),
        ({"recycle_worker_at": "big"}, "tune.recycle_worker_at", "not a size"),
    ],
)
def test_a_fault_of_the_section_comes_alone(tune: dict[str, Any], field: str, words: str) -> None:
    faults = faults_of(
        searching(**{"param_space": LR} | tune) if "param_space" in tune else searching(LR, **tune)
    )
    assert list(faults) == [field]
    assert words in str(faults[field])


def test_a_domain_knows_its_ends_and_its_values() -> None:
    def domain(**given: Any) -> Domain:
        return Domain.model_validate(given)

    assert domain(randint=[0, 10]).corners() == [0, 9]
    assert domain(lograndint=[1, 2]).corners() == [1]
    assert domain(quniform=[0.1, 1.0, 0.25]).corners() == [0.25, 1.0]
    assert domain(choice=[None, 1]).corners() == [None, 1]
    assert domain(expr="1 + 1").corners() == []
    assert domain(uniform=[0, 1]).holds(1)
    assert not domain(uniform=[0, 1]).holds(True)
    assert not domain(uniform=[0, 1]).holds("1")
    assert domain(randint=[0, 10]).holds(0)
    assert not domain(randint=[0, 10]).holds(10)
    assert not domain(randint=[0, 10]).holds(3.0)
    assert domain(quniform=[0, 1, 0.1]).holds(0.30000000000000004)
    assert not domain(quniform=[0, 1, 0.1]).holds(0.35)
    assert domain(choice=[1, "a"]).holds(1.0)
    assert not domain(choice=[1, "a"]).holds(True)
    assert (domain(expr="1").kind, domain(expr="1").values) == ("expr", ["1"])
    assert domain(loguniform=[1, 2]).values == [1.0, 2.0]
