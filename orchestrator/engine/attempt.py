"""The one way into training: build, warm up, then load all state.

So a fresh process and a resumed one start from the same place. The warm-up lets DDP settle its gradient
buckets, which it rebuilds after the first iteration: without it, three or more ranks reduce in another order
after a resume and the bits differ. Imports: torch.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from orchestrator.data.order import num_batches
from orchestrator.data.pipeline import Pipeline
from orchestrator.data.prepared import Part
from orchestrator.engine import collectives
from orchestrator.engine.checkpoint import CheckpointStore
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.objective import Objective
from orchestrator.engine.optim import build_optimizer
from orchestrator.engine.schedule import Scheduler
from orchestrator.engine.seed import rng_state, seed_everything, set_rng_state
from orchestrator.engine.stopping import EarlyStopper
from orchestrator.engine.window import StepWindow
from orchestrator.errors import OrchestratorError, UserCodeError
from orchestrator.records import Point
from orchestrator.spec.cluster import CheckpointSection
from orchestrator.spec.train import TrainSection

_log = logging.getLogger(__name__)
_WARM_UP_PASSES = 2


@dataclass(frozen=True)
class Recipe:
    """What is trained, on what, and how: everything that decides the numbers."""

    train: TrainSection
    seed: int
    build: Callable[[], torch.nn.Module]
    train_part: Part
    val_part: Part | None
    pipeline: Pipeline
    objective: Objective
    metric_names: Sequence[str]
    num_outputs: int

    @property
    def steps_per_epoch(self) -> int:
        return num_batches(self.train_part.num_rows, self.train.global_batch_size, self.train.drop_last)

    @property
    def total_steps(self) -> int:
        steps = self.steps_per_epoch * self.train.max_epochs
        return min(steps, self.train.max_steps) if self.train.max_steps else steps


@dataclass
class Position:
    """Where the run stands: the next batch `batch` of `epoch` (both from 0), after `step` optimizer steps."""

    epoch: int = 0
    batch: int = 0
    step: int = 0
    evaluated: bool = False
    """Whether the epoch that ended last has been evaluated."""


@dataclass
class Attempt:
    """One life of a worker's training state, from its start to success, stop or failure."""

    recipe: Recipe
    link: WorkerLink
    store: CheckpointStore
    saving: CheckpointSection
    model: torch.nn.Module
    """The bare network; `parallel` is what the loop calls."""
    parallel: torch.nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Scheduler
    window: StepWindow
    stopper: EarlyStopper | None
    position: Position = field(default_factory=Position)
    metrics: dict[str, float] = field(default_factory=dict)
    """Those of the validation that ended the newest epoch; empty where it had none."""
    stopped_early: bool = False
    resumed_from: str | None = None

    def save(self) -> None:
        """Commit a checkpoint of now. Collective: every rank gives its random state, rank 0 writes."""
        rng = collectives.gather_objects(rng_state(self.link.device))
        if self.link.rank == 0:
            owners = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(),
                "stopper": self.stopper.state_dict() if self.stopper else None,
                "position": vars(self.position).copy(),
                "metrics": dict(self.metrics),
                "stopped_early": self.stopped_early,
                "rng": rng,
                "points": [
                    [point.key, point.value, point.step, point.timestamp_ms]
                    for point in self.link.unacknowledged()
                ],
            }
            name = self.store.save(
                owners,
                step=self.position.step,
                epoch=self.position.epoch,
                attempt=self.link.attempt,
                # A score belongs to the weights it was measured on, not to later ones.
                metrics=self.metrics if self.position.evaluated else {},
            )
            _log.info("saved checkpoint %s", name)
        collectives.barrier()

    def load(self, owners: dict[str, Any]) -> None:
        """Put all state back. A changed world size gives ranks beyond the saved ones a fresh random state."""
        self.model.load_state_dict(owners["model"])
        self.optimizer.load_state_dict(owners["optimizer"])
        self.scheduler.load_state_dict(owners["scheduler"])
        if self.stopper and owners["stopper"]:
            self.stopper.load_state_dict(owners["stopper"])
        self.position = Position(**owners["position"])
        self.metrics = owners["metrics"]
        self.stopped_early = owners["stopped_early"]
        if self.link.rank < len(owners["rng"]):
            set_rng_state(owners["rng"][self.link.rank], self.link.device)
        self.link.log_points([Point(*point) for point in owners["points"]])


