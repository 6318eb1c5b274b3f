"""What the networks for token sequences share: padding, embeddings, attention, blocks. Imports: torch.

Tokens are int64 ids, shape (n, length). Id 0 pads a sequence at its end.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.errors import UsageError

PADDING = 0
_INIT_STD = 0.02
_POSITIONS_INIT_STD = 0.01


def valid_tokens(tokens: Tensor) -> Tensor:
    """True where a token is no padding, shape (n, length). An empty text counts as one token of padding."""
    valid = tokens != PADDING
    valid[:, 0] |= ~valid.any(dim=1)  # texts may be padded at their beginning
    return valid


def last_valid(tokens: Tensor) -> Tensor:
    """The position of the last token that is no padding, int64, shape (n,)."""
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    return (valid_tokens(tokens) * positions).amax(dim=1)


def check_tokens(name: str, input_shape: Sequence[int], vocab_size: int | None) -> tuple[int, int]:
    """Length and vocabulary size of token sequences; raises UsageError where the samples are anything else."""
    if vocab_size is None or len(input_shape) != 1:
        raise UsageError(
            f"model '{name}' reads text (token ids), but a sample is of shape {tuple(input_shape)}",
            "set data.text for a text column; or choose model.name: cnn for images, mlp for tables",
        )
    return input_shape[0], vocab_size


class TokenEmbedding(nn.Module):
    """A learned vector for each token and each position, added: (n, length) → (n, length, width)."""

    def __init__(self, vocab_size: int, max_length: int, width: int, dropout: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.positions = nn.Embedding(max_length, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """Raises UsageError for sequences longer than `max_length`."""
        length = tokens.shape[1]
        if length > self.positions.num_embeddings:
            raise UsageError(
                f"a sequence of {length} tokens is longer than the model's {self.positions.num_embeddings}",
                "shorten data.text.length, or build the model for longer ones",
            )
        positions = torch.arange(length, device=tokens.device)
        embedded: Tensor = self.dropout(self.tokens(tokens) + self.positions(positions))
        return embedded


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself (Vaswani et al. 2017): (n, length, width) → the same.

    `causal`: a position attends to itself and to what comes before. torch takes the fastest kernel that device,
    dtype and mask allow (flash attention among them).
    """

    def __init__(self, width: int, heads: int, *, causal: bool, dropout: float, bias: bool) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise UsageError(
                f"model.args: width ({width}) cannot be shared among {heads} heads",
                "choose a width that is a multiple of heads",
            )
        self.heads = heads
        self.causal = causal
        self.dropout = dropout
        self.qkv = nn.Linear(width, 3 * width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` is True where a key may be attended to, and broadcasts to (n, heads, length, length)."""
        n, length, width = x.shape
        qkv = self.qkv(x).view(n, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (n, heads, length, width / heads)
        attended = F.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.causal,
        )
        result: Tensor = self.out(attended.transpose(1, 2).reshape(n, length, width))
        return result


class Block(nn.Module):
    """Attention, then a two-layer perceptron, each normalised first and added to what came in (pre-norm)."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        causal: bool,
        dropout: float,
        mlp_ratio: float = 4,
        bias: bool = True,
    ) -> None:
        super().__init__()
        hidden = int(mlp_ratio * width)
        self.attention_norm = nn.LayerNorm(width, bias=bias)
        self.attention = SelfAttention(width, heads, causal=causal, dropout=dropout, bias=bias)
        self.mlp_norm = nn.LayerNorm(width, bias=bias)
        self.mlp_in = nn.Linear(width, hidden, bias=bias)
        self.mlp_out = nn.Linear(hidden, width, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.dropout(self.attention(self.attention_norm(x), mask))
        hidden = F.gelu(self.mlp_in(self.mlp_norm(x)), approximate="tanh")
        result: Tensor = x + self.dropout(self.mlp_out(hidden))
        return result


def initialise(embedding: TokenEmbedding, blocks: nn.ModuleList, head: nn.Linear) -> None:
    """Weights as GPT-2 begins with them (Radford et al. 2019, and its published code).

    Normal with standard deviation 0.02 (positions 0.01), biases 0; the last layer of each branch that is added
    to the residual stream is divided by the square root of the number of branches.
    """
    nn.init.normal_(embedding.tokens.weight, std=_INIT_STD)
    nn.init.normal_(embedding.positions.weight, std=_POSITIONS_INIT_STD)
    for module in (*blocks.modules(), head):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=_INIT_STD)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for block in blocks:
        assert isinstance(block, Block)
        for end in (block.attention.out, block.mlp_out):
            nn.init.normal_(end.weight, std=_INIT_STD / math.sqrt(2 * len(blocks)))
