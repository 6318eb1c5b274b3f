"""torchvision's classifiers by name: shapes, channels, sizes, and what is said where they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.error import URLError

import pyarrow as pa
import pytest
import torch

from orchestrator.data.features.pipeline import Pipeline
from orchestrator.data.features.schema import RawSchema
from orchestrator.errors import UsageError
from orchestrator.export.bundle import load_bundle, write_bundle
from orchestrator.models.build import build_model
from orchestrator.models.torchvision_models import build_torchvision
from orchestrator.spec.model import ModelSection
from orchestrator.storage import Folder


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("resnet18", (3, 40, 40)),
        ("mobilenet_v3_small", (1, 28, 28)),
        ("shufflenet_v2_x0_5", (4, 33, 47)),
        ("squeezenet1_1", (1, 32, 32)),
        ("googlenet", (3, 64, 64)),
        ("vit_b_32", (1, 64, 64)),
        ("mnasnet0_5", (2, 28, 28)),
    ],
)
def test_models_take_the_images_and_give_the_outputs(name: str, shape: tuple[int, int, int]) -> None:
    model = build_model(ModelSection(name=f"torchvision/{name}"), shape, 5)
    assert model.training
    assert model(torch.randn(2, *shape)).shape == (2, 5)


def test_arguments_reach_the_builder() -> None:
    model = build_torchvision("mobilenet_v3_small", 5, (3, 32, 32), dropout=0.75)
    assert 0.75 in [part.p for part in model.modules() if isinstance(part, torch.nn.Dropout)]


def test_the_same_seed_gives_the_same_weights_for_one_channel() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(3)
        states.append(build_torchvision("resnet18", 2, (1, 32, 32)).state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    torch.manual_seed(3)
    colour = build_torchvision("resnet18", 2, (3, 32, 32)).state_dict()
    changed = [key for key in colour if not torch.equal(colour[key], states[0][key])]
    assert changed == ["conv1.weight"]
    images = torch.randn(64, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    spread = torch.nn.functional.conv2d(images, colour["conv1.weight"]).std()
    one = torch.nn.functional.conv2d(images[:, :1], states[0]["conv1.weight"]).std()
    assert one.item() == pytest.approx(spread.item(), rel=0.1)


def test_buffers_are_untouched_by_the_check() -> None:
    model = build_torchvision("resnet18", 2, (3, 32, 32))
    assert all(
        int(value) == 0 for key, value in model.state_dict().items() if key.endswith("num_batches_tracked")
    )


@pytest.mark.parametrize(("name", "side"), [("alexnet", 63), ("inception_v3", 75)])
def test_images_that_are_too_small_name_the_size_that_works(name: str, side: int) -> None:
    with pytest.raises(UsageError, match=rf"28 × 28 pixels.*at least {side} × {side}"):
        build_torchvision(name, 10, (1, 28, 28))


def test_the_smallest_size_is_exact() -> None:
    assert build_torchvision("alexnet", 10, (1, 63, 63))(torch.randn(2, 1, 63, 63)).shape == (2, 10)
    with pytest.raises(UsageError, match="at least 63"):
        build_torchvision("alexnet", 10, (1, 62, 62))


@pytest.mark.parametrize(
    ("name", "shape", "args", "said"),
    [
        ("resnet81", (3, 32, 32), {}, "did you mean resnet18"),
        ("fasterrcnn_resnet50_fpn", (3, 32, 32), {}, "no classification model"),
        ("zzz", (3, 32, 32), {}, "torchvision has: alexnet"),
        ("resnet18", (30,), {}, "needs images"),
        ("resnet18", (3, 32, 32), {"num_classes": 3}, "follows from the data"),
        ("resnet18", (3, 32, 32), {"weights": "DEFAULT"}, r"model\.pretrained: true"),
        ("resnet18", (3, 32, 32), {"droput": 0.5}, "droput"),
        ("googlenet", (3, 64, 64), {"aux_logits": True}, "three outputs"),
        ("vit_b_16", (3, 28, 28), {}, "indivisible by patch size"),
        ("vit_b_32", (3, 64, 64), {"image_size": 96}, "cannot take images of 64 × 64"),
    ],
)
def test_what_does_not_fit_is_a_usage_error(
    name: str, shape: tuple[int, ...], args: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        build_torchvision(name, 10, shape, **args)


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Stands in for torchvision's server: made-up weights of ImageNet's 1000 classes, by the name of the model.

    Gives the state dict that was "downloaded" last under `state`.
    """
    from orchestrator.vision import import_torchvision

    models = import_torchvision().models
    served: dict[str, Any] = {}

    def download(url: str, *args: object, **options: object) -> dict[str, torch.Tensor]:
        served["downloads"] = served.get("downloads", 0) + 1
        name = served["name"]
        assert url.startswith("https://download.pytorch.org/models/")
        more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        state: dict[str, torch.Tensor] = models.get_model(name, weights=None, **more).state_dict()
        served["state"] = state
        return state

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    return served


