"""A trial goes on from another's state with settings of its own: its optimizer against one of torch's, made by hand."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoints.hand_over import hand_over
from orchestrator.engine.attempt import Attempt
from orchestrator.engine.loop import train
from orchestrator.engine.parallel.state import load_optimizer_state
from tests.unit.engine_case import case_attempt, case_spec
from tests.unit.test_engine_optim import OPTIMIZERS, five_steps, network, optimizer_of

SECTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sgd": ({"lr": 0.05, "momentum": 0.8}, {"lr": 0.02, "momentum": 0.5, "weight_decay": 0.1}),
    "adamw": (
        {"lr": 0.02, "betas": (0.8, 0.95), "weight_decay": 0.3},
        {"lr": 0.04, "betas": (0.9, 0.99), "weight_decay": 0.1, "eps": 1e-6},
    ),
    "rmsprop": ({"lr": 0.02, "momentum": 0.5}, {"lr": 0.01, "momentum": 0.9, "alpha": 0.9}),
    "adagrad": ({"lr": 0.1}, {"lr": 0.3, "lr_decay": 0.1}),
}


@pytest.mark.parametrize("kind", SECTIONS)
def test_moments_come_over_and_settings_stay(kind: str) -> None:
    theirs, own = SECTIONS[kind]
    donor = network()
    given = optimizer_of({"kind": kind, **theirs}, donor)
    five_steps(donor, given)

    ours, by_hand = copy.deepcopy(donor), copy.deepcopy(donor)
    taking = optimizer_of({"kind": kind, **own}, ours)
    load_optimizer_state(ours, taking, copy.deepcopy(given.state_dict()))
    for group in taking.param_groups:
        assert {name: group[name] for name in own} == own
    five_steps(ours, taking)

    how = {} if kind == "rmsprop" else {"fused": True}
    reference = OPTIMIZERS[kind](by_hand.parameters(), **{"weight_decay": 0.0, **own}, **how)
    for one, other in zip(by_hand.parameters(), donor.parameters(), strict=True):
        moments = given.state[other]
        assert moments, "there is something to come over"
        reference.state[one] = {name: copy.deepcopy(value) for name, value in moments.items()}
    five_steps(by_hand, reference)
    for one, other in zip(ours.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("theirs", "own"),
    [
        ({"kind": "sgd", "momentum": 0.9}, {"kind": "adamw"}),
        ({"kind": "adamw"}, {"kind": "sgd", "momentum": 0.9}),
        ({"kind": "sgd", "momentum": 0.0}, {"kind": "sgd", "momentum": 0.9}),
        ({"kind": "rmsprop", "momentum": 0.0}, {"kind": "rmsprop", "momentum": 0.9}),
        ({"kind": "rmsprop"}, {"kind": "rmsprop", "centered": True}),
        ({"kind": "adagrad"}, {"kind": "adam"}),
    ],
    ids=lambda section: "-".join(map(str, section.values())),
)
def test_an_optimizer_that_keeps_other_moments_begins_with_none(
    theirs: dict[str, Any], own: dict[str, Any]
) -> None:
    donor = network()
    given = optimizer_of({"lr": 0.02, **theirs}, donor)
    five_steps(donor, given)
    ours, fresh = copy.deepcopy(donor), copy.deepcopy(donor)
    taking = optimizer_of({"lr": 0.02, **own}, ours)
    load_optimizer_state(ours, taking, copy.deepcopy(given.state_dict()))
    five_steps(ours, taking)
    five_steps(fresh, optimizer_of({"lr": 0.02, **own}, fresh))
    for one, other in zip(ours.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_trial_goes_on_from_anothers_checkpoint(tmp_path: Path) -> None:
    """Weights and moments are those of the other one, the learning rate is its own at this step."""
    torch.set_num_threads(1)
    other = case_attempt(case_spec(train={"max_epochs": 2}), tmp_path, run="other-1")
    train(other)
    own = {"kind": "adamw", "lr": 0.002, "weight_decay": 0.5}
    spec = case_spec(train={"max_epochs": 3, "optimizer": own, "schedule": {"kind": "constant"}})
    before = case_attempt(spec, tmp_path, run="own-1")
    hand_over(other.store, other.store.manifests()[-1], before.store)
    ours = case_attempt(spec, tmp_path, run="own-1")
    assert (ours.position.epoch, ours.position.step) == (2, other.position.step)
    assert_taken_over(ours, other)
    assert [(group["lr"], group["weight_decay"]) for group in ours.optimizer.param_groups] == [(0.002, 0.5)]
    assert train(ours).steps == ours.recipe.steps_per_epoch


def assert_taken_over(ours: Attempt, other: Attempt) -> None:
    for key, value in other.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[key], value), key
    for index, entry in other.optimizer.state_dict()["state"].items():
        for name, tensor in entry.items():
            assert torch.equal(ours.optimizer.state_dict()["state"][index][name], tensor), (index, name)
