"""torchvision's classifiers by name: shapes, channels, sizes, and what is said where they do not fit."""

from __future__ import annotations

import pytest
import torch

from orchestrator.errors import UsageError
from orchestrator.models.build import build_model
from orchestrator.models.torchvision_models import build_torchvision
from orchestrator.spec.model import ModelSection


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
        ("resnet18", (3, 32, 32), {"weights": "DEFAULT"}, "random weights"),
        ("resnet18", (3, 32, 32), {"droput": 0.5}, "droput"),
        ("googlenet", (3, 64, 64), {"aux_logits": True}, "three outputs"),
        ("vit_b_16", (3, 28, 28), {}, "indivisible by patch size"),
        ("vit_b_32", (3, 64, 64), {"image_size": 96}, "cannot take images of 64 × 64"),
    ],
)
def test_what_does_not_fit_is_a_usage_error(
    name: str, shape: tuple[int, ...], args: dict[str, object], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        build_torchvision(name, 10, shape, **args)
