"""Our own small networks: linear, multi-layer perceptron, convolutional. Imports: torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from orchestrator.errors import UsageError


def linear(input_shape: Sequence[int], num_outputs: int, *, bias: bool = True) -> nn.Module:
    """One affine layer on the flattened input: (n, *input_shape) → (n, num_outputs)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(input_shape), num_outputs, bias=bias))


def mlp(
    input_shape: Sequence[int], num_outputs: int, *, hidden: Sequence[int] = (64, 64), dropout: float = 0.0
) -> nn.Module:
    """Fully connected layers with ReLU: (n, *input_shape) → (n, num_outputs)."""
    layers: list[nn.Module] = [nn.Flatten()]
    width = math.prod(input_shape)
    for units in hidden:
        layers += [nn.Linear(width, units), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = units
    return nn.Sequential(*layers, nn.Linear(width, num_outputs))


class Cnn(nn.Module):
    """Blocks of 3×3 convolution, ReLU and 2×2 max pooling, then two linear layers.

    (n, C, H, W) → (n, num_outputs). Pooled to at most 4×4 before the linear layers, so that their size does
    not grow with the image's. `batch_norm` normalises after each convolution.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        *,
        channels: Sequence[int] = (32, 64),
        hidden: int = 128,
        dropout: float = 0.0,
        batch_norm: bool = False,
    ) -> None:
        super().__init__()
        in_channels, height, width = input_shape
        blocks: list[nn.Module] = []
        for out_channels in channels:
            # The norm takes the mean away, and with it a bias.
            blocks.append(nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=not batch_norm))
            if batch_norm:
                blocks.append(nn.BatchNorm2d(out_channels))
            blocks.append(nn.ReLU())
            if min(height, width) >= 2:
                blocks.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
            in_channels = out_channels
        if max(height, width) > 4:
            height, width = min(height, 4), min(width, 4)
            blocks.append(nn.AdaptiveAvgPool2d((height, width)))
        self.features = nn.Sequential(*blocks)
        self.classifier = nn.Sequential(
            nn.Flatten(),
            nn.Linear(in_channels * height * width, hidden),
            nn.ReLU(),
            *([nn.Dropout(dropout)] if dropout else []),
            nn.Linear(hidden, num_outputs),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.classifier(self.features(images))
        return logits


def cnn(input_shape: Sequence[int], num_outputs: int, **args: object) -> nn.Module:
    """The small convolutional network; raises UsageError where the input is no image."""
    if len(input_shape) != 3:
        raise UsageError(
            f"model 'cnn' needs images (channels, height, width), but a sample has shape {tuple(input_shape)}",
            "choose model.name: mlp or linear for tables",
        )
    return Cnn(input_shape, num_outputs, **args)  # type: ignore[arg-type]
