"""The one way into training: build, warm up, then load all state.

So a fresh process and a resumed one start from the same place. Imports: torch.
"""

from __future__ import annotations

import functools
import logging
import math
import time
from dataclasses import dataclass, field
from typing import Any

import torch

from orchestrator.checkpoints.cadence import Cadence
from orchestrator.checkpoints.manifest import STATE, Manifest, rank_file
from orchestrator.checkpoints.saver import Part, Saver
from orchestrator.checkpoints.sharded import dump_rows
from orchestrator.checkpoints.store import CheckpointStore
from orchestrator.checkpoints.tensors import dump_state, parse_state
from orchestrator.engine import collectives
from orchestrator.engine.build import fresh_model, sharded_models, speed_up
from orchestrator.engine.device.clock import StepClock
from orchestrator.engine.device.flops import peak_flops
from orchestrator.engine.device.precision import Precision, resolve_precision
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.microbatch import microbatch_limit, note_microbatch
from orchestrator.engine.optim.ema import Ema
from orchestrator.engine.optim.optimizer import build_optimizer
from orchestrator.engine.optim.schedule import Scheduler
from orchestrator.engine.optim.stopping import EarlyStopper
from orchestrator.engine.parallel.compression import (
    TrafficMeter,
    compression_state,
    load_compression_state,
)
from orchestrator.engine.parallel.shards import take_apart
from orchestrator.engine.parallel.state import (
    load_ema_state,
    load_model_state,
    load_optimizer_state,
    saved_state,
)
from orchestrator.engine.parallel.wrap import bare, parallelize, sharded
from orchestrator.engine.recipe import Placement, Position, Recipe
from orchestrator.engine.saving import load_together
from orchestrator.engine.seed import rng_state, seed_everything, set_rng_state
from orchestrator.engine.trouble import StragglerWatch
from orchestrator.engine.warmup import check_targets, probe_microbatch, settle, try_out
from orchestrator.engine.window import StepWindow
from orchestrator.records import Point
from orchestrator.spec.checkpoint import CheckpointSection
from orchestrator.spec.train import TrainSection
from orchestrator.storage import Folder

_log = logging.getLogger(__name__)