@pytest.mark.parametrize(
    ("name", "shape", "head", "first"),
    [
        ("resnet18", (3, 40, 40), "fc", None),
        ("resnet18", (4, 40, 40), "fc", "conv1.weight"),
        ("squeezenet1_1", (3, 40, 40), "classifier.1", None),
        ("googlenet", (3, 64, 64), "fc", None),
        ("googlenet", (1, 64, 64), "fc", "conv1.conv.weight"),
    ],
)
def test_published_weights_are_taken_but_for_the_head(
    published: dict[str, Any], name: str, shape: tuple[int, int, int], head: str, first: str | None
) -> None:
    published["name"] = name
    section = ModelSection(name=f"torchvision/{name}", pretrained=True)
    model = build_model(section, shape, 5)
    own, state = model.state_dict(), published["state"]
    new = {key for key in own if key not in state or not torch.equal(own[key], state[key])}
    assert new == {f"{head}.weight", f"{head}.bias", *([first] if first else [])}
    if first:
        turns = torch.arange(shape[0]) % 3
        torch.testing.assert_close(own[first], state[first][:, turns] * (3 / shape[0]) ** 0.5)
    assert model.training
    assert model(torch.randn(2, *shape)).shape == (2, 5)
    # A bundle loads its own weights into the same network, without a download.
    again = build_model(section, shape, 5, download=False)
    again.load_state_dict(own)
    images = torch.randn(2, *shape)
    torch.testing.assert_close(again.eval()(images), model.eval()(images))
    assert published["downloads"] == 1


def test_published_transformers_keep_their_image_size(published: dict[str, Any]) -> None:
    published["name"] = "vit_b_32"
    with pytest.raises(UsageError, match=r"expected value 224 but got 64.*data\.image\.size"):
        build_torchvision("vit_b_32", 10, (3, 64, 64), pretrained=True)


def test_a_bundle_is_loaded_without_a_download(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise AssertionError

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refuse)
    section = ModelSection(name="torchvision/shufflenet_v2_x0_5", pretrained=True)
    model = build_model(section, (1, 8, 8), 2, download=False).eval()
    write_bundle(
        Folder.at(tmp_path),
        model=section,
        model_state=model.state_dict(),
        pipeline=Pipeline(RawSchema("array", ("image",), ("float32",), (8, 8)), classes=["a", "b"]),
        task="multiclass",
        num_outputs=2,
        input_example=pa.table({"image": [torch.zeros(8, 8).tolist()]}),
    )
    loaded = load_bundle(tmp_path)
    images = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(loaded.model(images), model(images))


def test_without_a_network_it_is_said_where_the_file_belongs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("torch.hub.download_url_to_file", refuse)
    with pytest.raises(UsageError) as caught:
        build_torchvision("resnet18", 10, (3, 40, 40), pretrained=True)
    for said in ("https://download.pytorch.org/models/resnet18-", "not known", f"{tmp_path}/hub/checkpoints"):
        assert said in str(caught.value)


def test_a_file_in_the_hub_folder_needs_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from orchestrator.vision import import_torchvision

    models = import_torchvision().models
    state = models.resnet18().state_dict()
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    torch.save(state, folder / models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2])
    monkeypatch.setattr("torch.hub.get_dir", lambda: str(tmp_path))
    model = build_torchvision("resnet18", 3, (3, 40, 40), pretrained=True)
    assert torch.equal(model.state_dict()["layer4.1.conv2.weight"], state["layer4.1.conv2.weight"])
    assert [path.name for path in folder.iterdir()] == [path.name for path in folder.glob("*.pth")]


def test_every_model_has_published_weights() -> None:
    from orchestrator.vision import import_torchvision

    models = import_torchvision().models
    assert all(models.get_model_weights(name).DEFAULT.url for name in models.list_models(module=models))


def test_only_torchvision_has_published_weights() -> None:
    with pytest.raises(UsageError, match=r"no published weights of 'mlp'.*init_from"):
        build_model(ModelSection(name="mlp", pretrained=True), (4,), 2)
