"""What jobs/custom_model.yaml brings along: a network, a loss and a metric. Copy this file and change it.

The spec names each of them as `custom_model:<object>`. This file is found because it lies next to the spec, and
a copy of it (and of the modules it imports from here) travels with the logged model, so that
`mlflow.pyfunc.load_model` needs nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FOCUS = 2.0
"""How strongly `focal_loss` looks away from samples that are already right; 0 gives plain cross entropy."""


class ResidualNet(nn.Module):
    """A small residual network for tables: (n, columns) → (n, num_outputs).

    `input_shape` and `num_outputs` are given by the orchestrator to whoever has them in its signature: they
    follow from the data. All else comes from `model.args` in the spec.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_outputs: int,
        *,
        width: int = 32,
        depth: int = 2,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.widen = nn.Linear(math.prod(input_shape), width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU(), nn.Dropout(dropout))
            for _ in range(depth)
        )
        self.head = nn.Linear(width, num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.widen(inputs)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        logits: Tensor = self.head(hidden)
        return logits


def focal_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy that counts hard samples more (https://arxiv.org/abs/1708.02002).

    `outputs` are logits (n, classes), `targets` class indices (n,); gives one loss per sample, (n,). A mean
    would do as well, but per-sample losses stay exact where workers have shares of different size.
    """
    losses = F.cross_entropy(outputs, targets, reduction="none")
    probability_of_target = torch.exp(-losses)
    return (1 - probability_of_target) ** FOCUS * losses


def worst_class_recall(outputs: Tensor, targets: Tensor) -> float:
    """The share of right answers in the class that has the lowest; 1 is best.

    Called once per evaluation with the logits (n, classes) and class indices (n,) of all samples.
    """
    right = outputs.argmax(dim=1) == targets
    return min(right[targets == label].float().mean().item() for label in targets.unique())
