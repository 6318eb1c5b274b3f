from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.spec import load_spec
from tests.unit.spec_helpers import faults_of, minimal
from tests.unit.tune_case import SPACE, searching

LR = {"train.optimizer.lr": {"loguniform": [1e-4, 1e-1]}}
KIND = {"train.optimizer.kind": {"choice": ["sgd", "adamw"]}}


def fault_of(source: dict[str, Any]) -> tuple[str, str]:
    """The only fault: its field below `tune`, and its words."""
    [fault] = faults_of(source).values()
    return fault.field.removeprefix("tune."), str(fault)


def test_sound_searches_have_none() -> None:
    for tune in (
        {},
        {"metric": "train/loss"},
        {"metric": ["val/loss", "val/accuracy"], "search_alg": {"kind": "optuna", "sampler": "nsgaii"}},
        {"metric": ["val/loss", "val/accuracy"], "search_alg": {"kind": "random"}},
        {"search_alg": {"kind": "hyperopt"}, "scheduler": {"kind": "hyperband"}},
        {"scheduler": {"kind": "median_stopping", "grace_period": 3}},
        {"stop": {"metric": {"val/accuracy": 0.9}, "plateau": {}}},
        {"points_to_evaluate": [{"train.optimizer.lr": 0.01, "train.optimizer.kind": "sgd"}]},
    ):
        load_spec(searching(**tune))
    for scheduler in ("pbt", "pb2"):
        load_spec(
            searching(
                LR | {"train.optimizer.weight_decay": {"uniform": [0, 1]}}, scheduler={"kind": scheduler}
            )
        )
    load_spec(searching({"model": {"choice": [{"name": "linear"}, {"name": "mlp"}]}, **LR}))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("train.optimizer.lrr", "train.optimizer.lrr: is not a known key"),
        ("train.optimzer.lr", "train.optimzer is not a known key. Did you mean 'optimizer'?"),
        ("optimizer.lr", "is no field of a job"),
        ("trian.optimizer.lr", "Did you mean 'train.optimizer.lr'?"),
        ("lr", "is no field of a job"),
        (
            "name",
            "a trial cannot change 'name'. It may change seed, data, model, train, init_from, resources",
        ),
        ("storage", "a trial cannot change 'storage'"),
        ("mlflow.experiment_name", "a trial cannot change 'mlflow'"),
        ("secrets.TOKEN", "a trial cannot change 'secrets'"),
        ("tune.num_samples", "a trial cannot change 'tune'"),
        ("failure.max_failures", "a trial cannot change 'failure'"),
        ("checkpoint.num_to_keep", "a trial cannot change 'checkpoint'"),
        ("runtime_env.pip", "a trial cannot change 'runtime_env'"),
        ("train..lr", "is no path"),
        ("init_from.uri", "cannot search over weights"),
        ("train.function", "cannot search over train functions"),
        ("train.max_epochs.x", "train.max_epochs is a number, not a section"),
        ("data.clean.3.kind", "data.clean has 0 items"),
    ],
)
def test_a_path_that_is_no_field_or_no_trials_business(path: str, words: str) -> None:
    field, told = fault_of(searching(LR | {path: {"uniform": [0.1, 0.9]}}))
    assert field == f"param_space.{path}"
    assert words in told


