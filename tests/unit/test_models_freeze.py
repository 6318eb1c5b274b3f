"""Frozen layers: which they are, that they stay as they are, and what is said of wrong patterns."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from orchestrator.errors import UsageError
from orchestrator.models.freeze import freeze


def network() -> nn.Sequential:
    features = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4, affine=False)
    )
    return nn.Sequential(features, nn.Flatten(), nn.BatchNorm1d(16), nn.Linear(16, 2))


def train_a_little(model: nn.Module) -> None:
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(6, 3, 4, 4)).square().sum().backward()
        optimizer.step()


def test_frozen_layers_and_their_statistics_stay_as_they_are() -> None:
    model = network()
    assert freeze(model, ["0.*"]) == ["0.0.weight", "0.0.bias", "0.1.weight", "0.1.bias"]
    before = copy.deepcopy(model.state_dict())
    train_a_little(model)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {
        "2.weight", "2.bias", "2.running_mean", "2.running_var", "2.num_batches_tracked", "3.weight", "3.bias",
    }  # fmt: skip
    assert not model.get_submodule("0.1").training
    assert model[2].training
    model.eval()
    assert not model[2].training


def test_a_copy_is_frozen_on_its_own() -> None:
    model = network()
    freeze(model, ["0.*"])
    other = copy.deepcopy(model)
    train_a_little(other)
    assert torch.equal(other.get_buffer("0.1.running_mean"), torch.zeros(4))
    assert not other.get_submodule("0.1").training
    assert other.train().get_submodule("0.1") is not model.get_submodule("0.1")


def test_a_batch_norm_that_is_half_frozen_is_trained() -> None:
    model = network()
    assert freeze(model, ["*.weight"]) == ["0.0.weight", "0.1.weight", "2.weight", "3.weight"]
    assert model.train().get_submodule("0.1").training
    assert model.get_submodule("0.3").training


def test_no_patterns_freeze_nothing() -> None:
    model = network()
    assert freeze(model, []) == []
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_tied_parameters_are_found_by_either_name() -> None:
    model = nn.ModuleDict({"first": nn.Linear(2, 2), "second": nn.Linear(2, 2)})
    model["second"].weight = model["first"].weight
    freeze(model, ["second.weight"])
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == [
        "first.bias", "second.bias",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (["layer1.*"], r"no parameter matches 'layer1\.\*'.*layer2\.\*"),
        (["layer2"], r"did you mean layer2\.\*"),
        (["layer2.0.wieght"], r"did you mean .*layer2\.0\.weight"),
        (["*"], "nothing to train"),
        (["layer2.*", "head.*"], r"layer2\.\*, head\.\* leave nothing"),
    ],
)
def test_wrong_patterns_are_usage_errors(patterns: list[str], said: str) -> None:
    model = nn.ModuleDict({"layer2": nn.Sequential(nn.Linear(2, 2)), "head": nn.Linear(2, 2)})
    with pytest.raises(UsageError, match=said):
        freeze(model, patterns)
