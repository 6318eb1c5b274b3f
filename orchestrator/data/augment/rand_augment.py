"""RandAugment (Cubuk et al. 2020, arXiv:1909.13719): a few operations per image, all of one magnitude.

The 14 operations of the paper, on values from 0 (black) to 1 as floats, drawn for each image by itself: those of
one kind are done together, and those that move pixels are all one affine map. What comes in at the edges is
black. Imports: numpy, torch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.data.augment.draws import Uniform
from orchestrator.data.augment.images import resample
from orchestrator.spec.data import RandAugment

HIGHEST = 30
"""The highest magnitude."""
_GREY = (0.2989, 0.587, 0.114)
"""How much red, green and blue count for brightness (ITU-R BT.601)."""

MOVES: dict[str, float] = {
    "shear_x": 0.3,
    "shear_y": 0.3,
    "translate_x": 150 / 331,
    "translate_y": 150 / 331,
    "rotate": 30.0,
}
"""The most that an operation moves pixels, either way: a slope, a share of the width or height, degrees."""


def rand_augment(images: Tensor, step: RandAugment, u: Uniform) -> Tensor:
    """Images (n, C, H, W) with values from 0 to 1; of `u` (2 · num_ops, n) each operation takes two rows.
    Changes `images` in place, and returns them."""
    strength = step.magnitude / HIGHEST
    for drawn, side in zip(u[::2], u[1::2], strict=True):
        choice = (drawn * len(OPERATIONS)).astype(np.int64)
        sign = np.where(side < 0.5, -1.0, 1.0)
        moved = np.flatnonzero(choice < len(MOVES))
        if len(moved):
            index = torch.from_numpy(moved).to(images.device)
            matrices = np.empty((2, 3, len(moved)))
            for number, (name, most) in enumerate(MOVES.items()):
                of_kind = choice[moved] == number
                amounts = most * strength * sign[moved[of_kind]]
                matrices[:, :, of_kind] = move_matrices(name, amounts, images.shape[2:])
            images[index] = resample(images[index], matrices, padding_mode="zeros")
        for number, name in enumerate(_CHANGES, start=len(MOVES)):
            changed = np.flatnonzero(choice == number)
            if len(changed):
                index = torch.from_numpy(changed).to(images.device)
                images[index] = change(images[index], name, strength, sign[changed])
    return images


def move_matrices(name: str, amounts: NDArray[np.float64], size: tuple[int, ...]) -> NDArray[np.float64]:
    """Where each pixel (x, y, 1) comes from, in pixels from the centre, y downwards: (2, 3, n).

    Slopes are about the upper left corner, angles in degrees against the clock, shifts whole pixels, of shares
    of `size` (height, width).
    """
    height, width = size
    matrices = np.zeros((2, 3, len(amounts)))
    matrices[0, 0] = matrices[1, 1] = 1
    if name == "shear_x":
        matrices[0, 1], matrices[0, 2] = amounts, amounts * height / 2
    elif name == "shear_y":
        matrices[1, 0], matrices[1, 2] = amounts, amounts * width / 2
    elif name == "translate_x":
        matrices[0, 2] = -np.trunc(amounts * width)
    elif name == "translate_y":
        matrices[1, 2] = -np.trunc(amounts * height)
    else:
        cos, sin = np.cos(np.radians(amounts)), np.sin(np.radians(amounts))
        matrices[0, 0], matrices[0, 1], matrices[1, 0], matrices[1, 1] = cos, -sin, sin, cos
    return matrices


def change(images: Tensor, name: str, strength: float, sign: NDArray[np.float64]) -> Tensor:
    """The images after one operation that leaves pixels in their places. `strength` is from 0 to 1; `sign`
    (n,) of -1 and 1 says which way factors go that go both ways."""
    if name in _PLAIN:
        return _PLAIN[name](images)
    if name in _OF_STRENGTH:
        return _OF_STRENGTH[name](images, strength)
    factor = torch.from_numpy(1 + 0.9 * strength * sign).to(images.device, images.dtype)
    return _OF_FACTOR[name](images, factor.reshape(-1, 1, 1, 1))


def _brightness(images: Tensor, factor: Tensor) -> Tensor:
    return (images * factor).clamp_(0, 1)


def _color(images: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(images), images, factor).clamp_(0, 1) if images.shape[1] > 1 else images


def _contrast(images: Tensor, factor: Tensor) -> Tensor:
    return torch.lerp(_grey(images).mean((1, 2, 3), keepdim=True), images, factor).clamp_(0, 1)


def _sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Towards or away from each pixel's mean with its eight neighbours, itself counted five times."""
    if min(images.shape[2:]) < 3:
        return images
    inner = images[:, :, 1:-1, 1:-1]
    smooth = images.clone()  # pixels at the edges keep their values
    smooth[:, :, 1:-1, 1:-1] = (F.avg_pool2d(images, 3, stride=1) * 9 + inner * 4) / 13
    return torch.lerp(smooth, images, factor).clamp_(0, 1)


