"""What a worker is to do: from the spec and the prepared data to a recipe. Imports: data, models, engine."""

from __future__ import annotations

import functools
import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from orchestrator.checkpoints.retention import retention_of
from orchestrator.checkpoints.store import CheckpointStore
from orchestrator.data.augment.augment import check_augment
from orchestrator.data.prepared.manifest import Manifest
from orchestrator.data.prepared.prepared import Prepared
from orchestrator.engine.objective.metrics import DEFAULTS, check_metrics
from orchestrator.engine.objective.objective import build_objective
from orchestrator.engine.recipe import Recipe
from orchestrator.errors import UsageError
from orchestrator.models.build import build_model
from orchestrator.models.freeze import freeze
from orchestrator.models.init_from import load_initial
from orchestrator.runs.folder import RunFolder
from orchestrator.spec import JobSpec
from orchestrator.storage import Folder

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class WorkerTask:
    """All a worker needs to know; travels pickled. Relative search paths count from its own folder."""

    spec: JobSpec
    run: RunFolder
    prepared_uri: str
    search_paths: Sequence[str]
    gates: Collection[int] | None = None
    """Of a trial of a search: the epochs, from 1, after which it waits for a decision. None: it is a run."""
    initial: Folder | None = None
    """Where the weights of `init_from` lie, where that is not the run's own folder."""
    train_on: Sequence[str] = ("train",)
    """The parts of the data that are trained on. With `val` among them nothing is validated."""


def checkpoint_store(spec: JobSpec, run: RunFolder) -> CheckpointStore:
    """The checkpoints of a run, as its spec wants them kept."""
    return CheckpointStore(run.checkpoints, retention_of(spec.checkpoint))


def build_recipe(
    spec: JobSpec, prepared: Prepared, initial: Path | None = None, train_on: Sequence[str] = ("train",)
) -> Recipe:
    """What the spec asks to be trained on parts of the prepared data, from the weights in the file `initial`, if any.

    Raises UsageError where spec and data do not fit.
    """
    manifest = prepared.manifest
    names = DEFAULTS[manifest.task] if spec.train.metrics is None else spec.train.metrics
    check_metrics(manifest.task, names)
    check_augment(spec.data.augment, manifest.input_shape, vocab_size=manifest.vocab_size)
    counts = manifest.class_counts
    parts = [counts[name].values() for name in train_on] if counts else None
    recipe = Recipe(
        train=spec.train,
        seed=spec.seed,
        build=functools.partial(_build, spec, manifest, initial),
        train_part=prepared.part(*train_on),
        val_part=prepared.part("val") if manifest.rows["val"] and "val" not in train_on else None,
        pipeline=prepared.pipeline,
        objective=build_objective(
            manifest.task,
            spec.train.loss,
            num_outputs=manifest.num_outputs,
            class_counts=[sum(of_class) for of_class in zip(*parts, strict=True)] if parts else None,
            num_samples=sum(manifest.rows[name] for name in train_on),
        ),
        metric_names=names,
        num_outputs=manifest.num_outputs,
        augmentations=spec.data.augment,
    )
    recipe.objective.check_augment([step.kind for step in spec.data.augment])
    if recipe.total_steps == 0:
        raise UsageError(
            f"the training part has {manifest.rows['train']} rows, fewer than train.global_batch_size "
            f"({spec.train.global_batch_size}), and drop_last drops them all",
            "lower train.global_batch_size, or set train.drop_last: false",
        )
    return recipe


def _build(spec: JobSpec, manifest: Manifest, initial: Path | None) -> torch.nn.Module:
    """The network with its first weights, and what is frozen of it."""
    model = build_model(
        spec.model,
        manifest.input_shape,
        manifest.num_outputs,
        vocab_size=manifest.vocab_size,
        per_token=manifest.task == "language_modeling",
    )
    if initial is not None and spec.init_from is not None:
        for line in load_initial(model, initial, head=spec.init_from.head, strict=spec.init_from.strict):
            _log.info("init_from: %s", line)
    freeze(model, spec.model.freeze)
    return model
