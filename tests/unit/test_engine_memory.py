"""The memory of optimizer states against what torch's optimizers keep after a step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.engine.device.memory import estimate_memory
from orchestrator.engine.optim.ema import Ema
from orchestrator.engine.optim.optimizer import build_optimizer
from orchestrator.worker import build_recipe
from tests.unit.engine_case import case_data, case_spec


@pytest.mark.parametrize(
    "optimizer",
    [
        {"kind": "sgd", "momentum": 0.0},
        {"kind": "sgd", "momentum": 0.9, "nesterov": True},
        {"kind": "rmsprop"},
        {"kind": "rmsprop", "momentum": 0.5, "centered": True},
        {"kind": "adam"},
        {"kind": "adagrad"},
    ],
    ids=str,
)
def test_states_are_those_of_a_real_step(optimizer: dict[str, Any], tmp_path: Path) -> None:
    spec = case_spec(**{"train.optimizer": {"lr": 0.01, **optimizer}, "train.ema": {"decay": 0.9}})
    recipe = build_recipe(spec, case_data(spec, tmp_path))
    estimate = estimate_memory(recipe, 10)
    model = recipe.build()
    model(
        torch.zeros(2, *recipe.train_part.gather(torch.arange(2).numpy()).features.shape[1:])
    ).sum().backward()
    real = build_optimizer(spec.train.optimizer, model, torch.device("cpu"))
    real.step()
    kept = [tensor for state in real.state.values() for tensor in state.values() if tensor.numel() > 1]
    assert estimate.optimizer_bytes == sum(tensor.numel() * 4 for tensor in kept)
    averages = Ema(model, 0.9).state_dict()["averages"].values()
    assert estimate.ema_bytes == sum(tensor.numel() * 4 for tensor in averages)
    assert estimate.total_bytes == (
        estimate.weights_bytes
        + estimate.gradients_bytes
        + estimate.optimizer_bytes
        + estimate.activations_bytes
        + estimate.ema_bytes
    )
