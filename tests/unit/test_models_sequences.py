"""Recurrent networks and transformers: shapes, padding, causality, and what they compute against plain torch."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.errors import UsageError
from orchestrator.models.blocks import Block
from orchestrator.models.build import build_model
from orchestrator.models.recurrent import Recurrent
from orchestrator.models.transformer import Gpt
from orchestrator.spec.model import ModelSection

LENGTH, VOCAB = 9, 17
SMALL: dict[str, dict[str, Any]] = {
    "lstm": {"embedding": 6, "hidden": 5},
    "gru": {"embedding": 6, "hidden": 5, "layers": 2},
    "transformer": {"width": 12, "heads": 3, "dropout": 0.0},
    "gpt": {"width": 12, "heads": 3, "layers": 2},
}
CLASSIFIERS = [
    *SMALL.items(),
    ("lstm", {"hidden": 5, "layers": 2, "bidirectional": True}),
    ("gru", {"hidden": 5, "bidirectional": True}),
]


def build(
    name: str, num_outputs: int = 3, length: int = LENGTH, per_token: bool = False, **args: Any
) -> nn.Module:
    section = ModelSection(name=name, args=SMALL[name] | args)
    return build_model(section, (length,), VOCAB if per_token else num_outputs, VOCAB, per_token)


def texts(lengths: list[int], padded_to: int) -> Tensor:
    """Random tokens without padding, then padding."""
    tokens = torch.randint(1, VOCAB, (len(lengths), padded_to), generator=torch.Generator().manual_seed(1))
    for row, length in enumerate(lengths):
        tokens[row, length:] = 0
    return tokens


@pytest.mark.parametrize(("name", "args"), CLASSIFIERS)
def test_a_text_gives_one_row_of_outputs_whatever_padding_follows(name: str, args: dict[str, Any]) -> None:
    model = build(name, **args)
    assert model(texts([9, 4], LENGTH)).shape == (2, 3)
    model.eval()
    tokens = texts([5, 3, 1, 0], LENGTH)
    outputs = model(tokens)
    torch.testing.assert_close(model(tokens[:, :6]), outputs)
    for row, length in enumerate([5, 3, 1]):
        torch.testing.assert_close(model(tokens[row : row + 1, :length]), outputs[row : row + 1])
    assert not torch.allclose(outputs[0], outputs[1])
    outputs.sum().backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters()
    )


@pytest.mark.parametrize("name", ["lstm", "gru", "gpt"])
def test_a_language_model_sees_no_later_token(name: str) -> None:
    model = build(name, per_token=True).eval()
    tokens = texts([9, 9], LENGTH)
    logits = model(tokens)
    assert logits.shape == (2, LENGTH, VOCAB)
    changed = tokens.clone()
    changed[:, 6] = changed[:, 6] % (VOCAB - 1) + 1
    torch.testing.assert_close(model(changed)[:, :6], logits[:, :6])
    assert not torch.allclose(model(changed)[:, 6:], logits[:, 6:])


@pytest.mark.parametrize("name", SMALL)
def test_the_order_of_tokens_matters(name: str) -> None:
    model = build(name).eval()
    tokens = texts([9], LENGTH)
    assert not torch.allclose(model(tokens), model(tokens.flip(1)))


@pytest.mark.parametrize(("cell", "bidirectional"), [(nn.LSTM, False), (nn.LSTM, True), (nn.GRU, True)])
def test_recurrent_networks_compute_what_torchs_own_do(
    cell: type[nn.LSTM] | type[nn.GRU], bidirectional: bool
) -> None:
    model = build(cell.__name__.lower(), layers=2, bidirectional=bidirectional)
    assert isinstance(model, Recurrent)
    assert model.embedding is not None
    plain = cell(6, 5, 2, batch_first=True, bidirectional=bidirectional)
    plain.load_state_dict(model.rnn.state_dict())
    tokens = texts([9, 9], LENGTH)
    states = plain(model.embedding(tokens))[0]  # (n, length, directions · 5)
    last = torch.cat([states[:, -1, :5], states[:, 0, 5:]], dim=1)
    torch.testing.assert_close(model(tokens), model.head(last))


@pytest.mark.parametrize("shape", [(7,), (7, 4)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_steps_of_numbers(shape: tuple[int, ...], bidirectional: bool) -> None:
    section = ModelSection(name="lstm", args={"hidden": 5, "bidirectional": bidirectional})
    model = build_model(section, shape, 2)
    inputs = torch.randn(3, *shape)
    inputs[0, -2:] = 0  # a number, not padding
    assert isinstance(model, Recurrent)
    states = model.rnn(inputs.reshape(3, 7, -1))[0]
    last = torch.cat([states[:, -1, :5], states[:, 0, 5:]], dim=1)
    torch.testing.assert_close(model(inputs), model.head(last))


@pytest.mark.parametrize("causal", [True, False])
def test_a_block_is_torchs_attention_and_a_perceptron(causal: bool) -> None:
    n, length, width, heads = 2, 5, 8, 2
    block = Block(width, heads, causal=causal, dropout=0.0)
    attention = nn.MultiheadAttention(width, heads, batch_first=True)
    with torch.no_grad():
        for norm in (block.attention_norm, block.mlp_norm):
            norm.weight.normal_()
            norm.bias.normal_()
        attention.in_proj_weight.copy_(block.attention.qkv.weight)
        attention.in_proj_bias.copy_(block.attention.qkv.bias)
        attention.out_proj.load_state_dict(block.attention.out.state_dict())
    x = torch.randn(n, length, width)
    normal = F.layer_norm(x, (width,), block.attention_norm.weight, block.attention_norm.bias)
    if causal:
        forbidden, mask = torch.ones(length, length).triu(1).bool(), None
        attended = attention(normal, normal, normal, attn_mask=forbidden)[0]
    else:
        mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
        attended = attention(normal, normal, normal, key_padding_mask=~mask)[0]
    x1 = x + attended
    inner = F.layer_norm(x1, (width,), block.mlp_norm.weight, block.mlp_norm.bias) @ block.mlp_in.weight.T
    inner = inner + block.mlp_in.bias
    inner = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    expected = x1 + inner @ block.mlp_out.weight.T + block.mlp_out.bias
    torch.testing.assert_close(block(x, None if mask is None else mask[:, None, None, :]), expected)


def test_gpt2_has_its_published_number_of_parameters() -> None:
    section = ModelSection(name="gpt", args={"width": 768, "layers": 12, "heads": 12})
    with torch.device("meta"):
        model = build_model(section, (1024,), 50257, 50257, True)
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808


def test_gpt_begins_with_gpt2s_weights_and_ties_the_head_to_the_embedding() -> None:
    model = build("gpt", per_token=True, width=96, layers=8)
    assert isinstance(model, Gpt)
    assert model.head.weight is model.embedding.tokens.weight
    weights = {name: tensor for name, tensor in model.named_parameters() if tensor.dim() == 2}
    for name, weight in weights.items():
        ends_a_branch = name.endswith(("out.weight", "mlp_out.weight"))
        std = 0.01 if "positions" in name else 0.02 / 4 if ends_a_branch else 0.02
        assert weight.std().item() == pytest.approx(std, rel=0.1), name
    assert all(not tensor.any() for name, tensor in model.named_parameters() if name.endswith("bias"))
    tokens = texts([9], LENGTH)[0]
    # Small weights: the first loss is about that of a guess.
    loss = F.cross_entropy(model(tokens[None, :-1])[0], tokens[1:])
    assert loss.item() == pytest.approx(math.log(VOCAB), rel=0.1)


def test_gpt_without_biases_and_for_longer_texts_than_the_samples() -> None:
    model = build("gpt", per_token=True, bias=False, block_size=20).eval()
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]
    assert model(texts([20], 20)).shape == (1, 20, VOCAB)
    with pytest.raises(UsageError, match="21 tokens is longer than the model's 20"):
        model(texts([21], 21))


def test_dropout_is_off_in_eval_mode_and_on_in_training() -> None:
    for name in SMALL:
        model, tokens = build(name, dropout=0.5), texts([9], LENGTH)
        assert not torch.equal(model(tokens), model(tokens)), name
        model.eval()
        assert torch.equal(model(tokens), model(tokens)), name


@pytest.mark.parametrize("name", ["transformer", "gpt"])
def test_transformers_compile_in_one_graph(name: str) -> None:
    model = build(name).eval()
    tokens = texts([9, 4], LENGTH)
    compiled: Any = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens), model(tokens))
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("name", "shape", "tokens", "per_token", "args", "said"),
    [
        ("cnn", (9,), True, False, {}, "'cnn' cannot read text.*lstm"),
        ("mlp", (9,), True, False, {}, "'mlp' cannot read text"),
        ("torchvision/resnet18", (9,), True, False, {}, "cannot read text"),
        ("lstm", (3, 8, 8), False, False, {}, "reads sequences.*cnn"),
        ("gpt", (3, 8, 8), False, False, {}, "reads text.*cnn for images"),
        ("transformer", (9,), False, False, {}, r"reads text.*data\.text"),
        ("gpt", (9,), True, True, {"width": 10, "heads": 4}, r"width \(10\).*4 heads"),
        ("transformer", (9,), True, False, {"heads": 0}, "0 heads"),
        ("gpt", (9,), True, True, {"block_size": 8}, r"block_size \(8\) is less.*\(9\)"),
        ("transformer", (9,), True, True, {}, "cannot be a language model.*gpt, lstm"),
        ("gru", (9,), True, True, {"bidirectional": True}, "sees the token"),
        ("lstm", (9,), True, False, {"hiden": 3}, "hiden"),
        ("lstm", (9,), True, False, {"layers": 0}, "num_layers"),
        ("gpt", (9,), True, False, {"dropout": 2.0}, "dropout"),
        ("gpt", (9,), True, False, {"vocab_size": 5}, "vocab_size"),
    ],
)
def test_what_does_not_fit_is_a_usage_error(
    name: str, shape: tuple[int, ...], tokens: bool, per_token: bool, args: dict[str, Any], said: str
) -> None:
    section = ModelSection(name=name, args=args)
    with pytest.raises(UsageError, match=said):
        build_model(section, shape, VOCAB if per_token else 2, VOCAB if tokens else None, per_token)


def test_user_code_is_offered_the_vocabulary_for_text_only(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text_nets.py").write_text(
        "from torch import nn\n\n\ndef build(input_shape, num_outputs, vocab_size=5, per_token=None):\n"
        "    model = nn.Embedding(vocab_size, num_outputs)\n    model.per_token = per_token\n    return model\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    section = ModelSection(name="text_nets:build")
    for vocab_size, per_token, rows in ((VOCAB, True, VOCAB), (None, False, 5)):
        model: Any = build_model(section, (9,), 2, vocab_size, per_token)
        assert (model.num_embeddings, model.per_token) == (rows, per_token)
