"""Training on streamed data: the order is another one, all else is as with mapped data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from orchestrator.data.prepared import feed as feed_module
from orchestrator.engine.attempt import Attempt
from orchestrator.engine.loop import train, validate
from orchestrator.engine.step import training_feed
from orchestrator.spec import JobSpec
from tests.unit.engine_case import case_attempt, case_data, case_spec
from tests.unit.prepared_case import reshard
from tests.unit.test_engine_resume import StopAfter
from tests.unit.test_engine_trouble import Keeping

ROWS_PER_SHARD = 40
STREAMING = {"kind": "streaming", "window": "40kB"}
"""A shard takes up about 11 kB: windows of three."""


def streaming_spec(**sections: Any) -> JobSpec:
    return case_spec(data={"iterate": STREAMING}, **sections)


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    """The case's data in 14 shards of training rows."""
    reshard(case_data(case_spec(), tmp_path), ROWS_PER_SHARD)
    return tmp_path


def finished(
    spec: JobSpec, storage: Path, link: Keeping | StopAfter | None = None, run: str = "case-1"
) -> Attempt:
    attempt = case_attempt(spec, storage, link, run)
    if isinstance(link, StopAfter):
        link.attempt_state = attempt
    train(attempt)
    return attempt


def test_all_rows_are_trained_on_in_the_streamed_order(
    storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feed_module, "STREAMED_CHUNK_BYTES", 1)
    attempt = case_attempt(streaming_spec(), storage)
    part = attempt.recipe.train_part
    assert part.streaming
    assert len(part.shards) == 14
    order = attempt.recipe.order(1)
    seen, most = [], 0
    with training_feed(attempt, attempt.recipe.order(1), 0) as steps:
        for k, fed in enumerate(steps):
            assert np.array_equal(fed.wanted.rows, order.batch(k))
            assert torch.equal(fed.batches[0].features, part.gather(fed.wanted.rows).features)
            seen += fed.wanted.rows.tolist()
            most = max(most, sum(part.shards[index].bytes for index in part.open_shards()))
    assert sorted(seen) == list(range(part.num_rows))
    assert most <= 80_000
    assert part.open_shards() == []


def test_validation_is_that_of_mapped_data(storage: Path) -> None:
    mapped, streamed = case_attempt(case_spec(), storage), case_attempt(streaming_spec(), storage)
    for attempt in (mapped, streamed):
        validate(attempt)
    assert mapped.recipe.val_part is not None
    assert not mapped.recipe.val_part.streaming
    assert streamed.metrics == mapped.metrics
    assert streamed.recipe.val_part is not None
    assert streamed.recipe.val_part.open_shards() == []


@pytest.mark.parametrize("stop_after", [1, 5, 11, 17])
def test_resumed_equals_uninterrupted(storage: Path, stop_after: int) -> None:
    torch.set_num_threads(1)
    spec = streaming_spec(model={"name": "mlp", "args": {"hidden": [16], "dropout": 0.2}})
    straight = finished(spec, storage, run="straight-1")
    first = finished(spec, storage, StopAfter(stop_after))
    assert stop_after <= first.position.step < straight.position.step
    second = finished(spec, storage)
    assert second.position == straight.position
    assert second.metrics == straight.metrics
    for key, value in straight.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[key], value), key


def test_one_shard_and_many_give_the_same_bits_when_mapped(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    spec = case_spec()
    one, many = tmp_path / "one", tmp_path / "many"
    case_data(spec, one)
    reshard(case_data(spec, many), ROWS_PER_SHARD)
    first, second = finished(spec, one), finished(spec, many)
    assert first.metrics == second.metrics
    for key, value in first.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[key], value), key


def test_losses_with_weighed_samples_and_microbatches(storage: Path) -> None:
    """The targets of the global batch come with the feed."""
    section = {"loss": {"name": "cross_entropy", "class_weights": "balanced"}, "max_epochs": 1}
    losses = []
    for size in (50, 8):
        link = Keeping()
        finished(streaming_spec(train={**section, "microbatch_size": size}), storage, link, f"micro-{size}")
        losses.append([point.value for point in link.points if point.key == "train/loss"])
    assert len(losses[0]) == 11
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


def test_a_shard_lost_while_training_ends_the_run_with_its_name(storage: Path) -> None:
    attempt = case_attempt(streaming_spec(), storage)
    folder = case_data(streaming_spec(), storage).folder
    (folder / attempt.recipe.train_part.shards[9].file).unlink()
    with pytest.raises(Exception, match=r"train-00009\.arrow is missing"):
        train(attempt)
