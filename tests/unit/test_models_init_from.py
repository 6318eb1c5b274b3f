"""Weights to begin with: what is taken from a file, what is left out, and what is said where they do not fit."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest
import safetensors.torch
import torch
from torch import nn

from orchestrator.errors import UsageError
from orchestrator.models.build import build_model
from orchestrator.models.init_from import last_layer, load_initial, placed_weights, read_weights
from orchestrator.spec.model import ModelSection
from orchestrator.storage import Folder


def mlp(num_outputs: int = 3, inputs: int = 4, hidden: tuple[int, ...] = (5,)) -> nn.Module:
    return build_model(ModelSection(name="mlp", args={"hidden": list(hidden)}), (inputs,), num_outputs)


def gpt(per_token: bool, vocab_size: int = 11) -> nn.Module:
    section = ModelSection(name="gpt", args={"width": 8, "heads": 2, "layers": 1})
    return build_model(section, (6,), vocab_size if per_token else 2, vocab_size, per_token)


def save(state: Any, file: Path) -> Path:
    torch.save(state, file)
    return file


def copied(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def equal_entries(model: nn.Module, state: dict[str, torch.Tensor]) -> set[str]:
    own = model.state_dict()
    return {name for name in own if name in state and torch.equal(own[name], state[name])}


ALL = {"1.weight", "1.bias", "3.weight", "3.bias"}


@pytest.mark.parametrize("kind", ["safetensors", "state dict", "checkpoint", "bf16"])
def test_all_weights_are_taken_from_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    source, model = mlp(), mlp()
    state = source.state_dict()
    match kind:
        case "safetensors":
            file = tmp_path / "weights.safetensors"
            safetensors.torch.save_file(state, file)
        case "state dict":
            file = save(state, tmp_path / "weights.pth")
        case "checkpoint":
            file = save({"optimizer": {"step": 3}, "model": state, "epoch": 1}, tmp_path / "state.pt")
        case _:
            state = {name: tensor.bfloat16() for name, tensor in state.items()}
            file = save(state, tmp_path / "half.pt")
    assert load_initial(model, file) == []
    assert equal_entries(model, {name: tensor.float() for name, tensor in state.items()}) == ALL
    assert all(
        parameter.dtype == torch.float32 and parameter.requires_grad for parameter in model.parameters()
    )


def test_a_head_of_another_shape_is_left_fresh_as_a_whole(tmp_path: Path) -> None:
    source, model = mlp(num_outputs=7), mlp(num_outputs=3)
    file = save(source.state_dict(), tmp_path / "w.pt")
    before = copied(model)
    left = load_initial(model, file)
    assert left == ["3.weight is initialised afresh", "3.bias is initialised afresh"]
    assert equal_entries(model, source.state_dict()) == {"1.weight", "1.bias"}
    assert equal_entries(model, before) == {"3.weight", "3.bias"}


def test_replace_leaves_a_head_that_fits_fresh_and_auto_takes_it(tmp_path: Path) -> None:
    source = mlp()
    file = save(source.state_dict(), tmp_path / "w.pt")
    model = mlp()
    assert len(load_initial(model, file, head="replace")) == 2
    assert equal_entries(model, source.state_dict()) == {"1.weight", "1.bias"}
    assert load_initial(model, file, head="keep") == []
    assert equal_entries(model, source.state_dict()) == ALL


def test_keep_wants_the_head_even_where_not_strict(tmp_path: Path) -> None:
    file = save(mlp(num_outputs=7).state_dict(), tmp_path / "w.pt")
    for strict in (True, False):
        with pytest.raises(
            UsageError, match=r"3\.weight has shape \(3, 5\) .* \(7, 5\).*init_from\.head: auto"
        ):
            load_initial(mlp(), file, head="keep", strict=strict)


def test_strict_names_what_does_not_fit_and_leaves_the_model_alone(tmp_path: Path) -> None:
    state = mlp(inputs=6).state_dict() | {"extra.weight": torch.ones(1)}
    del state["1.bias"]
    file = save(state, tmp_path / "w.pt")
    model = mlp()
    before = copied(model)
    with pytest.raises(UsageError) as caught:
        load_initial(model, file)
    assert equal_entries(model, before) == ALL
    for said in (
        "1.bias is missing",
        "1.weight has shape (5, 4) in the model and (5, 6) in the file",
        "extra.weight is left over",
        "init_from.strict: false",
    ):
        assert said in str(caught.value)
    left = load_initial(model, file, strict=False)
    assert sorted(line.partition(" ")[0] for line in left) == ["1.bias", "1.weight", "extra.weight"]
    assert equal_entries(model, state) == {"3.weight", "3.bias"}


def test_a_deeper_network_with_other_layers_is_refused_even_where_not_strict_if_nothing_fits(
    tmp_path: Path,
) -> None:
    file = save({"a": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(
        UsageError, match=r"nothing in .* fits the model: it holds a, and the model 1\.weight"
    ):
        load_initial(mlp(), file, strict=False)


def test_tied_weights_need_to_be_there_once(tmp_path: Path) -> None:
    source, model = gpt(per_token=True), gpt(per_token=True)
    state = source.state_dict()
    del state["head.weight"]  # as a bundle holds them
    assert load_initial(model, save(state, tmp_path / "w.pt"), head="keep") == []
    assert equal_entries(model, source.state_dict()) == set(source.state_dict())
    assert model.get_parameter("head.weight") is model.get_parameter("embedding.tokens.weight")


def test_a_language_model_becomes_a_classifier(tmp_path: Path) -> None:
    source, model = gpt(per_token=True), gpt(per_token=False)
    file = save(source.state_dict(), tmp_path / "w.pt")
    assert load_initial(model, file) == [
        "head.weight is initialised afresh",
        "head.bias is initialised afresh",
    ]
    assert equal_entries(model, source.state_dict()) == set(source.state_dict()) - {"head.weight"}


def test_another_vocabulary_replaces_head_and_embedding_which_are_one(tmp_path: Path) -> None:
    source, model = gpt(per_token=True, vocab_size=13), gpt(per_token=True)
    left = load_initial(model, save(source.state_dict(), tmp_path / "w.pt"))
    assert {line.partition(" ")[0] for line in left} == {"head.weight", "embedding.tokens.weight"}
    assert "embedding.positions.weight" in equal_entries(model, source.state_dict())


def test_batch_counts_that_old_files_lack_are_not_missed(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    state = copied(model)
    del state["1.num_batches_tracked"]
    assert load_initial(model, save(state, tmp_path / "w.pt")) == []


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("torchvision/resnet18", "fc"),
        ("torchvision/squeezenet1_1", "classifier.1"),
        ("torchvision/vit_b_32", "heads.head"),
        ("cnn", "classifier.3"),
        ("linear", "1"),
    ],
)
def test_the_last_layer(name: str, path: str) -> None:
    assert last_layer(build_model(ModelSection(name=name), (3, 32, 32), 4))[0] == path
    assert last_layer(nn.Linear(2, 2))[0] == ""


def test_a_single_layer_is_its_own_head(tmp_path: Path) -> None:
    model = nn.Linear(2, 2)
    file = save(nn.Linear(2, 2).state_dict(), tmp_path / "w.pt")
    assert load_initial(model, file) == []
    with pytest.raises(UsageError, match="nothing in"):
        load_initial(model, file, head="replace")


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"not weights at all", "cannot be read as weights"),
        (Evil(), "cannot be read as weights.*state_dict"),
        ({"epoch": 3, "net": {"a": torch.ones(1)}}, "holds no weights, but a mapping with epoch, net"),
        (torch.ones(2), "holds no weights, but Tensor"),
    ],
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_files_that_hold_no_weights(content: Any, said: str, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"w{suffix}"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(UsageError, match=said if suffix == ".pt" else "cannot be read as weights"):
        read_weights(file)
    with pytest.raises(UsageError, match="there is no file"):
        read_weights(tmp_path / f"absent{suffix}")


def test_placed_weights_are_read_where_they_lie_or_copied(tmp_path: Path) -> None:
    init = Folder.at(tmp_path / "run" / "init")
    with pytest.raises(UsageError, match="no weights"):
        placed_weights(init, tmp_path / "local")
    init.write_bytes("weights-1.pt", b"abc")
    assert placed_weights(init, tmp_path / "local") == tmp_path / "run" / "init" / "weights-1.pt"
    for name, content in (("weights-2.safetensors", b"abc"), ("weights-3.safetensors", b"def")):
        remote = Folder(pafs._MockFileSystem(datetime.now(UTC)), "bucket/init")
        remote.write_bytes(name, content)
        file = placed_weights(remote, tmp_path / "local")
        assert (file, file.read_bytes()) == (tmp_path / "local" / name, content)
