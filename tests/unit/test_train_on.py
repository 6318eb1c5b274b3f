"""Training on several parts of the data as one, as a search does with its winner's settings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.preparing.prepare import prepare
from orchestrator.engine.attempt import start_attempt
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.loop import train
from orchestrator.engine.recipe import Recipe
from orchestrator.runs.folder import RunFolder
from orchestrator.spec import JobSpec, load_spec
from orchestrator.storage import Folder
from orchestrator.worker import build_recipe, checkpoint_store
from tests.unit.engine_case import case_data, case_spec
from tests.unit.prepared_case import reshard

BOTH = ("train", "val")


def rows_of(prepared: Prepared, *parts: str) -> tuple[np.ndarray[Any, Any], ...]:
    """Features, targets and source rows, in order."""
    part = prepared.part(*parts)
    whole = part.gather(np.arange(part.num_rows))
    return whole.features.numpy().copy(), whole.targets.numpy().copy(), part.source_rows().copy()


@pytest.mark.parametrize("kind", ["mapped", "streaming"])
@pytest.mark.parametrize("parts", [BOTH, ("val", "train"), ("train", "val", "test")])
def test_parts_as_one_have_the_rows_of_each(tmp_path: Path, kind: str, parts: Sequence[str]) -> None:
    spec = case_spec()
    made = case_data(spec, tmp_path)
    wanted = [rows_of(made, name) for name in parts]
    reshard(made, 40)
    iterate = case_spec(data={"iterate": {"kind": kind, "window": "40kB"}}).data.iterate
    prepared = Prepared.load(made.folder, iterate)
    assert prepared.streaming == (kind == "streaming")
    assert len(prepared.part(*parts).shards) > len(parts)
    for ours, theirs in zip(rows_of(prepared, *parts), zip(*wanted, strict=True), strict=True):
        assert np.array_equal(ours, np.concatenate(theirs))
    left = set(rows_of(prepared, "test")[2].tolist())
    assert left.isdisjoint(rows_of(prepared, *BOTH)[2].tolist())


def many_classes() -> dict[str, Any]:
    """Twelve classes of 10, 12, ... rows, so that the order of their names is not that of their numbers."""
    labels = np.repeat(np.arange(12), 10 + 2 * np.arange(12))
    return {"x": np.random.default_rng(0).normal(size=len(labels)), "y": labels}


def two_classes() -> dict[str, Any]:
    labels = np.arange(100) % 5 == 0
    return {"x": np.arange(100.0), "y": np.where(labels, "yes", "no")}


def many_labels() -> dict[str, Any]:
    """Label a in each second row, b in each third, c in each fifth."""
    each = {"a": 2, "b": 3, "c": 5}
    return {
        "x": np.arange(120.0),
        "y": [[label for label, step in each.items() if row % step == 0] for row in range(120)],
    }


def recipe_of(source: str, tmp_path: Path, train_on: Sequence[str]) -> tuple[Recipe, Prepared]:
    data = {
        "source": {"kind": "python", "function": f"tests.unit.test_train_on:{source}"},
        "target": "y",
        "split": {"train": 0.5, "val": 0.3, "test": 0.2},
    }
    loss = {"class_weights": "balanced"}
    spec: JobSpec = load_spec(
        {"name": "rows", "data": data, "model": {"name": "linear"}, "train": {"loss": loss}}
    ).spec
    prepared = prepare(spec.data, task=spec.train.task, seed=spec.seed, storage=Folder.at(tmp_path))
    return build_recipe(spec, prepared, train_on=train_on), prepared


@pytest.mark.parametrize("train_on", [("train",), BOTH])
def test_classes_are_balanced_over_all_that_is_trained_on(tmp_path: Path, train_on: Sequence[str]) -> None:
    recipe, prepared = recipe_of("many_classes", tmp_path, train_on)
    targets = rows_of(prepared, *train_on)[1]
    counts = np.bincount(targets, minlength=12)
    assert recipe.objective.weigh is not None
    found = recipe.objective.weigh(torch.arange(12)).numpy()
    np.testing.assert_allclose(found, len(targets) / (12 * counts), rtol=1e-6)


@pytest.mark.parametrize("source", ["two_classes", "many_labels"])
def test_positive_answers_are_balanced_over_all_that_is_trained_on(tmp_path: Path, source: str) -> None:
    """Their weight is negative rows / positive rows, as the loss itself shows for answers that are all positive."""
    losses = []
    for train_on in (BOTH, ("train",)):
        recipe, prepared = recipe_of(source, tmp_path, train_on)
        answers = rows_of(prepared, *train_on)[1].astype(float).reshape(-1, recipe.num_outputs)
        positive = answers.sum(axis=0)
        weights = (len(answers) - positive) / positive
        outputs = torch.linspace(-1, 1, recipe.num_outputs * 2).reshape(2, -1)
        targets = torch.ones(2, recipe.num_outputs)
        by_hand = weights * np.log1p(np.exp(-outputs.numpy()))
        loss = recipe.objective.loss(
            outputs.squeeze(-1) if recipe.num_outputs == 1 else outputs,
            targets.squeeze(-1).long() if recipe.num_outputs == 1 else targets,
        )
        losses.append(loss.numpy())
        np.testing.assert_allclose(losses[-1].reshape(2, -1).mean(axis=1), by_hand.mean(axis=1), rtol=1e-5)
    assert not np.array_equal(*losses), "the parts are not in the same proportion"


def test_nothing_is_validated_on_what_is_trained_on(tmp_path: Path) -> None:
    spec = case_spec(train={"max_epochs": 1, "global_batch_size": 7})
    prepared = case_data(spec, tmp_path)
    rows = prepared.manifest.rows
    recipe = build_recipe(spec, prepared, train_on=BOTH)
    assert recipe.val_part is None
    assert recipe.train_part.num_rows == rows["train"] + rows["val"]
    assert recipe.steps_per_epoch == -(-recipe.train_part.num_rows // 7)
    assert build_recipe(spec, prepared).val_part is not None

    link = WorkerLink()
    store = checkpoint_store(spec, RunFolder(Folder.at(tmp_path), "both", 1))
    link.attempt = store.begin_attempt()
    outcome = train(start_attempt(recipe, link, store, spec.checkpoint))
    assert outcome.samples == recipe.train_part.num_rows
    keys = {point.key for point in link.unacknowledged()}
    assert "train/loss" in keys
    assert [key for key in keys if key.startswith("val/")] == []