@pytest.mark.parametrize(
    ("path", "domain", "words"),
    [
        ("train.optimizer.lr", {"uniform": [0, 1]}, "0.0 does not fit: must be greater than 0, not 0.0"),
        ("train.optimizer.weight_decay", {"uniform": [-1, 1]}, "-1.0 does not fit: must be at least 0"),
        ("train.global_batch_size", {"uniform": [8, 64]}, "8.0 does not fit: must be a whole number"),
        ("train.global_batch_size", {"quniform": [8, 64, 8]}, "must be a whole number, not 8.0"),
        ("train.global_batch_size", {"choice": [8, "16"]}, '"16" does not fit: must be a whole number, not "16"'),
        ("train.global_batch_size", {"randint": [0, 9]}, "0 does not fit: must be at least 1"),
        ("train.optimizer.kind", {"choice": ["sgd", "adamm"]}, "Did you mean 'adam'"),
        ("train.clip_grad_norm", {"choice": [None, 0.0]}, "0.0 does not fit: must be greater than 0"),
        ("train.schedule.warmup_steps", {"expr": "-5"}, "comes to -5 and does not fit: must be at least 0"),
        ("train.schedule.warmup_steps", {"expr": "5 // seed"}, "divides by zero (with seed = 0)"),
        ("resources.num_workers", {"choice": [1, [1, 2]]}, "[1, 2] does not fit: needs a fixed number of workers"),
        ("model", {"choice": [{"name": "linear"}, {"nam": "mlp"}]}, "does not fit: model.name: is missing"),
        ("train.microbatch_size", {"choice": [64, 65]}, "microbatch_size (65) is larger than global_batch_size (64)"),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_its_field(path: str, domain: dict[str, Any], words: str) -> None:
    space = {"train.loss.gamma": {"uniform": [1, 2]}, path: domain}
    faults = faults_of(searching(space))
    assert [fault.field for fault in faults.values()] == [f"tune.param_space.{path}"]
    assert words in str(faults[f"tune.param_space.{path}"])


def test_a_key_of_one_kind_alone_wants_a_condition() -> None:
    space = LR | KIND | {"train.optimizer.momentum": {"uniform": [0.1, 0.9]}}
    field, told = fault_of(searching(space))
    assert field == "param_space.train.optimizer.momentum"
    assert 'is not a known key of this kind (where train.optimizer.kind is "adamw")' in told
    assert told.endswith("Add when: {train.optimizer.kind: sgd}")


def test_one_domain_may_be_at_fault_only_where_a_condition_holds() -> None:
    space = LR | KIND
    space["train.optimizer.momentum"] = {"uniform": [0.1, 1.0], "when": {"train.optimizer.kind": "sgd"}}
    field, told = fault_of(searching(space))
    assert field == "param_space.train.optimizer.momentum"
    assert "1.0 does not fit: must be less than 1" in told
    space = LR | {"train.optimizer.kind": {"choice": ["adamw", "sgd"]}}
    space["train.optimizer.momentum"] = {"uniform": [0.1, 1.0], "when": {"train.optimizer.kind": "sgd"}}
    assert fault_of(searching(space))[0] == "param_space.train.optimizer.momentum"


@pytest.mark.parametrize(
    ("space", "field", "words"),
    [
        (LR | {"seed": {"choice": [1], "when": {"train.optimiser.lr": 1}}}, "seed.when.train.optimiser.lr",
         "is neither a parameter nor a field of this job. Did you mean 'train.optimizer.lr'?"),
        (LR | {"seed": {"expr": "train.batch_size * 2"}}, "seed.expr", "train.batch_size is neither"),
        ({"seed": {"choice": [1], "when": {"seed": 1}}}, "seed", "depends on itself: seed needs seed"),
        ({"seed": {"expr": "train.max_epochs + 1"}, "train.max_epochs": {"choice": [4], "when": {"seed": 1}}},
         "seed", "seed needs train.max_epochs needs seed"),
        (KIND | {"seed": {"choice": [1], "when": {"train.optimizer.kind": "adam"}}},
         "seed.when.train.optimizer.kind", 'never holds: train.optimizer.kind takes choice ["sgd", "adamw"]'),
        (LR | {"seed": {"choice": [1], "when": {"train.optimizer.kind": "sgd"}}},
         "seed.when.train.optimizer.kind", 'never holds: train.optimizer.kind is "adamw"'),
        (LR | {"seed": {"choice": [1], "when": {"train.optimizer.lr": 5}}},
         "seed.when.train.optimizer.lr", "never holds: train.optimizer.lr takes loguniform"),
    ],
)  # fmt: skip
def test_conditions_and_expressions_that_lead_nowhere(space: dict[str, Any], field: str, words: str) -> None:
    found, told = fault_of(searching(space))
    assert found == f"param_space.{field}"
    assert words in told


@pytest.mark.parametrize(
    ("tune", "field", "words"),
    [
        ({"metric": "val/acc"}, "metric", "Did you mean 'val/accuracy'?"),
        ({"metric": "accuracy"}, "metric", "Did you mean 'val/accuracy'?"),
        ({"metric": "test/accuracy"}, "metric", "Write val/accuracy"),
        ({"metric": ["val/loss", "val/loss"], "scheduler": {"kind": "fifo"}}, "metric.1", "twice"),
        ({"metric": ["val/loss", "val/f1"], "mode": ["min"]}, "mode", "has 1 entries for 2"),
        ({"metric": ["val/loss", "val/f1"], "scheduler": {"kind": "asha"}}, "scheduler", "compares trials by one"),
        ({"metric": ["val/loss", "val/f1"], "scheduler": {"kind": "median_stopping"}}, "scheduler", "there are 2"),
        ({"metric": ["val/loss", "val/f1"], "search_alg": {"kind": "hyperopt"}}, "search_alg", "sampler: nsgaii"),
        ({"metric": ["val/loss", "val/f1"], "search_alg": {"kind": "ax"}}, "search_alg", "sampler: nsgaii"),
        ({"metric": ["val/loss", "val/f1"], "then": "retrain"}, "then", "Write then: nothing"),
        ({"metric": ["val/loss", "val/f1"], "then": "checkpoint"}, "then", "Write then: nothing"),
        ({"metric": ["val/loss", "val/f1"], "stop": {"patience": 3}}, "stop.patience", "needs one best trial"),
        ({"stop": {"metric": {"val/acc": 1.0}}}, "stop.metric.val/acc", "Did you mean"),
        ({"stop": {"plateau": {"num_results": 21}}}, "stop.plateau.num_results", "has 20 epochs"),
        ({"scheduler": {"kind": "asha", "grace_period": 21}}, "scheduler.grace_period", "Write at most 20"),
        ({"scheduler": {"kind": "median_stopping", "grace_period": 21}}, "scheduler.grace_period", "at most 20"),
        ({"scheduler": {"kind": "asha", "brackets": 4}}, "scheduler.brackets", "leave room for 3"),
        ({"scheduler": {"kind": "pbt", "perturbation_interval": 20}}, "scheduler.perturbation_interval", "most 19"),
        ({"scheduler": {"kind": "pbt"}, "num_samples": 1}, "num_samples", "a population of at least 2"),
        ({"scheduler": {"kind": "pbt"}, "search_alg": {"kind": "optuna"}}, "search_alg", "changes as it goes"),
        ({"points_to_evaluate": [{"train.optimizer.l": 0.1}]}, "points_to_evaluate.0.train.optimizer.l", "Did you"),
        ({"points_to_evaluate": [{}, {"train.optimizer.lr": 0.5}]}, "points_to_evaluate.1.train.optimizer.lr",
         "0.5 is not in its domain, loguniform [0.0001, 0.1]"),
        ({"points_to_evaluate": [{}, {}], "num_samples": 1}, "points_to_evaluate", "has 2 points"),
    ],
)  # fmt: skip
def test_what_does_not_go_together(tune: dict[str, Any], field: str, words: str) -> None:
    found, told = fault_of(searching(LR, **tune))
    assert found == field
    assert words in told


@pytest.mark.parametrize("kind", ["optuna", "hyperopt", "ax"])
def test_only_a_random_search_walks_a_grid(kind: str) -> None:
    space = LR | {"seed": {"grid_search": [1, 2]}}
    field, told = fault_of(searching(space, search_alg={"kind": kind}))
    assert field == "search_alg"
    assert f"{kind} walks no grid (seed)" in told
    load_spec(searching(space))


@pytest.mark.parametrize(
    ("path", "domain", "words"),
    [
        ("train.optimizer.kind", {"choice": ["sgd"]}, "cannot change there"),
        ("train.global_batch_size", {"choice": [32]}, "cannot change there"),
        ("data.split.train", {"choice": [0.7]}, "cannot change there"),
        ("resources.num_workers", {"choice": [1]}, "cannot change there"),
        ("seed", {"choice": [1]}, "cannot change there"),
        ("model.args.hidden", {"choice": [[4]]}, "dropout in model.args"),
        ("train.loss.gamma", {"grid_search": [1.0, 2.0]}, "walks no grid"),
        ("train.loss.gamma", {"choice": [1.0], "when": {"seed": 0}}, "knows no 'when'"),
    ],
)
def test_a_population_changes_what_a_training_can_go_on_with(
    path: str, domain: dict[str, Any], words: str
) -> None:
    field, told = fault_of(searching(LR | {path: domain}, scheduler={"kind": "pbt"}))
    assert field == f"param_space.{path}"
    assert words in told


def test_pb2_takes_numbers_between_bounds() -> None:
    space = LR | {"train.loss.gamma": {"choice": [1.0, 2.0]}}
    assert (
        "pb2 takes uniform and loguniform, not choice"
        in fault_of(searching(space, scheduler={"kind": "pb2"}))[1]
    )
    load_spec(searching(space, scheduler={"kind": "pbt"}))


def test_cmaes_searches_numbers() -> None:
    assert (
        "(train.optimizer.kind)"
        in fault_of(searching(LR | KIND, search_alg={"kind": "optuna", "sampler": "cmaes"}))[1]
    )


def test_the_job_itself_may_not_suit_a_search() -> None:
    tune = {"param_space": LR}
    one_epoch = minimal(train={"max_epochs": 1}, tune={**tune, "scheduler": {"kind": "hyperband"}})
    assert fault_of(one_epoch)[0] == "scheduler"
    longer = minimal(train={"max_epochs": 1}, tune={
        "param_space": {"train.max_epochs": {"choice": [1, 5]}}, "scheduler": {"kind": "asha", "grace_period": 5}
    })  # fmt: skip
    load_spec(longer)
    assert "train function of your own" in fault_of(minimal(train={"function": "my:train"}, tune=tune))[1]
    elastic = fault_of(minimal(resources={"num_workers": [1, 4]}, tune=tune))[1]
    assert "resources.num_workers is [min, max]. Write resources.num_workers: 1" in elastic
    data = minimal()["data"] | {"split": {"train": 0.9, "val": 0.0, "test": 0.1}}
    assert "data.split has none" in fault_of(minimal(data=data, tune=tune))[1]
    load_spec(minimal(data=data, tune={**tune, "metric": "train/loss"}))
    given = minimal()["data"] | {"split": {"kind": "given", "files": {"train": ["a/**"]}}}
    assert "data.split has none" in fault_of(minimal(data=given, tune=tune))[1]
    metrics = minimal(train={"metrics": ["my:dice"]}, tune={**tune, "metric": "val/accuracy"})
    assert "Write one of train/loss, val/loss, val/dice" in fault_of(metrics)[1]
    load_spec(minimal(train={"metrics": ["my:dice"]}, tune={**tune, "metric": "val/dice"}))


YAML = """\
name: digits
data:
  source: {kind: sklearn, name: digits}
  target: label
model: {name: mlp}
tune:
  param_space:
    train.optimizer.lr: {uniform: [0.0, 0.1]}
    train.optimizer.beta:
      uniform: [0.5, 0.9]
    name: {choice: [a]}
    seed:
      choice: [1]
      when:
        model.nam: cnn
  metric: val/loss
  scheduler:
    kind: asha
    grace_period: 40
"""


def test_each_fault_has_its_line(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(YAML)
    found = {fault.field: fault.line for fault in faults_of(file).values()}
    assert found == {
        "tune.param_space.name": 11,
        "tune.param_space.seed.when.model.nam": 15,
        "tune.scheduler.grace_period": 19,
    }
    file.write_text(
        YAML.replace("    name: {choice: [a]}\n", "")
        .replace("model.nam:", "model.name:")
        .replace("cnn", "mlp")
    )
    found = {fault.field: fault.line for fault in faults_of(file).values()}
    assert found == {
        "tune.param_space.train.optimizer.lr": 8,
        "tune.param_space.train.optimizer.beta": 9,
        "tune.scheduler.grace_period": 18,
    }
    assert all(fault.file == str(file) for fault in faults_of(file).values())


def test_a_domain_can_be_set_from_the_command_line() -> None:
    found = load_spec(searching(), ["tune.param_space.train.optimizer.lr={uniform: [0.1, 0.2]}"]).spec.tune
    assert found
    assert found.param_space["train.optimizer.lr"].values == [0.1, 0.2]
    found = load_spec(searching(), ["tune.param_space.train.optimizer.lr.loguniform=[0.1, 0.2]"]).spec.tune
    assert found
    assert found.param_space["train.optimizer.lr"].kind == "loguniform"
    found = load_spec(searching(), ["tune.param_space.seed={choice: [1, 2]}", "tune.num_samples=3"]).spec.tune
    assert found
    assert (list(found.param_space), found.num_samples) == ([*SPACE, "seed"], 3)
    told = faults_of(searching(), "tune.param_space.train.optimizer.lr={uniform: [0.0, 0.2]}")
    assert told["tune.param_space.train.optimizer.lr"].file == "command line"
    found = load_spec(
        searching(), overrides_dict={"tune": {"param_space": {"train.loss.gamma": {"uniform": [1, 2]}}}}
    ).spec.tune
    assert found
    assert list(found.param_space) == [*SPACE, "train.loss.gamma"]


def test_one_end_at_fault_is_told_of_its_own_domain_alone() -> None:
    space = {**LR, "train.global_batch_size": {"choice": [32, 64]}, "train.loss.gamma": {"uniform": [1, 2]}}
    source = minimal(train={"microbatch_size": 64}, tune={"param_space": space})
    field, told = fault_of(source)
    assert field == "param_space.train.global_batch_size"
    assert "32 does not fit: train: microbatch_size (64) is larger than global_batch_size (32)" in told


def test_a_grid_beyond_all_measure_is_refused_at_once() -> None:
    space = {f"model.args.a{n}": {"grid_search": list(range(20))} for n in range(6)}
    assert "makes 64,000,000 trials" in fault_of(searching(space))[1]
