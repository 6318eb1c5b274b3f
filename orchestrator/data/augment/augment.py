"""Random changes to training batches: a pure function of seed, epoch and row, whatever batch a row is in.

First the changes are planned, which says what rows must be read; then they are done. Imports: numpy, torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.data.augment import mixing
from orchestrator.data.augment.draws import hashes, uniform
from orchestrator.data.augment.images import IMAGE_STEPS
from orchestrator.data.augment.mixing import Mix
from orchestrator.data.augment.rand_augment import rand_augment
from orchestrator.data.augment.torchvision_steps import apply_transform, check_transform
from orchestrator.errors import UsageError
from orchestrator.spec.data import Augmentation, Crop, CutMix, Mixup, RandAugment, TorchvisionStep

Bounds = tuple[Tensor, Tensor]
"""What black and full brightness become for the model, broadcastable to images."""


@dataclass(frozen=True)
class Plan:
    """All changes to one batch, drawn before any of it is read."""

    steps: Sequence[Augmentation]
    seed: int
    epoch: int
    num_samples: int
    rows: NDArray[np.int64]
    """What to read of the training part: the batch's rows, then those that are mixed into them."""
    mixes: Mapping[int, Mix]
    """By the position of the step, in their order."""


def plan_augment(
    steps: Sequence[Augmentation],
    *,
    seed: int,
    epoch: int,
    rows: NDArray[np.int64],
    blocks: NDArray[np.int64],
    input_shape: tuple[int, ...],
) -> Plan:
    """The changes to samples of these rows (n,) of the training part. Reads nothing. Within which rows a sample is
    mixed, `blocks` say: where they end, (blocks,), ascending; a single one is the whole part.

    What is mixed into a sample has gone through the steps before as a sample of its own, so that each step that
    mixes adds up to as many rows again.
    """
    mixes: dict[int, Mix] = {}
    num_samples = len(rows)
    for index, step in reversed(list(enumerate(steps))):
        if isinstance(step, Mixup | CutMix):
            mixes[index] = mixing.draw_mix(
                step,
                seed=seed,
                epoch=epoch,
                index=index,
                rows=rows,
                blocks=blocks,
                input_shape=input_shape,
            )
            rows = np.concatenate([rows, mixes[index].partners])
    return Plan(steps, seed, epoch, num_samples, rows, dict(sorted(mixes.items())))


def augment(inputs: Tensor, plan: Plan, bounds: Bounds | None = None) -> Tensor:
    """The samples after all steps, in their order, (num_samples, …), on the device of the inputs, which are left
    alone.

    `inputs` (len(plan.rows), …) are floats as `Pipeline.transform` gives them. `bounds` are asked for by
    `rand_augment` and `torchvision`; without them, each image's darkest and brightest values are taken.
    """
    rows = plan.rows
    for index, step in enumerate(plan.steps):
        if isinstance(step, Mixup | CutMix):
            inputs = mixing.mix_inputs(inputs, plan.mixes[index])
            rows = rows[: len(inputs)]
        elif isinstance(step, RandAugment | TorchvisionStep):
            inputs = _in_range(inputs, step, plan, index, rows, bounds)
        else:
            function, draws = IMAGE_STEPS[step.kind]
            inputs = function(inputs, step, uniform(plan.seed, plan.epoch, index, rows, draws))
    return inputs


def mix_targets(targets: Tensor, plan: Plan) -> Tensor:
    """Floats (len(plan.rows), …) become (num_samples, …), mixed as the inputs are."""
    for mix in plan.mixes.values():
        targets = mixing.mix_targets(targets, mix)
    return targets


def needs_bounds(steps: Sequence[Augmentation]) -> bool:
    """Whether a step works on values from black to full brightness, and not on what the model sees."""
    return any(isinstance(step, RandAugment | TorchvisionStep) for step in steps)


def check_augment(
    steps: Sequence[Augmentation], input_shape: tuple[int, ...], *, vocab_size: int | None = None
) -> None:
    """Raises UsageError where a step does not fit the model's input: images for all but mixup, which takes any
    numbers but token ids (of which there are `vocab_size`); where images are smaller than a step needs; and for
    what torchvision refuses."""
    for index, step in enumerate(steps):
        field = f"data.augment.{index}"
        if isinstance(step, Mixup):
            if vocab_size is not None:
                raise UsageError(
                    f"{field} (mixup) mixes numbers, and token ids cannot be mixed", "leave it out"
                )
        elif len(input_shape) != 3:
            raise UsageError(
                f"{field} ({step.kind}) changes images, and the model's input has the shape {input_shape}",
                "leave it out" if vocab_size else "leave it out; of all steps, only mixup is for tables",
            )
        elif isinstance(step, Crop) and step.padding >= min(input_shape[1:]):
            raise UsageError(
                f"{field}.padding: {step.padding} pixels cannot be mirrored at the edge of images "
                f"of {input_shape[1]}×{input_shape[2]}",
                f"write at most {min(input_shape[1:]) - 1}",
            )
        elif isinstance(step, TorchvisionStep):
            check_transform(step, input_shape, field=field)


def _in_range(
    inputs: Tensor,
    step: RandAugment | TorchvisionStep,
    plan: Plan,
    index: int,
    rows: NDArray[np.int64],
    bounds: Bounds | None,
) -> Tensor:
    """The images after a step that takes values from 0 to 1."""
    low, high = bounds or (inputs.amin((1, 2, 3), keepdim=True), inputs.amax((1, 2, 3), keepdim=True))
    scale = torch.where(high > low, high - low, 1.0)
    images = (inputs - low) / scale
    if isinstance(step, RandAugment):
        images = rand_augment(images, step, uniform(plan.seed, plan.epoch, index, rows, 2 * step.num_ops))
    else:
        images = apply_transform(images, step, hashes(plan.seed, plan.epoch, index, rows, 1)[0])
    return images * scale + low
