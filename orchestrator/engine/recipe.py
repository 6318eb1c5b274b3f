"""What is trained, on what, and how; and where a run stands in it. Imports: torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

from orchestrator.data.augment.augment import Bounds, Plan, augment, mix_targets, needs_bounds, plan_augment
from orchestrator.data.features.pipeline import Pipeline
from orchestrator.data.prepared.order import EpochOrder, MappedOrder, StreamingOrder, num_batches
from orchestrator.data.prepared.part import Batch, Part
from orchestrator.engine.objective.objective import Objective
from orchestrator.spec.data import Augmentation
from orchestrator.spec.train import TrainSection


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the numbers."""

    train: TrainSection
    seed: int
    build: Callable[[], torch.nn.Module]
    train_part: Part
    val_part: Part | None
    pipeline: Pipeline
    objective: Objective
    metric_names: Sequence[str]
    num_outputs: int
    augmentations: Sequence[Augmentation] = ()

    @property
    def steps_per_epoch(self) -> int:
        return num_batches(self.train_part.num_rows, self.train.global_batch_size, self.train.drop_last)

    @property
    def total_steps(self) -> int:
        steps = self.steps_per_epoch * self.train.max_epochs
        return min(steps, self.train.max_steps) if self.train.max_steps else steps

    def order(self, epoch: int) -> EpochOrder:
        """The global batches of an epoch of the training part."""
        part, size = self.train_part, self.train.global_batch_size
        if part.window_bytes is None:
            return MappedOrder(part.num_rows, size, seed=self.seed, epoch=epoch)
        return StreamingOrder(
            [shard.rows for shard in part.shards],
            [shard.bytes for shard in part.shards],
            part.window_bytes,
            size,
            seed=self.seed,
            epoch=epoch,
        )


@dataclass
class Position:
    """Where the run stands: the next batch `batch` of `epoch` (both from 0), after `step` optimizer steps."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    evaluated: bool = False
    """Whether the epoch that ended last has been evaluated."""
    seconds: float = field(default=0.0, compare=False)
    """Spent in training, over all attempts."""
    skipped: int = 0
    """Steps left out because a loss or gradient was not finite."""


@dataclass(frozen=True)
class Placement:
    """Where and how tensors lie for the model: device, and the layout of images."""

    device: torch.device
    memory_format: torch.memory_format = torch.contiguous_format

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """On the device; the copy to a GPU goes on in the background."""
        if self.device.type == "cuda" and tensor.device.type == "cpu":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def lay_out(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.contiguous(memory_format=self.memory_format) if inputs.ndim == 4 else inputs


def training_batch(
    recipe: Recipe,
    placement: Placement,
    rows: npt.NDArray[np.int64],
    epoch: int,
    gathered: Batch | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets of these rows of the training part, transformed and augmented, on the device.

    `gathered` are the rows of their `augment_plan` as they are stored, where they were gathered ahead.
    """
    plan = augment_plan(recipe, rows, epoch)
    batch = recipe.train_part.gather(plan.rows) if gathered is None else gathered
    features = placement.put(batch.features)
    inputs = recipe.pipeline.transform(features)
    if recipe.augmentations:
        inputs = augment(inputs, plan, _bounds(recipe, features))
    return placement.lay_out(inputs), learned_targets(recipe, plan, placement.put(batch.targets))


def augment_plan(recipe: Recipe, rows: npt.NDArray[np.int64], epoch: int) -> Plan:
    """What is changed about these rows of the training part, and what rows must be read for it."""
    return plan_augment(
        recipe.augmentations,
        seed=recipe.seed,
        epoch=epoch,
        rows=rows,
        blocks=recipe.train_part.blocks,
        input_shape=recipe.pipeline.input_shape,
    )


def learned_targets(recipe: Recipe, plan: Plan, targets: torch.Tensor) -> torch.Tensor:
    """What is learned of the stored targets of `plan.rows`: transformed, and mixed where the samples are."""
    learned = recipe.pipeline.transform_targets(targets)
    return mix_targets(recipe.objective.soft_targets(learned), plan) if plan.mixes else learned


def _bounds(recipe: Recipe, features: torch.Tensor) -> Bounds | None:
    """What bytes of 0 and 255 become for the model, (1, C, 1, 1) each; None where pixels are no bytes."""
    if features.dtype != torch.uint8 or not needs_bounds(recipe.augmentations):
        return None
    ends = torch.stack([torch.zeros_like(features[0]), torch.full_like(features[0], 255)])
    low, high = recipe.pipeline.transform(ends)[:, None, :, :1, :1]
    return low, high