@dataclass
class Attempt:
    """One life of a worker's training state, from its start to success, stop or failure."""

    recipe: Recipe
    link: WorkerLink
    store: CheckpointStore
    saver: Saver
    cadence: Cadence
    saving: CheckpointSection
    model: torch.nn.Module
    """The network by its own names; `parallel` is what a step calls."""
    parallel: torch.nn.Module
    placement: Placement
    precision: Precision
    microbatch_size: int
    optimizer: torch.optim.Optimizer
    schedule: Scheduler
    scaler: torch.amp.GradScaler | None
    ema: Ema | None
    window: StepWindow
    clock: StepClock
    meter: TrafficMeter
    stopper: EarlyStopper | None
    stragglers: StragglerWatch
    evidence: Folder | None
    """Where a batch that led to bad numbers is kept."""
    sample_flops: float = 0.0
    """Of one sample's training step; 0 where it is not counted."""
    peak_flops: float | None = None
    position: Position = field(default_factory=Position)
    metrics: dict[str, float] = field(default_factory=dict)
    """Those of the validation that ended the newest epoch; empty where it had none."""
    train_loss: float = math.nan
    """That of the newest step."""
    stopped_early: bool = False
    out_of_time: bool = False
    resumed_from: str | None = None
    step_seconds: float = 0.0
    """Spent in optimizer steps, in this attempt."""
    started_step: int = 0
    _reserved: bool = False

    @property
    def trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @property
    def lr(self) -> float:
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def averages(self) -> bool:
        """Whether a step ends with waiting for the other workers' gradients (under FSDP it is spread out)."""
        return self.parallel is not self.model

    @property
    def watches_losses(self) -> bool:
        """Look at each loss at once where that is free; on a GPU it would wait for the device."""
        return self.link.device.type == "cpu"

    def save(self) -> None:
        """Begin a checkpoint of now, which is written while training goes on. Collective: every rank gives its
        part. Raises CheckpointError where too many could not be written."""
        began_s = time.perf_counter()
        self.saver.wait()
        shared, own = self._parts()
        told = collectives.gather_objects((rng_state(self.link.device), bool(own)))
        shared["rng"] = [rng for rng, _ in told]
        self.saver.save(
            [Part(STATE, shared, dump_state), *own] if self.link.rank == 0 else own,
            step=self.position.step,
            epoch=self.position.epoch,
            # A score belongs to the weights it was measured on, not to later ones.
            metrics=self.metrics if self.position.evaluated else {},
            others=[rank for rank, (_, has_own) in enumerate(told) if has_own and rank > 0],
            began_s=began_s,
        )
        self.cadence.saved(time.monotonic())

    def reserve(self) -> None:
        """Get the memory for copies of the state, once there is an optimizer's state: at the first call."""
        if not self._reserved:
            shared, own = self._parts()
            self.saver.reserve([Part(STATE, shared, dump_state), *own] if self.link.rank == 0 else own)
        self._reserved = True

    def _parts(self) -> tuple[dict[str, Any], list[Part]]:
        """What all ranks share, but for their random states; and what this rank alone has: its shards, and what its
        gradients lost in compression. Nothing is copied."""
        state: dict[str, Any] = saved_state(self.parallel, self.optimizer, self.ema)
        own = []
        if sharded(self.parallel):
            state, shards = take_apart(state)
            rows = {name: shard.rows for name, shard in shards.items()}
            if rows:
                own.append(Part(rank_file(self.link.rank, "safetensors"), rows, dump_rows(shards)))
        memory = compression_state(self.parallel)
        if memory is not None:
            own.append(Part(rank_file(self.link.rank), {"compression": memory}, dump_state))
        shared = {
            **state,
            "scheduler": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler else None,
            "stopper": self.stopper.state_dict() if self.stopper else None,
            "position": vars(self.position).copy(),
            "metrics": dict(self.metrics),
            "train_loss": self.train_loss,
            "stopped_early": self.stopped_early,
            "points": [
                [point.key, point.value, point.step, point.timestamp_ms]
                for point in self.link.unacknowledged()
            ],
        }
        return shared, own

    def load(self, manifest: Manifest, owners: dict[str, Any]) -> None:
        """Put all state back. A changed world size gives ranks beyond the saved ones a fresh random state."""
        read = self.store.rows(manifest)
        load_model_state(self.parallel, owners["model"], read)
        load_optimizer_state(self.parallel, self.optimizer, owners["optimizer"], read)
        self.schedule.load_state_dict(owners["scheduler"])
        if self.scaler and owners.get("scaler"):
            self.scaler.load_state_dict(owners["scaler"])
        if self.ema:
            if owners.get("ema"):
                load_ema_state(self.ema, owners["ema"], read)
            else:
                self.ema.reset()
        if self.stopper and owners["stopper"]:
            self.stopper.load_state_dict(owners["stopper"])
        self.position = Position(**owners["position"])
        self.metrics = owners["metrics"]
        self.train_loss = owners.get("train_loss", math.nan)
        self.stopped_early = owners["stopped_early"]
        if self.link.rank < len(owners["rng"]):
            set_rng_state(owners["rng"][self.link.rank], self.link.device)
        self._load_compression(manifest)
        self.link.log_points([Point(*point) for point in owners["points"]])

    def _load_compression(self, manifest: Manifest) -> None:
        """PowerSGD's memory of errors, each rank its own: what compression took from that rank's gradients and the
        next steps give back. For another number of workers the shares of the batch are others, and so are the
        errors that would be left: it begins with exact steps again, and one step's errors are lost."""
        file = rank_file(self.link.rank)
        if compression_state(self.parallel) is None:
            return
        if manifest.world_size == self.link.world_size and file in manifest.files:
            saved = parse_state(self.store.read(manifest, file))
            load_compression_state(self.parallel, saved["compression"])
        else:
            self.link.notice(
                f"train.parallel.gradient_compression: {manifest.world_size} workers saved the checkpoint and "
                f"{self.link.world_size} go on, so PowerSGD forgets its errors and begins with exact steps"
            )


