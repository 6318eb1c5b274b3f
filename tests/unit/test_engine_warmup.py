"""The microbatch is found by trying, a later lack of memory halves it, and the numbers do not change."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.engine.causes import is_out_of_memory
from orchestrator.engine.loop import train
from orchestrator.errors import OutOfMemory
from orchestrator.runs.folder import RunFolder
from orchestrator.storage import Folder
from orchestrator.worker import WorkerTask, train_worker
from tests.unit.engine_case import SPEC, case_attempt, case_data, case_spec
from tests.unit.test_engine_trouble import Keeping

NETS = '''
import weakref

import torch
from torch import nn

class Small(nn.Module):
    """Runs out of memory for more than `fits` samples, from the training pass number `since` on."""

    def __init__(self, input_shape, num_outputs, fits, since=0):
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, num_outputs))
        self.fits, self.since, self.passes = fits, since, 0

    def forward(self, images):
        self.passes += self.training and torch.is_grad_enabled()
        if self.training and len(images) > self.fits and self.passes > self.since:
            raise torch.OutOfMemoryError(f"cannot hold {len(images)}")
        return self.layers(images)

class Mark:
    """Lives as long as the frame of a pass that made it."""

class Counting(Small):
    """Counts what is left of earlier tries."""

    def __init__(self, input_shape, num_outputs, fits):
        super().__init__(input_shape, num_outputs, fits)
        self.marks, self.left = [], []

    def forward(self, images):
        mark = Mark()
        self.left.append(sum(one() is not None for one in self.marks))
        self.marks.append(weakref.ref(mark))
        try:
            return super().forward(images)
        except torch.OutOfMemoryError as error:
            raise torch.OutOfMemoryError("again") from error
'''


@pytest.fixture(autouse=True)
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memory_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("memory_nets", None)


def model(**arguments: int) -> dict[str, Any]:
    return {"name": "memory_nets:Small", "args": arguments}


def losses(link: Keeping) -> list[float]:
    return [point.value for point in link.points if point.key == "train/loss"]


def test_the_microbatch_is_halved_until_it_fits_and_the_losses_stay(tmp_path: Path) -> None:
    large, small = Keeping(), Keeping()
    whole = case_attempt(case_spec(model=model(fits=50)), tmp_path, large, run="whole-1")
    halved = case_attempt(case_spec(model=model(fits=13)), tmp_path, small, run="halved-1")
    assert (whole.microbatch_size, halved.microbatch_size) == (50, 12)
    assert any("it computes 12 and accumulates" in text for text in small.notices)
    assert not large.notices
    train(whole)
    train(halved)
    assert losses(small) == pytest.approx(losses(large), rel=1e-4)


def test_a_try_that_failed_holds_on_to_nothing(tmp_path: Path) -> None:
    """What its tensors take would not be there for the next one, which is half as large."""
    counting = {"name": "memory_nets:Counting", "args": {"fits": 13}}
    attempt = case_attempt(case_spec(model=counting), tmp_path)
    left = attempt.model.left
    assert attempt.microbatch_size == 12
    assert isinstance(left, list)
    assert len(left) >= 3
    assert not any(left)


def test_where_one_sample_does_not_fit_the_error_says_what_would(tmp_path: Path) -> None:
    with pytest.raises(OutOfMemory) as caught:
        case_attempt(case_spec(model=model(fits=0)), tmp_path)
    for word in ("activation_checkpointing", "fsdp", "precision"):
        assert word in caught.value.mend
    assert not caught.value.retry


def test_a_later_lack_of_memory_halves_the_next_attempt(tmp_path: Path) -> None:
    """The step after 10 passes fails; the next attempt of the same run goes on with half, from the checkpoint."""
    spec = case_spec(model=model(fits=25, since=10), checkpoint={"every_n_steps": 4})
    run = RunFolder(Folder.at(tmp_path), "case", 1)
    prepared = case_data(spec, tmp_path)
    task = WorkerTask(spec, run, Folder.at(prepared.folder).uri, [str(tmp_path)])
    first = Keeping()
    with pytest.raises(torch.OutOfMemoryError) as caught:
        train_worker(task, first, keep_prints=False)
    assert is_out_of_memory(caught.value)
    second = Keeping()
    assert train_worker(task, second, keep_prints=False) == "completed"
    # 11 steps an epoch, 3 epochs; the probe was the first of the ten passes.
    steps = [point.step for point in second.points if point.key == "train/loss"]
    assert steps == list(range(9, 34))
    reference = Keeping()
    train(case_attempt(case_spec(model=model(fits=50)), tmp_path, reference, run="reference-1"))
    assert losses(second) == pytest.approx(losses(reference)[8:], rel=1e-4)


def test_the_probe_leaves_no_trace(tmp_path: Path) -> None:
    """Batch statistics, gradients and random numbers are as if nothing had been tried."""
    spec = case_spec(model={"name": "mlp", "args": {"hidden": [16], "dropout": 0.3}})
    attempt = case_attempt(spec, tmp_path)
    assert all(parameter.grad is None for parameter in attempt.model.parameters())
    assert SPEC["seed"] == 3
    drawn = torch.rand(3)
    again = case_attempt(case_spec(train={"microbatch_size": 5}), tmp_path, run="again-1")
    assert again.microbatch_size == 5
    assert torch.equal(torch.rand(3), drawn)
