"""RandAugment: each operation against torchvision's, with the same parameters, and the draws between them."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.data.augment.augment import augment, plan_augment
from orchestrator.data.augment.draws import uniform
from orchestrator.data.augment.images import resample
from orchestrator.data.augment.rand_augment import MOVES, OPERATIONS, change, move_matrices
from orchestrator.spec.data import RandAugment
from orchestrator.vision import import_torchvision

import_torchvision()
from torchvision.transforms.v2 import InterpolationMode  # noqa: E402
from torchvision.transforms.v2 import functional as reference  # noqa: E402

N, HEIGHT, WIDTH = 32, 13, 17
BILINEAR = InterpolationMode.BILINEAR


def pixels(channels: int = 3) -> torch.Tensor:
    """Bytes of smooth images, (n, C, H, W), with dark, bright and flat ones among them."""
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(N, channels, 4, 5, generator=generator)
    images = torch.nn.functional.interpolate(coarse, (HEIGHT, WIDTH), mode="bilinear")
    images[: N // 4] *= 0.2
    images[N // 4 : N // 2] = images[N // 4 : N // 2] * 0.2 + 0.8
    images[0], images[1] = 0.0, 0.3
    return (images * 255).to(torch.uint8)


def affine(image: torch.Tensor, **changes: Any) -> torch.Tensor:
    neutral = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    moved: torch.Tensor = reference.affine(image, **neutral | changes, interpolation=BILINEAR)
    return moved


def moved(image: torch.Tensor, name: str, amount: float) -> torch.Tensor:
    slope = math.degrees(math.atan(amount))
    if name == "shear_x":
        return affine(image, shear=[slope, 0.0], center=[0.0, 0.0])
    if name == "shear_y":
        return affine(image, shear=[0.0, slope], center=[0.0, 0.0])
    if name == "translate_x":
        return affine(image, translate=[int(amount * WIDTH), 0])
    if name == "translate_y":
        return affine(image, translate=[0, int(amount * HEIGHT)])
    turned: torch.Tensor = reference.rotate(image, amount, interpolation=BILINEAR)
    return turned


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", MOVES)
def test_moves_are_torchvisions(name: str, channels: int) -> None:
    images = pixels(channels).float() / 255
    amounts = np.linspace(-1, 1, N) * MOVES[name]
    ours = resample(images, move_matrices(name, amounts, (HEIGHT, WIDTH)), padding_mode="zeros")
    for image, amount, given in zip(images, amounts, ours, strict=True):
        torch.testing.assert_close(given, moved(image, name, float(amount)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("strength", [0.3, 1.0])
@pytest.mark.parametrize("name", ["brightness", "color", "contrast", "sharpness"])
def test_factors_are_torchvisions(name: str, strength: float, channels: int) -> None:
    images = pixels(channels).float() / 255
    sign = np.where(np.arange(N) % 2, 1.0, -1.0)
    ours = change(images, name, strength, sign)
    adjust = getattr(reference, f"adjust_{'saturation' if name == 'color' else name}")
    for image, way, given in zip(images, sign, ours, strict=True):
        torch.testing.assert_close(given, adjust(image, 1 + 0.9 * strength * way), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("magnitude", [0, 9, 15, 23, 30])
@pytest.mark.parametrize("name", ["posterize", "solarize", "autocontrast", "equalize"])
def test_bytes_are_changed_as_torchvision_does(name: str, magnitude: int, channels: int) -> None:
    """Whole bytes, also after they were standardised and brought back, which loses their last bits."""
    images = pixels(channels)
    mean, std = 113.7, 61.3
    brought_back = ((images.float() - mean) / std + mean / std) / (255 / std)
    ours = change(brought_back, name, magnitude / 30, np.ones(N))
    threshold = 256 * (1 - magnitude / 30)
    functions = {
        "posterize": lambda image: reference.posterize(image, 8 - round(4 * magnitude / 30)),
        # A byte cannot be 256: no pixel is bright enough.
        "solarize": lambda image: reference.solarize(image, threshold) if magnitude else image,
        "autocontrast": reference.autocontrast,
        "equalize": reference.equalize,
    }
    for image, given in zip(images, ours, strict=True):
        wanted = functions[name](image if name != "autocontrast" else image.float() / 255)
        wanted = wanted.float() if name == "autocontrast" else wanted.float() / 255
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-4)


def test_every_operation_is_drawn_equally_often_and_does_one_thing() -> None:
    images = pixels().float()[N // 2 : N // 2 + 1].expand(1400, -1, -1, -1)
    step = RandAugment(kind="rand_augment", num_ops=1, magnitude=20)
    rows = np.arange(1400)
    plan = plan_augment(
        [step], seed=5, epoch=1, rows=rows, blocks=np.array([1400]), input_shape=(3, HEIGHT, WIDTH)
    )
    bounds = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 255.0)
    ours = augment(images, plan, bounds)
    drawn, side = uniform(5, 1, 0, rows, 2)
    choice = (drawn * len(OPERATIONS)).astype(int)
    np.testing.assert_allclose(np.bincount(choice, minlength=14), 1400 / 14, atol=35)
    signs = np.where(side < 0.5, -1.0, 1.0)
    for number, name in enumerate(OPERATIONS):
        mine = np.flatnonzero(choice == number)
        originals = images[mine] / 255
        if name in MOVES:
            amounts = MOVES[name] * 20 / 30 * signs[mine]
            matrices = move_matrices(name, amounts, (HEIGHT, WIDTH))
            wanted = resample(originals, matrices, padding_mode="zeros")
        else:
            wanted = originals if name == "identity" else change(originals, name, 20 / 30, signs[mine])
        torch.testing.assert_close(ours[mine], wanted * 255, rtol=1e-4, atol=1e-2)
    assert len(torch.unique(ours[:, 0, 3, 4])) > 10


def test_operations_follow_each_other() -> None:
    images = pixels().float()
    rows = np.arange(N)
    bounds = torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 255.0)

    def changed(num_ops: int, magnitude: float = 12) -> torch.Tensor:
        step = RandAugment(kind="rand_augment", num_ops=num_ops, magnitude=magnitude)
        plan = plan_augment(
            [step], seed=5, epoch=1, rows=rows, blocks=np.array([N]), input_shape=(3, HEIGHT, WIDTH)
        )
        return augment(images, plan, bounds)

    one, two = changed(1), changed(2)
    alike = [torch.equal(a, b) for a, b in zip(one, two, strict=True)]
    assert 0 < sum(alike) < N / 3  # those whose second one is no change
    assert images.min() >= 0  # left alone
    assert torch.equal(images, pixels().float())
    assert not torch.equal(changed(1, 3), one)


def test_the_range_is_the_pixels_own_where_it_is_known() -> None:
    """Standardised images are changed as their bytes are; without bounds by each image's own range."""
    images = pixels().float()
    mean, std = torch.tensor([90.0, 110, 130]).reshape(3, 1, 1), torch.tensor([40.0, 60, 80]).reshape(3, 1, 1)
    step = RandAugment(kind="rand_augment", magnitude=20)
    plan = plan_augment(
        [step], seed=5, epoch=1, rows=np.arange(N), blocks=np.array([N]), input_shape=(3, HEIGHT, WIDTH)
    )
    of_bytes = augment(images, plan, (torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 255.0)))
    bounds = ((0 - mean) / std)[None], ((255 - mean) / std)[None]
    standardised = augment((images - mean) / std, plan, bounds)
    far = (standardised * std + mean - of_bytes).abs() > 0.01
    assert far.float().mean() < 1e-3  # where a value lies between two bytes it may go either way
    own = augment(images * 3 - 7, plan)
    torch.testing.assert_close(own, augment(images, plan) * 3 - 7, rtol=1e-2, atol=1e-1)
    flat = torch.full((N, 3, HEIGHT, WIDTH), 4.0)
    assert augment(flat, plan).isfinite().all()


def test_tiny_images() -> None:
    for shape in ((1, 1, 1), (2, 2, 5), (4, 1, 3)):
        images = torch.rand(N, *shape)
        plan = plan_augment(
            [RandAugment(kind="rand_augment", num_ops=3)],
            seed=5, epoch=1, rows=np.arange(N), blocks=np.array([N]), input_shape=shape,
        )  # fmt: skip
        changed = augment(images, plan)
        assert changed.shape == images.shape
        assert changed.isfinite().all()
