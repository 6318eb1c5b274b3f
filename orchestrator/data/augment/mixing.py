"""Mixup and cutmix: what other rows are mixed into a batch, and how. Imports: numpy, torch.

A sample's partner is another row of the training part, drawn by the sample's own row, and not its neighbour in
the batch: so it is the same for any batch, and its features are read too.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.data.augment.draws import symmetric_beta, uniform
from orchestrator.spec.data import CutMix, Mixup


@dataclass(frozen=True)
class Mix:
    """What a step mixes into `num_samples` samples, drawn before any of them is read. In `k` of them:"""

    num_samples: int
    chosen: NDArray[np.int64]
    """Their positions among the samples, (k,), ascending."""
    partners: NDArray[np.int64]
    """The rows of the training part that are mixed into them, (k,)."""
    share: NDArray[np.float64]
    """How much the partner counts, from 0 to 1, (k,); for cutmix the share of the pixels that it gives."""
    box: NDArray[np.int64] | None = None
    """cutmix: the rectangles that come from the partner, (4, k): top, bottom, left, right, the ends excluded."""


def draw_mix(
    step: Mixup | CutMix,
    *,
    seed: int,
    epoch: int,
    index: int,
    rows: NDArray[np.int64],
    blocks: NDArray[np.int64],
    input_shape: tuple[int, ...],
) -> Mix:
    """What the step mixes into samples of these rows. A partner is a row of the same block of the training part;
    `blocks` (n,) are the rows at which they end: one for the whole part, or the shards where it is streamed."""
    u = uniform(seed, epoch, index, rows, 5)
    chosen = np.flatnonzero(u[0] < step.p)
    u = u[:, chosen]
    # One of the others, all equally likely; a block of one row has none.
    block = np.searchsorted(blocks, rows[chosen], side="right")
    first, sizes = (np.append(0, blocks[:-1])[block], np.diff(blocks, prepend=0)[block])
    partners = first + (rows[chosen] - first + 1 + (u[1] * (sizes - 1)).astype(np.int64)) % sizes
    own_share = symmetric_beta(u[2], step.alpha)
    if isinstance(step, Mixup):
        return Mix(len(rows), chosen, partners, 1 - own_share)
    height, width = input_shape[1:]
    # Sides of √(1 − λ) of the image's, about a pixel of it; what lies outside is cut off (Yun et al. 2019).
    box = np.concatenate([_side(1 - own_share, u[3], height), _side(1 - own_share, u[4], width)])
    area = (box[1] - box[0]) * (box[3] - box[2])
    return Mix(len(rows), chosen, partners, area / (height * width), box)


def mix_inputs(inputs: Tensor, mix: Mix) -> Tensor:
    """`inputs` (num_samples + k, …), the partners last, become (num_samples, …)."""
    return _mixed(inputs, mix, _mask(mix.box, inputs) if mix.box is not None else None)


def mix_targets(targets: Tensor, mix: Mix) -> Tensor:
    """The same for targets, floats of shape (num_samples + k,) or (num_samples + k, …)."""
    return _mixed(targets, mix, None)


def _mixed(values: Tensor, mix: Mix, mask: Tensor | None) -> Tensor:
    own, partners = values[: mix.num_samples], values[mix.num_samples :]
    chosen = None
    if len(mix.chosen) < mix.num_samples:
        chosen = torch.from_numpy(mix.chosen).to(values.device)
    part = own if chosen is None else own[chosen]
    if mask is None:
        share = torch.from_numpy(mix.share).to(values.device, values.dtype)
        mixed = torch.lerp(part, partners, share.reshape(-1, *[1] * (values.ndim - 1)))
    else:
        mixed = torch.where(mask, partners, part)
    return mixed if chosen is None else own.index_copy(0, chosen, mixed)


def _mask(box: NDArray[np.int64], inputs: Tensor) -> Tensor:
    """Which pixels lie in the rectangles, (k, 1, H, W), made on the inputs' device."""
    top, bottom, left, right = torch.from_numpy(box).to(inputs.device)[:, :, None]
    y, x = (torch.arange(size, device=inputs.device) for size in inputs.shape[2:])
    high: Tensor = (y >= top) & (y < bottom)
    wide: Tensor = (x >= left) & (x < right)
    return high[:, None, :, None] & wide[:, None, None, :]


def _side(area: NDArray[np.float64], u: NDArray[np.float64], size: int) -> NDArray[np.int64]:
    """Where rectangles of such shares of the image begin and end along one side, (2, k)."""
    half = (0.5 * np.sqrt(area) * size).astype(np.int64)
    centre = (u * size).astype(np.int64)
    return np.stack([np.maximum(centre - half, 0), np.minimum(centre + half, size)])