def _posterize(images: Tensor, strength: float) -> Tensor:
    dropped = round(4 * strength)  # of 8 bits
    return (_bytes(images) >> dropped << dropped).to(images.dtype) / 255


def _solarize(images: Tensor, strength: float) -> Tensor:
    """Bright pixels become their negative: of 256 values those from 256 · (1 − strength) on."""
    threshold = 256 / 255 * (1 - strength) - 1e-4  # scaling there and back moves values by less
    return torch.where(images >= threshold, 1 - images, images)


def _autocontrast(images: Tensor) -> Tensor:
    """Each channel stretched to the whole range."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp_min(1e-12), images)


def _equalize(images: Tensor) -> Tensor:
    """Each channel so that its 256 values are about equally frequent, as Pillow does it."""
    pixels = _bytes(images).flatten(2).flatten(0, 1)  # (n · C, H · W)
    places = (pixels + torch.arange(0, 256 * len(pixels), 256, device=pixels.device)[:, None]).flatten()
    counts = torch.zeros(256 * len(pixels), dtype=torch.int64, device=pixels.device)
    counts = counts.scatter_add_(0, places, torch.ones_like(places)).reshape(-1, 256)
    brightest = counts.gather(1, pixels.amax(1, keepdim=True))
    step = (pixels.shape[1] - brightest) // 255
    table = ((counts.cumsum(1) - counts + step // 2) // step.clamp_min(1)).clamp_max_(255)
    equal = torch.where(step > 0, table.gather(1, pixels), pixels)
    return equal.reshape(images.shape).to(images.dtype) / 255


def _grey(images: Tensor) -> Tensor:
    """The brightness of each pixel, (n, 1, H, W); the channels' mean where they are not red, green and blue."""
    if images.shape[1] != 3:
        return images.mean(1, keepdim=True)
    red, green, blue = images[:, :1], images[:, 1:2], images[:, 2:]
    return red * _GREY[0] + green * _GREY[1] + blue * _GREY[2]


def _bytes(images: Tensor) -> Tensor:
    return (images.clamp(0, 1) * 255).round_().to(torch.int64)


_OF_FACTOR: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": _brightness,
    "color": _color,
    "contrast": _contrast,
    "sharpness": _sharpness,
}
_OF_STRENGTH: dict[str, Callable[[Tensor, float], Tensor]] = {"posterize": _posterize, "solarize": _solarize}
_PLAIN: dict[str, Callable[[Tensor], Tensor]] = {"autocontrast": _autocontrast, "equalize": _equalize}
_CHANGES = (*_OF_FACTOR, *_OF_STRENGTH, *_PLAIN)

OPERATIONS = (*MOVES, *_CHANGES, "identity")
"""In the order of their numbers, from which one is drawn."""
