from __future__ import annotations

from typing import Any

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec import load_spec
from orchestrator.spec.trials import trial_spec
from tests.unit.spec_helpers import minimal
from tests.unit.tune_case import SPACE, loaded

LR = {"train.optimizer.lr": {"loguniform": [1e-4, 1e-1]}}


def job(**sections: Any) -> Any:
    return load_spec(minimal(tune={"param_space": LR}, **sections))


def test_a_trial_is_the_job_with_its_parameters_and_no_search() -> None:
    found = trial_spec(loaded(), {"train.optimizer.lr": 0.5, "train.global_batch_size": 32, "seed": 3})
    assert found.spec.tune is None
    assert "tune" not in found.document
    assert (found.spec.train.optimizer.lr, found.spec.train.global_batch_size, found.spec.seed) == (
        0.5,
        32,
        3,
    )
    assert found.spec.train.max_epochs == 20
    assert load_spec(found.document).spec == found.spec
    assert loaded().document["tune"]["param_space"] == SPACE


def test_sections_that_are_not_written_are_made_with_their_default_kind() -> None:
    found = trial_spec(job(), {"train.optimizer.weight_decay": 0.5, "train.ema.decay": 0.9})
    assert found.spec.train.optimizer.kind == "adamw"
    assert found.spec.train.optimizer.weight_decay == 0.5
    assert found.spec.train.ema
    assert trial_spec(job(), {"init_from": {"uri": "digits-3"}}).spec.init_from
    assert trial_spec(job(), {"init_from": None}).spec.init_from is None


def test_a_name_alone_becomes_the_section_that_it_stands_for() -> None:
    found = trial_spec(job(train={"loss": "focal"}), {"train.loss.gamma": 1.5}).spec.train.loss
    assert (found.name, found.gamma) == ("focal", 1.5)
    found = trial_spec(job(), {"train.loss": "focal", "train.loss.gamma": 1.5}).spec.train.loss
    assert (found.name, found.gamma) == ("focal", 1.5)


def test_another_kind_keeps_what_it_knows_too() -> None:
    base = job(train={"optimizer": {"kind": "adamw", "lr": 0.5, "weight_decay": 0.1, "betas": [0.8, 0.9]}})
    found = trial_spec(base, {"train.optimizer.momentum": 0.3, "train.optimizer.kind": "sgd"})
    assert found.document["train"]["optimizer"] == {
        "kind": "sgd", "lr": 0.5, "weight_decay": 0.1, "momentum": 0.3,
    }  # fmt: skip
    same = trial_spec(base, {"train.optimizer.kind": "adamw"})
    assert same.spec.train.optimizer == base.spec.train.optimizer
    whole = trial_spec(base, {"train.optimizer": {"kind": "sgd"}, "train.optimizer.lr": 0.2})
    assert whole.document["train"]["optimizer"] == {"kind": "sgd", "lr": 0.2}
    schedule = job(train={"schedule": {"kind": "cosine", "min_lr": 0.1}})
    assert trial_spec(schedule, {"train.schedule.kind": "linear"}).spec.train.schedule.min_lr == 0.1


def test_arguments_go_with_the_network_that_they_were_written_for() -> None:
    base = job(model={"name": "cnn", "args": {"channels": [8]}})
    assert trial_spec(base, {"model.name": "mlp", "model.args.hidden": [4]}).document["model"] == {
        "name": "mlp", "args": {"hidden": [4]},
    }  # fmt: skip
    assert trial_spec(base, {"model.name": "cnn"}).spec.model.args == {"channels": [8]}


def test_items_of_lists_have_numbers() -> None:
    transforms = [{"kind": "standardize"}, {"kind": "scale", "by": 255.0}]
    base = job(
        data={"source": {"kind": "sklearn", "name": "digits"}, "target": "label", "transforms": transforms}
    )
    assert trial_spec(base, {"data.transforms.1.by": 16.0}).document["data"]["transforms"][1]["by"] == 16.0
    with pytest.raises(SpecError, match=r"data\.transforms\.x.*: data\.transforms is a list"):
        trial_spec(base, {"data.transforms.x.by": 16.0})


def test_the_environment_is_read_anew_and_values_are_taken_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JOB_EPOCHS", "7")
    base = job(train={"max_epochs": "${env:JOB_EPOCHS}"}, description="${env:JOB_EPOCHS}")
    found = trial_spec(base, {"model.args.text": "${env:NOT_THERE}"})
    assert found.spec.train.max_epochs == 7
    assert found.spec.description == "7"
    assert found.spec.model.args == {"text": "${env:NOT_THERE}"}
    assert load_spec(found.document).spec == found.spec


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"train.optimizer.lr": 0.0, "seed": 1}, r"train\.optimizer\.lr: must be greater than 0, not 0\.0 "
         r"\(in the trial with train\.optimizer\.lr = 0\.0\)"),
        ({"train.global_batch_size": 8, "train.optimizer.lr": 0.1},
         r"train: microbatch_size \(16\) is larger than global_batch_size \(8\) "
         r"\(in the trial with train\.global_batch_size = 8\)"),
        ({"train.optimizer.momentum": 0.1}, "'momentum' goes with kind: "),
        ({"name.x": 1}, "name is text, not a section"),
    ],
)  # fmt: skip
def test_what_does_not_fit_names_the_parameter_and_its_value(params: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        trial_spec(job(train={"microbatch_size": 16}), params)
