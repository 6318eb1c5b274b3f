"""Augmentation: each step against its definition, and always the same for the same row."""

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import TypeAdapter

from orchestrator.data.augment.augment import augment, check_augment, plan_augment
from orchestrator.data.augment.draws import uniform
from orchestrator.errors import UsageError
from orchestrator.spec.data import Augmentation

KINDS: list[dict[str, Any]] = [
    {"kind": "flip"},
    {"kind": "crop", "padding": 3},
    {"kind": "rotate", "degrees": 30, "zoom": 0.2},
    {"kind": "color"},
    {"kind": "erase", "area": 0.4},
    {"kind": "rand_augment", "num_ops": 3, "magnitude": 15},
    {
        "kind": "torchvision",
        "name": "RandomResizedCrop",
        "args": {"size": [9, 12], "interpolation": "bilinear"},
    },
]
N, CHANNELS, HEIGHT, WIDTH = 40, 3, 9, 12
ROWS = np.arange(100, 100 + N)


def step(**settings: Any) -> Augmentation:
    parsed: Augmentation = TypeAdapter(Augmentation).validate_python(settings)
    return parsed


def images(channels: int = CHANNELS) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(N, channels, HEIGHT, WIDTH, generator=generator)


def changed_by(
    steps: list[Augmentation], inputs: torch.Tensor, *, epoch: int = 1, rows: Any = ROWS
) -> torch.Tensor:
    shape = tuple(inputs.shape[1:])
    return augment(
        inputs,
        plan_augment(steps, seed=5, epoch=epoch, rows=rows, blocks=np.array([1000]), input_shape=shape),
    )


def changed(inputs: torch.Tensor, *, epoch: int = 1, rows: Any = ROWS, **settings: Any) -> torch.Tensor:
    return changed_by([step(**settings)], inputs, epoch=epoch, rows=rows)


