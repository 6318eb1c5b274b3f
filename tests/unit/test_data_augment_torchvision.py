"""Transforms of torchvision: reproducible by row, on pixel values, and refused where they do not fit."""

from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.data.augment.augment import augment, check_augment, plan_augment
from orchestrator.data.augment.draws import hashes
from orchestrator.errors import UsageError, UserCodeError
from orchestrator.spec.data import TorchvisionStep
from orchestrator.vision import import_torchvision

import_torchvision()
from torchvision.transforms import v2  # noqa: E402

N, SHAPE = 12, (3, 10, 14)
BOUNDS = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 255.0)


def step(name: str, **args: Any) -> TorchvisionStep:
    return TorchvisionStep(kind="torchvision", name=name, args=args)


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (N, *SHAPE), generator=generator).float()


def changed(given: TorchvisionStep, rows: Any = None, *, epoch: int = 1) -> torch.Tensor:
    rows = np.arange(N) if rows is None else np.asarray(rows)
    plan = plan_augment([given], seed=5, epoch=epoch, rows=rows, blocks=np.array([N]), input_shape=SHAPE)
    return augment(images()[rows], plan, BOUNDS)


def test_each_image_under_its_own_seed() -> None:
    """As a user would call torchvision by hand, seeded by the row."""
    ours = changed(step("ColorJitter", brightness=0.4, hue=0.2))
    jitter = v2.ColorJitter(brightness=0.4, hue=0.2)
    for image, seed, given in zip(images(), hashes(5, 1, 0, np.arange(N), 1)[0], ours, strict=True):
        torch.manual_seed(int(seed))
        torch.testing.assert_close(given, jitter(image / 255) * 255, rtol=1e-4, atol=1e-3)


def test_the_same_in_any_batch_and_epoch() -> None:
    given = step("RandomAffine", degrees=30, interpolation="bilinear")
    whole = changed(given)
    order = np.random.default_rng(0).permutation(N)
    torch.testing.assert_close(changed(given, order), whole[order])
    assert torch.equal(changed(given, order[:1]), whole[order[:1]])
    assert torch.equal(changed(given), whole)
    assert not torch.equal(changed(given, epoch=2), whole)


def test_random_numbers_of_others_are_left_alone() -> None:
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    changed(step("GaussianNoise"))
    check_augment([step("GaussianNoise")], SHAPE)
    assert torch.equal(torch.rand(4), wanted)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (step("ColorJiter"), r"augment.0: .*no transform named 'ColorJiter'. did you mean ColorJitter"),
        (step("jitter"), "did you mean ColorJitter"),
        (step("qqqq"), "it has: .*, ColorJitter, "),
        (step("ColorJitter", brigtness=1), "augment.0: torchvision's ColorJitter cannot be made.*brigtness"),
        (step("RandomAffine", degrees=3, interpolation="soft"), "cannot be made.*soft"),
        (step("Resize", size=[5, 5]), r"augment.0: .*Resize gave torch.float32 \(3, 5, 5\).*keep shape"),
        (step("ToDtype", dtype="float16"), "augment.0: "),
        (step("CutMix", num_classes=3), "augment.0: torchvision's CutMix raised .*without its label"),
        (step("RandomCrop", size=40), "augment.0: torchvision's RandomCrop raised"),
    ],
    ids=lambda value: value.name if isinstance(value, TorchvisionStep) else "",
)
def test_what_does_not_fit_is_refused(given: TorchvisionStep, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_augment([given], SHAPE)


def test_a_transform_that_raises_is_named() -> None:
    with pytest.raises(UserCodeError, match="RandomCrop raised ValueError"):
        changed(step("RandomCrop", size=40))