def start_attempt(
    recipe: Recipe,
    link: WorkerLink,
    store: CheckpointStore,
    saving: CheckpointSection,
    evidence: Folder | None = None,
) -> Attempt:
    """Build everything, warm up, and load the newest whole checkpoint where there is one. Collective.

    Raises UsageError where the model's outputs do not fit the task or a setting not the device, UserCodeError
    where user code raises, OutOfMemory where one sample does not fit, CheckpointError where all checkpoints are
    damaged.
    """
    train = recipe.train
    _set_up_torch(train, link.device)
    precision = resolve_precision(train.precision, link.device)
    check_targets(recipe, link.rank, link.world_size)
    model, placement = fresh_model(recipe, link)
    peak = peak_flops(link.device, precision)
    flops = try_out(recipe, model, placement, count=peak is not None)
    speed_up(recipe, model, placement, link)
    limit = collectives.broadcast_object(microbatch_limit(store.folder) if link.rank == 0 else None)
    clock, meter = StepClock(link.device), TrafficMeter()
    if train.parallel.strategy == "fsdp" and link.world_size > 1:
        models = sharded_models([model], recipe, link, precision, meter)
        del model  # one that ran out of memory is to go
        size, parallel = probe_microbatch(recipe, models, placement, precision, link, limit, meter)
    else:
        size, model = probe_microbatch(recipe, lambda: model, placement, precision, link, limit)
        parallel = parallelize(model, train.parallel, link, precision, meter)
    if link.rank == 0:
        note_microbatch(store.folder, size)
    model = bare(parallel)
    if link.world_size > 1:
        settle(recipe, parallel, placement, precision, model, size)
        meter.on_last_bucket = functools.partial(clock.lap, "backward")
    meter.take()
    optimizer = build_optimizer(train.optimizer, model, link.device)
    attempt = Attempt(
        recipe=recipe,
        link=link,
        store=store,
        saver=Saver(
            store,
            rank=link.rank,
            world_size=link.world_size,
            attempt=link.attempt,
            asynchronous=saving.asynchronous,
            notice=link.notice,
        ),
        cadence=Cadence(saving.every, saving.mean_time_between_failures),
        saving=saving,
        model=model,
        parallel=parallel,
        placement=placement,
        precision=precision,
        microbatch_size=size,
        optimizer=optimizer,
        schedule=Scheduler(
            train.schedule,
            optimizer,
            total_steps=recipe.total_steps,
            steps_per_epoch=recipe.steps_per_epoch,
        ),
        scaler=precision.scaler(),
        ema=Ema(model, train.ema.decay) if train.ema else None,
        window=StepWindow(link.device),
        clock=clock,
        meter=meter,
        stopper=EarlyStopper(
            train.early_stopping.metric,
            train.early_stopping.mode,
            train.early_stopping.patience,
            train.early_stopping.min_delta,
        )
        if train.early_stopping
        else None,
        stragglers=StragglerWatch(),
        evidence=evidence,
        sample_flops=3 * flops,  # the backward pass takes twice the forward's
        peak_flops=peak,
    )
    seed_everything(recipe.seed, link.rank + 1)
    newest = load_together(store, link.notice)
    if newest is not None:
        attempt.load(*newest)
        attempt.resumed_from = newest[0].name
        attempt.started_step = attempt.saver.saved_step = newest[0].step
        _log.info("resumed from checkpoint %s", newest[0].name)
    return attempt


def _set_up_torch(train: TrainSection, device: torch.device) -> None:
    torch.use_deterministic_algorithms(train.deterministic)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = not train.deterministic
        torch.cuda.reset_peak_memory_stats(device)
