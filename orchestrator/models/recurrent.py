"""LSTM and GRU over text or over steps of numbers. Imports: torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from orchestrator.errors import UsageError
from orchestrator.models.blocks import PADDING, last_valid


class Recurrent(nn.Module):
    """A recurrent network and a linear layer on its last state, or with `per_token` on each of its states.

    Tokens (n, length) with `vocab_size`, or numbers (n, length, features), where (n, length) is one feature per
    step → (n, num_outputs), or (n, length, num_outputs). The last state is that of the last token which is no
    padding; in both directions, that of each direction's end. How much padding follows changes nothing.
    """

    def __init__(
        self,
        cell: type[nn.LSTM] | type[nn.GRU],
        num_features: int,
        num_outputs: int,
        *,
        vocab_size: int | None,
        per_token: bool,
        embedding: int = 64,
        hidden: int = 64,
        layers: int = 1,
        bidirectional: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.per_token = per_token
        self.embedding = nn.Embedding(vocab_size, embedding, padding_idx=PADDING) if vocab_size else None
        self.rnn = cell(
            embedding if vocab_size else num_features,
            hidden,
            layers,
            batch_first=True,
            bidirectional=bidirectional,
            dropout=dropout if layers > 1 else 0.0,  # torch's own is between layers only
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * hidden if bidirectional else hidden, num_outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        if self.embedding is not None:
            steps = self.dropout(self.embedding(inputs))
            last = last_valid(inputs)
        else:
            steps = inputs.unsqueeze(2) if inputs.dim() == 2 else inputs
            last = torch.full((len(steps),), steps.shape[1] - 1, device=steps.device)
        states = self.rnn(steps)[0] if self.per_token else self._last_states(steps, last)
        outputs: Tensor = self.head(self.dropout(states))
        return outputs

    def _last_states(self, steps: Tensor, last: Tensor) -> Tensor:
        """(n, hidden), or (n, 2 · hidden) in both directions."""
        if not self.rnn.bidirectional:
            # What follows the last token cannot change its state, so the padding may be run over.
            states: Tensor = self.rnn(steps)[0]
            return states[torch.arange(len(states), device=states.device), last]
        # The way back must begin at the last token.
        packed = pack_padded_sequence(steps, (last + 1).cpu(), batch_first=True, enforce_sorted=False)
        hidden = self.rnn(packed)[1]
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden  # an LSTM gives its cell states too
        return torch.cat([hidden[-2], hidden[-1]], dim=1)


def lstm(input_shape: Sequence[int], num_outputs: int, **args: Any) -> nn.Module:
    """Long short-term memory (Hochreiter & Schmidhuber 1997); arguments as `Recurrent` takes them."""
    return _recurrent("lstm", nn.LSTM, input_shape, num_outputs, **args)


def gru(input_shape: Sequence[int], num_outputs: int, **args: Any) -> nn.Module:
    """Gated recurrent units (Cho et al. 2014); arguments as `Recurrent` takes them."""
    return _recurrent("gru", nn.GRU, input_shape, num_outputs, **args)


def _recurrent(
    name: str,
    cell: type[nn.LSTM] | type[nn.GRU],
    input_shape: Sequence[int],
    num_outputs: int,
    **args: Any,
) -> nn.Module:
    """Raises UsageError where the input is no sequence, or a language model would see what it is to tell."""
    if len(input_shape) > 2:
        raise UsageError(
            f"model '{name}' reads sequences, but a sample has shape {tuple(input_shape)}",
            "choose model.name: cnn or torchvision/resnet18 for images",
        )
    if args["per_token"] and args.get("bidirectional"):
        raise UsageError(
            "model.args.bidirectional: a language model that reads backwards sees the token it is to tell",
            "leave it out",
        )
    num_features = input_shape[1] if len(input_shape) == 2 else 1
    return Recurrent(cell, num_features, num_outputs, **args)
