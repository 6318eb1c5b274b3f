"""Optimizers against torch's own made by hand, and against rules written out here."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from orchestrator.engine.optim.optimizer import add_l1, build_optimizer
from orchestrator.errors import UsageError
from orchestrator.spec.train import TrainSection
from tests.unit.sharding import gathered, one_rank, sharded

CPU = torch.device("cpu")
OPTIMIZERS = {
    "sgd": torch.optim.SGD,
    "rmsprop": torch.optim.RMSprop,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "adagrad": torch.optim.Adagrad,
}


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))


def optimizer_of(section: dict[str, Any], model: torch.nn.Module, **settings: Any) -> torch.optim.Optimizer:
    return build_optimizer(TrainSection(optimizer=section).optimizer, model, CPU, **settings)  # type: ignore[arg-type]


def five_steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, l1: float = 0.0) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        optimizer.zero_grad()
        model(torch.randn(6, 3, generator=generator)).square().mean().backward()
        if l1:
            add_l1(optimizer)
        optimizer.step()


@pytest.mark.parametrize("fused", [None, False])
@pytest.mark.parametrize(
    "section",
    [
        {"kind": "sgd", "lr": 0.05, "momentum": 0.0},
        {"kind": "sgd", "lr": 0.05, "momentum": 0.8, "nesterov": True, "weight_decay": 0.1},
        {"kind": "rmsprop", "lr": 0.02, "alpha": 0.9, "eps": 1e-6, "momentum": 0.5, "centered": True},
        {"kind": "rmsprop", "weight_decay": 0.1},
        {"kind": "adam", "lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1},
        {"kind": "adamw", "lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.3},
        {"kind": "adagrad", "lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.2, "eps": 1e-6},
    ],
    ids=lambda section: "-".join(str(value) for value in section.values()) if section else "",
)
def test_weights_equal_those_of_torchs_optimizer_bit_for_bit(
    section: dict[str, Any], fused: bool | None
) -> None:
    ours, theirs = network(), network()
    settings = {name: value for name, value in section.items() if name != "kind"}
    if section["kind"] == "sgd":
        settings.setdefault("momentum", 0.9)
    if section["kind"] != "rmsprop" and fused is None:
        settings["fused"] = True
    five_steps(ours, optimizer_of(section, ours, fused=fused))
    five_steps(theirs, OPTIMIZERS[section["kind"]](theirs.parameters(), **settings))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_l1_and_decay_spare_vectors_and_undecayed_groups() -> None:
    section = {
        "kind": "sgd",
        "lr": 0.1,
        "momentum": 0.0,
        "weight_decay": 0.2,
        "l1": 0.05,
        "no_decay": True,
        "groups": [{"match": ["2.*"], "weight_decay": 0.0}],
    }
    ours, theirs = network(), network()
    five_steps(ours, optimizer_of(section, ours), l1=0.05)
    generator, weight = torch.Generator().manual_seed(1), next(theirs.parameters())
    for _ in range(5):
        penalty = 0.05 * weight.abs().sum() + 0.1 * weight.square().sum()
        loss = theirs(torch.randn(6, 3, generator=generator)).square().mean() + penalty
        slopes = torch.autograd.grad(loss, list(theirs.parameters()))
        with torch.no_grad():
            for parameter, slope in zip(theirs.parameters(), slopes, strict=True):
                parameter.sub_(0.1 * slope)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_groups_take_their_parameters_by_first_match() -> None:
    model = network()
    model[0].bias.requires_grad_(False)
    section = {
        "kind": "adamw",
        "lr": 0.01,
        "weight_decay": 0.1,
        "no_decay": True,
        "groups": [
            {"match": ["2.bias"], "lr": 0.5},
            {"match": ["2.*", "1.weight"], "lr": 0.0, "weight_decay": 0.3},
        ],
    }
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {
        tuple(names[id(parameter)] for parameter in group["params"]): (group["lr"], group["weight_decay"])
        for group in optimizer_of(section, model).param_groups
    }
    assert found == {
        ("0.weight",): (0.01, 0.1),
        ("1.weight",): (0.0, 0.0),
        ("1.bias",): (0.01, 0.0),
        ("2.weight",): (0.0, 0.3),
        ("2.bias",): (0.5, 0.0),
    }


def test_groups_see_through_wrappers() -> None:
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

    model = network()
    model[2] = checkpoint_wrapper(model[2])
    section = {"kind": "sgd", "groups": [{"match": ["2.weight"], "lr": 0.5}]}
    lrs = [group["lr"] for group in optimizer_of(section, model).param_groups]
    assert lrs == [0.01, 0.5]


def test_groups_without_parameters_are_refused() -> None:
    with pytest.raises(
        UsageError, match=r"groups\.1\.match: no trained .* '2.wieght'.*nearest are: 2\.weight"
    ):
        optimizer_of({"kind": "sgd", "groups": [{"match": ["0.*"]}, {"match": ["2.wieght"]}]}, network())
    with pytest.raises(UsageError, match=r"groups\.1\.match: earlier groups take all"):
        optimizer_of({"kind": "sgd", "groups": [{"match": ["*"]}, {"match": ["2.*"]}]}, network())
    with pytest.raises(UsageError, match="nothing to train"):
        optimizer_of({"kind": "sgd"}, network().requires_grad_(False))


@pytest.mark.parametrize("kind", sorted(OPTIMIZERS))
def test_sharded_parameters_are_trained_alike(kind: str) -> None:
    section = {"kind": kind, "lr": 0.01, "l1": 0.01}
    whole = network()
    five_steps(whole, optimizer_of(section, whole), l1=0.01)
    with one_rank():
        parts = sharded(network())
        five_steps(parts, optimizer_of(section, parts), l1=0.01)
        for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
            torch.testing.assert_close(gathered(other), one.data)
