"""The small networks of our own for tables and images."""

from __future__ import annotations

import torch
from torch import nn

from orchestrator.models.build import build_model
from orchestrator.spec.model import ModelSection


def cnn(**args: object) -> nn.Module:
    torch.manual_seed(0)
    return build_model(
        ModelSection(name="cnn", args={"channels": [4, 6], "hidden": 5, **args}), (3, 9, 11), 2
    )


def test_the_convolutional_network_is_what_its_description_says() -> None:
    layers = [type(layer).__name__ for layer in cnn().features]  # type: ignore[union-attr]
    assert layers == ["Conv2d", "ReLU", "MaxPool2d", "Conv2d", "ReLU", "MaxPool2d"]
    assert cnn()(torch.randn(7, 3, 9, 11)).shape == (7, 2)
    # 9×11 → 4×5 → 2×2 with 6 channels.
    assert cnn().classifier[1].in_features == 6 * 2 * 2  # type: ignore[index,union-attr]


def test_normalised_batches() -> None:
    model = cnn(batch_norm=True)
    layers = [type(layer).__name__ for layer in model.features]  # type: ignore[union-attr]
    assert layers[:4] == ["Conv2d", "BatchNorm2d", "ReLU", "MaxPool2d"]
    convolutions = [layer for layer in model.modules() if isinstance(layer, nn.Conv2d)]
    assert all(layer.bias is None for layer in convolutions)
    hidden = model.features[:2](torch.randn(64, 3, 9, 11) * 5 + 3)  # type: ignore[index,operator]
    torch.testing.assert_close(hidden.mean((0, 2, 3)), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(hidden.var((0, 2, 3)), torch.ones(4), atol=1e-2, rtol=0)
