"""Networks that read tokens, as a user would write them, for the tests of exported models."""

from __future__ import annotations

import torch
from torch import nn


class Bag(nn.Module):
    """The mean of the tokens' vectors, then one linear layer: (n, length) → (n, num_outputs)."""

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(300, 4)
        self.head = nn.Linear(4, num_outputs)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.vectors(tokens).mean(dim=1))
        return result


def bigram(num_outputs: int) -> nn.Module:
    """A language model that looks at one token: (n, length) → (n, length, num_outputs)."""
    return nn.Sequential(nn.Embedding(num_outputs, 8), nn.Linear(8, num_outputs))
