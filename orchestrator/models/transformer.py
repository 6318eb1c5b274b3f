"""Transformers: an encoder that classifies a text, and a decoder that continues one. Imports: torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from orchestrator.errors import UsageError
from orchestrator.models.blocks import (
    Block,
    TokenEmbedding,
    check_tokens,
    initialise,
    last_valid,
    valid_tokens,
)


class Encoder(nn.Module):
    """A transformer that reads the whole text at once (Vaswani et al. 2017), with normalisation first.

    Tokens (n, length) → (n, num_outputs), from the mean over the tokens that are no padding. How much padding
    follows changes nothing.
    """

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        num_outputs: int,
        *,
        width: int,
        layers: int,
        heads: int,
        dropout: float,
        mlp_ratio: float,
    ) -> None:
        super().__init__()
        self.embedding = TokenEmbedding(vocab_size, max_length, width, dropout)
        self.blocks = nn.ModuleList(
            Block(width, heads, causal=False, dropout=dropout, mlp_ratio=mlp_ratio) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_outputs)
        initialise(self.embedding, self.blocks, self.head)

    def forward(self, tokens: Tensor) -> Tensor:
        valid = valid_tokens(tokens)
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, valid[:, None, None, :])
        weights = valid.unsqueeze(2).to(x.dtype)
        outputs: Tensor = self.head((self.norm(x) * weights).sum(dim=1) / weights.sum(dim=1))
        return outputs


class Gpt(nn.Module):
    """A decoder in the way of GPT-2 (Radford et al. 2019): each position sees itself and what comes before.

    Tokens (n, length) → with `per_token` (n, length, vocab_size), by the weights of the embedding; else
    (n, num_outputs), from the last token that is no padding.
    """

    def __init__(
        self,
        vocab_size: int,
        num_outputs: int,
        *,
        per_token: bool,
        block_size: int,
        width: int,
        layers: int,
        heads: int,
        dropout: float,
        bias: bool,
    ) -> None:
        super().__init__()
        self.per_token = per_token
        self.embedding = TokenEmbedding(vocab_size, block_size, width, dropout)
        self.blocks = nn.ModuleList(
            Block(width, heads, causal=True, dropout=dropout, bias=bias) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width, bias=bias)
        if per_token:
            self.head = nn.Linear(width, vocab_size, bias=False, device="meta")  # its weights come from below
        else:
            self.head = nn.Linear(width, num_outputs)
        initialise(self.embedding, self.blocks, self.head)
        if per_token:
            self.head.weight = self.embedding.tokens.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        if not self.per_token:
            x = x[torch.arange(len(x), device=x.device), last_valid(tokens)]
        logits: Tensor = self.head(self.norm(x))
        return logits


def transformer(
    input_shape: Sequence[int],
    num_outputs: int,
    *,
    vocab_size: int | None,
    per_token: bool,
    width: int = 128,
    layers: int = 2,
    heads: int = 4,
    dropout: float = 0.1,
    mlp_ratio: float = 4,
) -> nn.Module:
    """The encoder; raises UsageError where the input is no text, and for a language model."""
    length, vocab_size = check_tokens("transformer", input_shape, vocab_size)
    if per_token:
        raise UsageError(
            "model 'transformer' sees the token it is to tell, so that it cannot be a language model",
            "choose model.name: gpt, lstm or gru",
        )
    return Encoder(
        vocab_size,
        length,
        num_outputs,
        width=width,
        layers=layers,
        heads=heads,
        dropout=dropout,
        mlp_ratio=mlp_ratio,
    )


def gpt(
    input_shape: Sequence[int],
    num_outputs: int,
    *,
    vocab_size: int | None,
    per_token: bool,
    width: int = 128,
    layers: int = 4,
    heads: int = 4,
    dropout: float = 0.0,
    block_size: int | None = None,
    bias: bool = True,
) -> nn.Module:
    """The decoder; `block_size` is the most tokens that it can read, by default the length of the samples.

    GPT-2 (124M): width 768, layers 12, heads 12, with 50,257 tokens and samples of 1,024.
    Raises UsageError where the input is no text, or longer than `block_size`.
    """
    length, vocab_size = check_tokens("gpt", input_shape, vocab_size)
    block_size = length if block_size is None else block_size
    if length > block_size:
        raise UsageError(
            f"model.args.block_size ({block_size}) is less than the length of the samples ({length})",
            "raise it, or lower data.text.length",
        )
    return Gpt(
        vocab_size,
        num_outputs,
        per_token=per_token,
        block_size=block_size,
        width=width,
        layers=layers,
        heads=heads,
        dropout=dropout,
        bias=bias,
    )