@pytest.mark.parametrize("settings", KINDS, ids=lambda settings: settings["kind"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_row_is_changed_the_same_way_in_any_batch(settings: dict[str, Any], channels: int) -> None:
    inputs = images(channels)
    before = inputs.clone()
    whole = changed(inputs, **settings)
    assert whole.shape == inputs.shape
    assert whole.dtype == inputs.dtype
    assert whole.is_contiguous()
    assert torch.equal(inputs, before)
    assert not torch.equal(whole, inputs)
    order = torch.randperm(N, generator=torch.Generator().manual_seed(1))
    shuffled = changed(inputs[order], rows=ROWS[order.numpy()], **settings)
    torch.testing.assert_close(shuffled, whole[order], rtol=1e-6, atol=1e-6)
    parts = [changed(inputs[i : i + 7], rows=ROWS[i : i + 7], **settings) for i in range(0, N, 7)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-6, atol=1e-6)
    assert not torch.equal(changed(inputs, epoch=2, **settings), whole)
    assert not torch.equal(changed(inputs, rows=ROWS + N, **settings), whole)


def test_two_steps_of_a_kind_draw_by_themselves() -> None:
    flip = step(kind="flip")
    inputs = images()
    twice = changed_by([flip, flip], inputs)
    assert 0 < sum(torch.equal(a, b) for a, b in zip(twice, inputs, strict=True)) < N
    assert torch.equal(changed_by([], inputs), inputs)


def test_a_flip_is_an_exact_mirror() -> None:
    inputs = images()
    assert torch.equal(changed(inputs, kind="flip", p=1.0), inputs.flip(3))
    assert torch.equal(changed(inputs, kind="flip", p=1e-12), inputs)
    halves = changed(inputs, kind="flip")
    mirrored = [torch.equal(a, b) for a, b in zip(halves, inputs.flip(3), strict=True)]
    same = [torch.equal(a, b) for a, b in zip(halves, inputs, strict=True)]
    assert [a ^ b for a, b in zip(mirrored, same, strict=True)] == [True] * N
    assert 5 < sum(mirrored) < N - 5


def test_a_crop_is_a_window_of_the_mirrored_image() -> None:
    inputs = images()
    padded = F.pad(inputs, (2, 2, 2, 2), mode="reflect")
    seen = set()
    for image, frame in zip(changed(inputs, kind="crop", padding=2), padded, strict=True):
        found = [
            (y, x)
            for y in range(5)
            for x in range(5)
            if torch.equal(image, frame[:, y : y + HEIGHT, x : x + WIDTH])
        ]
        assert len(found) == 1
        seen |= set(found)
    assert {y for y, _ in seen} == {x for _, x in seen} == set(range(5))


def test_a_turn_follows_the_rotation_of_the_plane() -> None:
    """A dot's place after the turn, against the rotation about the centre, zoom included."""
    height, width, y, x = 41, 61, 12, 40
    inputs = torch.zeros(N, 1, height, width)
    inputs[:, :, y - 2 : y + 3, x - 2 : x + 3] = 1
    turned = changed(inputs, kind="rotate", degrees=20, zoom=0.1)
    angles, zooms = uniform(5, 1, 0, ROWS, 2) * 2 - 1
    down, right = y - (height - 1) / 2, x - (width - 1) / 2
    for image, u, v in zip(turned[:, 0], angles, zooms, strict=True):
        mass = image / image.sum()
        centre = (
            float((mass.sum(1) * torch.arange(height)).sum()) - (height - 1) / 2,
            float((mass.sum(0) * torch.arange(width)).sum()) - (width - 1) / 2,
        )
        cos, sin = math.cos(math.radians(20) * u), math.sin(math.radians(20) * u)
        zoom = 1 + 0.1 * v
        expected = (zoom * (cos * down - sin * right), zoom * (sin * down + cos * right))
        assert centre == pytest.approx(expected, abs=0.15)
        assert float(image.sum()) == pytest.approx(25 * zoom**2, rel=0.05)


def test_no_turn_leaves_images_alone() -> None:
    torch.testing.assert_close(changed(images(), kind="rotate", degrees=0), images(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_color_changes_one_thing_at_a_time(name: str) -> None:
    off: dict[str, Any] = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0}
    inputs = images().double()
    after = changed(inputs, kind="color", **(off | {name: 0.5}))
    draws = dict(zip(off, uniform(5, 1, 0, ROWS, 3), strict=True))
    amount = torch.from_numpy(draws[name] - 0.5).reshape(N, 1, 1, 1)
    mean, std = inputs.mean((1, 2, 3), keepdim=True), inputs.std((1, 2, 3), correction=0, keepdim=True)
    grey = inputs.mean(1, keepdim=True)
    expected = {
        "brightness": inputs + amount * std,
        "contrast": mean + (1 + amount) * (inputs - mean),
        "saturation": grey + (1 + amount) * (inputs - grey),
    }
    torch.testing.assert_close(after, expected[name])
    torch.testing.assert_close(changed(inputs, kind="color", **off), inputs)


def test_an_erased_rectangle_has_the_mean_colour_and_at_most_the_area() -> None:
    inputs = images()
    erased = changed(inputs, kind="erase", p=1.0, area=0.3)
    areas = []
    for before, after in zip(inputs, erased, strict=True):
        mask = (before != after).any(0)
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        block = after[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert mask.sum() == len(rows) * len(columns) == block[0].numel()
        torch.testing.assert_close(block, before.mean((1, 2))[:, None, None].expand_as(block))
        areas.append(block[0].numel() / (HEIGHT * WIDTH))
    assert max(areas) <= 0.3 + 1e-9
    assert len(set(areas)) > 5
    assert torch.equal(changed(inputs, kind="erase", p=1e-12), inputs)


def test_random_numbers_are_uniform_and_independent() -> None:
    u = uniform(0, 0, 0, np.arange(20_000), 3)
    assert u.shape == (3, 20_000)
    assert 0 <= u.min() < u.max() < 1
    others = [
        *u,
        u[0][np.r_[1:20_000, 0]],
        uniform(1, 0, 0, np.arange(20_000), 1)[0],
        uniform(0, 1, 0, np.arange(20_000), 1)[0],
        uniform(0, 0, 1, np.arange(20_000), 1)[0],
    ]
    np.testing.assert_allclose(np.corrcoef(others), np.eye(7), atol=0.03)
    for numbers in u:
        np.testing.assert_allclose(np.histogram(numbers, 10, (0, 1))[0], 2000, atol=200)


def test_what_is_no_image_is_refused() -> None:
    for settings in KINDS:
        with pytest.raises(UsageError, match=rf"{settings['kind']}.*\(30,\)"):
            check_augment([step(**settings)], (30,))
    check_augment([], (30,))
    check_augment([step(**settings) for settings in KINDS], (CHANNELS, HEIGHT, WIDTH))
    with pytest.raises(UsageError, match=r"data.augment.1.padding: 3 .*3×9. write at most 2"):
        check_augment([step(kind="flip"), step(kind="crop", padding=3)], (3, 3, 9))
