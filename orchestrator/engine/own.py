"""The user's own train function: what it is given, and what keeps working around it. Imports: torch.

`train.function: module:object` names a function of one argument, a `TrainContext`, that is called on every
worker instead of our loop. Placement, data, checkpoints, metrics, stops, resume and export stay ours.
"""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from orchestrator.checkpoints.cadence import Cadence
from orchestrator.checkpoints.manifest import STATE, Manifest
from orchestrator.checkpoints.saver import Part, Saver
from orchestrator.checkpoints.store import CheckpointStore
from orchestrator.checkpoints.tensors import dump_state
from orchestrator.data.prepared.feed import Wanted, feed
from orchestrator.data.prepared.order import SequentialOrder, num_batches, rank_slice
from orchestrator.data.prepared.prepared import Prepared
from orchestrator.engine import collectives
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.recipe import Placement, Position, Recipe, training_batch
from orchestrator.engine.reporting import log_saves
from orchestrator.engine.saving import load_together
from orchestrator.engine.seed import seed_everything
from orchestrator.errors import UsageError, UserCodeError
from orchestrator.imports import load_object
from orchestrator.records import Progress
from orchestrator.spec import JobSpec

_log = logging.getLogger(__name__)


@dataclass
class TrainContext:
    """All that a train function of the user's own needs. One per worker; it runs on all of them at once."""

    spec: JobSpec
    link: WorkerLink
    prepared: Prepared
    recipe: Recipe
    store: CheckpointStore
    placement: Placement
    position: Position = field(default_factory=Position)
    """Where the run stood at the checkpoint that `restore` loaded; the function may read it, `save` sets it."""
    saved: Manifest | None = None
    _began_s: float = field(default_factory=time.perf_counter)

    @functools.cached_property
    def saver(self) -> Saver:
        link = self.link
        return Saver(
            self.store,
            rank=link.rank,
            world_size=link.world_size,
            attempt=link.attempt,
            asynchronous=self.spec.checkpoint.asynchronous,
            notice=link.notice,
        )

    @property
    def rank(self) -> int:
        return self.link.rank

    @property
    def world_size(self) -> int:
        return self.link.world_size

    @property
    def device(self) -> torch.device:
        return self.link.device

    @functools.cached_property
    def cadence(self) -> Cadence:
        section = self.spec.checkpoint
        return Cadence(section.every, section.mean_time_between_failures)

    def build_model(self) -> torch.nn.Module:
        """The spec's model on this worker's device, equal on all ranks."""
        seed_everything(self.recipe.seed)
        model = self.recipe.build().to(self.device)
        seed_everything(self.recipe.seed, self.rank + 1)
        return model

    def batches(self, epoch: int, first: int = 0) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This rank's share of each global batch of an epoch, from batch `first` on: inputs and targets on the
        device. A rank without a share of a short last batch gets one sample, so that all ranks take each step."""
        recipe, order = self.recipe, self.recipe.order(epoch)
        size = min(recipe.train.global_batch_size, recipe.train_part.num_rows)

        def wanted(batch: int) -> Wanted:
            rows = order.batch(batch)
            mine = rows[rank_slice(len(rows), self.rank, self.world_size)]
            return Wanted(rows, [mine if len(mine) else rows[:1]])

        with feed(
            recipe.train_part,
            wanted,
            first,
            recipe.steps_per_epoch,
            rows_per_item=rank_slice(size, 0, self.world_size).stop,
            order=order,
            pin=self.device.type == "cuda",
        ) as items:
            for item in items:
                self._beat("training")
                yield training_batch(recipe, self.placement, item.wanted.batches[0], epoch, item.batches[0])

    def validation(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """This rank's share of the validation part, in batches; empty where there is none."""
        part = self.recipe.val_part
        if part is None:
            return
        mine = rank_slice(part.num_rows, self.rank, self.world_size)
        size = self.recipe.train.global_batch_size
        order = SequentialOrder(mine.start, mine.stop, size, [shard.rows for shard in part.shards])
        with feed(
            part,
            lambda k: Wanted(rows := order.batch(k), [rows]),
            0,
            num_batches(mine.stop - mine.start, size),
            rows_per_item=min(size, part.num_rows),
            order=order,
            pin=self.device.type == "cuda",
        ) as items:
            for item in items:
                self._beat("evaluating")
                (batch,) = item.batches
                inputs = self.recipe.pipeline.transform(self.placement.put(batch.features))
                targets = self.recipe.pipeline.transform_targets(self.placement.put(batch.targets))
                yield self.placement.lay_out(inputs), targets

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Log metrics at a step; only rank 0's are kept. Never waits."""
        self._beat("training", step)
        self.link.log(metrics, step)

    def progress(self, *, epoch: int, step: int, train_loss: float | None = None) -> None:
        """Show where the run stands."""
        train, total = self.recipe.train, self.recipe.total_steps
        self._beat("training", step)
        self.link.progress(
            Progress(
                epoch + 1,
                train.max_epochs,
                step,
                total,
                train_loss=train_loss,
                # What the function does with its time is not known here; what it does not wait for counts as steps.
                step_seconds=time.perf_counter() - self._began_s - self.saver.stall_s,
                stall_s=self.saver.stall_s,
                saved_step=self.saver.saved_step,
                started_step=self.saved.step if self.saved else 0,
            )
        )

    def should_stop(self) -> bool:
        """Whether to save and return now (a stop was asked for). Collective: call it on all ranks alike."""
        self._beat("training")
        return bool(collectives.broadcast_object(self.link.stop_requested()))

    def should_save(self) -> bool:
        """Whether a save is due by the spec's `checkpoint.every`, or the driver asks for one. Collective: call it on
        all ranks alike."""
        due = self.link.wish() == "save" or self.cadence.due(time.monotonic())
        return bool(collectives.broadcast_object(due))

    def save(
        self, owners: Mapping[str, Any], *, step: int, epoch: int, metrics: Mapping[str, float] | None = None
    ) -> None:
        """Save a checkpoint: a dict of states (`{"model": model.state_dict(), …}`), taken from rank 0.

        `metrics` (as `val/loss`) decide which one is the best. Collective. What tensors and plain Python values
        hold can be read again, no other objects.
        """
        self.position = Position(epoch=epoch, step=step, evaluated=bool(metrics))
        self._beat("saving", step)
        parts = [Part(STATE, dict(owners), dump_state)] if self.rank == 0 else []
        self.saver.save(parts, step=step, epoch=epoch, metrics=metrics or {})
        collectives.barrier()
        self.cadence.saved(time.monotonic())
        log_saves(self.link, self.saver, self.cadence)

    def _beat(self, phase: Literal["training", "evaluating", "saving"], step: int | None = None) -> None:
        """Each call of the function's into this context shows that it moves."""
        self.link.beat(phase, self.link.pulse.step if step is None else step)

    def restore(self) -> dict[str, Any] | None:
        """The states of the newest checkpoint, with `position` set to it; None where the run is new. Collective."""
        newest = load_together(self.store)
        if newest is None:
            return None
        self.saved, owners = newest
        self.saver.saved_step = self.saved.step
        self.position = Position(epoch=self.saved.epoch, step=self.saved.step)
        return owners


def run_own(context: TrainContext) -> torch.nn.Module | None:
    """Call the user's function on this worker; the model that it returns, to be tested and exported, or None.

    Raises UsageError where it cannot be called, UserCodeError where it returns something else. What it raises
    itself goes through.
    """
    path = context.recipe.train.function
    assert path is not None
    function: Callable[[TrainContext], Any] = load_object(path)
    if not callable(function):
        raise UsageError(f"train.function: '{path}' is a {type(function).__name__}, which cannot be called")
    try:
        model = function(context)
        context.link.beat("saving", context.position.step)
        context.saver.finish()
        collectives.barrier()  # only now the last checkpoint is there for all
        log_saves(context.link, context.saver, context.cadence)
    finally:
        context.saver.close()
    if isinstance(model, torch.nn.parallel.DistributedDataParallel):
        model = model.module
    if model is not None and not isinstance(model, torch.nn.Module):
        raise UserCodeError(
            f"train.function: '{path}' returned a {type(model).__name__}",
            "return the trained torch.nn.Module, or nothing",
        )
    return model