def start_attempt(
    recipe: Recipe, link: WorkerLink, store: CheckpointStore, saving: CheckpointSection
) -> Attempt:
    """Build everything, warm up, and load the newest whole checkpoint where there is one. Collective.

    Raises UsageError where the model's outputs do not fit the task, UserCodeError where user code raises,
    CheckpointError where all checkpoints are damaged.
    """
    train = recipe.train
    seed_everything(recipe.seed)
    model = recipe.build().to(link.device)
    _try_out(recipe, model, link.device)
    parallel: torch.nn.Module = model
    if link.world_size > 1:
        parallel = DistributedDataParallel(
            model,
            device_ids=[link.device] if link.device.type == "cuda" else None,
            gradient_as_bucket_view=True,
        )
        _warm_up(recipe, parallel, link)
    optimizer = build_optimizer(train.optimizer, model, link.device)
    attempt = Attempt(
        recipe=recipe,
        link=link,
        store=store,
        saving=saving,
        model=model,
        parallel=parallel,
        optimizer=optimizer,
        scheduler=Scheduler(
            train.schedule,
            optimizer,
            total_steps=recipe.total_steps,
            steps_per_epoch=recipe.steps_per_epoch,
        ),
        window=StepWindow(link.device),
        stopper=EarlyStopper(
            train.early_stopping.metric,
            train.early_stopping.mode,
            train.early_stopping.patience,
            train.early_stopping.min_delta,
        )
        if train.early_stopping
        else None,
    )
    seed_everything(recipe.seed, link.rank + 1)
    # Rank 0 chooses, so that all ranks load the same one even if a file goes bad between two reads.
    newest = store.load_newest() if link.rank == 0 else None
    name = collectives.broadcast_object(newest[0].name if newest else None)
    if name is not None:
        if newest is None:
            manifest = next(found for found in store.manifests() if found.name == name)
            newest = (manifest, store.load(manifest))
        attempt.load(newest[1])
        attempt.resumed_from = name
        _log.info("resumed from checkpoint %s", name)
    return attempt


def _try_out(recipe: Recipe, model: torch.nn.Module, device: torch.device) -> None:
    """One small forward pass, before any time is spent: do the outputs fit the task?"""
    num_samples = min(2, recipe.train_part.num_rows)
    batch = recipe.train_part.gather(np.arange(num_samples))
    model.eval()
    try:
        with torch.no_grad():
            outputs = model(recipe.pipeline.transform(batch.features.to(device)))
    except OrchestratorError:
        raise
    except Exception as error:
        shape = tuple(recipe.pipeline.transform(batch.features).shape)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise UserCodeError(
            f"the model raised {type(error).__name__} on an input of shape {shape}: {error}",
            f"see {frame.filename}:{frame.lineno}; where it is the shape, change data.image.size, data.features "
            "or model.args",
        ) from error
    model.train()
    if not isinstance(outputs, torch.Tensor):
        raise UserCodeError(f"the model returned {type(outputs).__name__}, not a tensor of outputs")
    recipe.objective.check_outputs(outputs, num_samples=num_samples, num_outputs=recipe.num_outputs)


def _warm_up(recipe: Recipe, parallel: torch.nn.Module, link: WorkerLink) -> None:
    """Forward and backward on a little real data; buffers (batch statistics) are put back afterwards."""
    buffers = {name: buffer.detach().clone() for name, buffer in parallel.named_buffers()}
    batch = recipe.train_part.gather(np.arange(min(2, recipe.train_part.num_rows)))
    features = recipe.pipeline.transform(batch.features.to(link.device))
    targets = recipe.pipeline.transform_targets(batch.targets.to(link.device))
    for _ in range(_WARM_UP_PASSES):
        outputs = recipe.objective.shape_outputs(parallel(features))
        (recipe.objective.losses(outputs, targets).sum() * 0.0).backward()
    parallel.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, buffer in parallel.named_buffers():
            buffer.copy_(buffers[name])
