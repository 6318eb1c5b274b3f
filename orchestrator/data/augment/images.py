"""Flips, crops, turns, colours and erased rectangles of batches of images, all samples at once.

Each function takes images (n, C, H, W) as the model sees them, the step of the spec, and the uniform numbers
(draws, n) that it takes for them. Imports: numpy, torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.data.augment.draws import Uniform
from orchestrator.spec.data import Color, Crop, Erase, Flip, Rotate

_ASPECT = 0.3
"""Erased rectangles are between 0.3 and 1 / 0.3 times as high as wide, as in Zhong et al. 2020."""


def _flip(inputs: Tensor, step: Flip, u: Uniform) -> Tensor:
    return torch.where(per_image(u[0] < step.p, inputs), inputs.flip(3), inputs)


def _crop(inputs: Tensor, step: Crop, u: Uniform) -> Tensor:
    n, _, height, width = inputs.shape
    down, right = torch.from_numpy((u * (2 * step.padding + 1)).astype(np.int64)).to(inputs.device)
    padded = F.pad(inputs, (step.padding,) * 4, mode="reflect")
    # A view of every window of the images' size, (n, C, down, right, H, W); one is taken of each image.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(n, device=inputs.device), :, down, right]


def _rotate(inputs: Tensor, step: Rotate, u: Uniform) -> Tensor:
    angle = np.radians(step.degrees) * (2 * u[0] - 1)
    zoom = 1 + step.zoom * (2 * u[1] - 1)
    cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
    still = np.zeros_like(cos)
    return resample(inputs, np.array([[cos, -sin, still], [sin, cos, still]]), padding_mode="reflection")


def resample(inputs: Tensor, matrices: NDArray[np.float64], *, padding_mode: str) -> Tensor:
    """The images, each pixel taken (bilinear) from where its image's matrix says.

    `matrices` (2, 3, n): (x, y, 1) to where that pixel comes from, in pixels from the centre, x to the right and
    y downwards.
    """
    n, _, height, width = inputs.shape
    # grid_sample counts from -1 to 1 between the outer edges of an image.
    scaled = matrices * np.array([2 / width, 2 / height])[:, None, None]
    parts = torch.from_numpy(scaled).to(inputs.device, inputs.dtype)[..., None, None]
    x = torch.arange(width, device=inputs.device, dtype=inputs.dtype) - (width - 1) / 2
    y = (torch.arange(height, device=inputs.device, dtype=inputs.dtype) - (height - 1) / 2)[:, None]
    # Written in place: several times faster than affine_grid, or than stacking x and y.
    grid = inputs.new_empty(n, height, width, 2)
    for axis, (of_x, of_y, shift) in enumerate(parts):
        torch.add(of_x * x + shift, of_y * y, out=grid[..., axis])
    return F.grid_sample(inputs, grid, mode="bilinear", padding_mode=padding_mode, align_corners=False)


def _color(inputs: Tensor, step: Color, u: Uniform) -> Tensor:
    """Brightness shifts by a share of the image's standard deviation, contrast scales about the image's mean,
    saturation about each pixel's mean over the channels."""
    brightness, contrast, saturation = (
        per_image(amount * (2 * draw - 1), inputs)
        for amount, draw in zip((step.brightness, step.contrast, step.saturation), u, strict=True)
    )
    mean = inputs.mean(dim=(1, 2, 3), keepdim=True)
    centred = inputs - mean
    # torch.std is more than ten times slower than the norm.
    std = centred.flatten(1).norm(dim=1).reshape(mean.shape) / centred[0].numel() ** 0.5
    changed = torch.addcmul(mean + brightness * std, centred, 1 + contrast)
    if inputs.shape[1] == 3:
        grey = changed.mean(dim=1, keepdim=True)
        changed = torch.lerp(grey, changed, 1 + saturation)
    return changed


def _erase(inputs: Tensor, step: Erase, u: Uniform) -> Tensor:
    height, width = inputs.shape[2:]
    area = u[1] * step.area * height * width
    aspect = np.exp(np.log(_ASPECT) * (2 * u[2] - 1))
    high = np.clip(np.sqrt(area * aspect), 1, height).astype(np.int64)
    wide = np.clip(np.sqrt(area / aspect), 1, width).astype(np.int64)
    high[u[0] >= step.p] = 0
    top = (u[3] * (height - high + 1)).astype(np.int64)
    left = (u[4] * (width - wide + 1)).astype(np.int64)
    erased = _inside(top, high, height)[:, :, None] & _inside(left, wide, width)[:, None, :]
    mask = torch.from_numpy(erased[:, None]).to(inputs.device)
    return torch.where(mask, inputs.mean(dim=(2, 3), keepdim=True), inputs)


def _inside(start: NDArray[np.int64], length: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
    """Which of `size` positions lie in each stretch, shape (n, size)."""
    positions = np.arange(size)
    result: NDArray[np.bool_] = (positions >= start[:, None]) & (positions < (start + length)[:, None])
    return result


def per_image(values: NDArray[Any], inputs: Tensor) -> Tensor:
    """One value per image, (n,), on the inputs' device and so shaped that it broadcasts."""
    tensor = torch.from_numpy(values).reshape(-1, 1, 1, 1)
    return tensor.to(inputs.device, torch.bool if values.dtype == np.bool_ else inputs.dtype)


IMAGE_STEPS: dict[str, tuple[Callable[[Tensor, Any, Uniform], Tensor], int]] = {
    "flip": (_flip, 1),
    "crop": (_crop, 2),
    "rotate": (_rotate, 2),
    "color": (_color, 3),
    "erase": (_erase, 5),
}
"""By kind: what is done, and how many random numbers an image takes for it."""
