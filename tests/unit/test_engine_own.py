"""A train function of the user's own: the same data, checkpoints and export as our loop."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from orchestrator.errors import UserCodeError
from orchestrator.export.bundle import load_bundle
from orchestrator.records import Wish
from orchestrator.runs.folder import RunFolder
from orchestrator.storage import Folder
from orchestrator.worker import WorkerTask, train_worker
from tests.unit.engine_case import case_data, case_spec
from tests.unit.test_engine_trouble import Keeping

CODE = """
import torch
import torch.nn.functional as F

def fit(context):
    model = context.build_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    saved = context.restore()
    epoch = 0
    if saved:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        epoch = context.position.epoch
    step = context.position.step
    while epoch < context.spec.train.max_epochs:
        for inputs, targets in context.batches(epoch):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            step += 1
            context.log({"train/loss": float(loss.detach())}, step)
        epoch += 1
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in context.validation())
        states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        context.save(states, step=step, epoch=epoch, metrics={"val/loss": -right})
        if context.should_stop():
            return model
    return model

def wrong(context):
    return 7
"""


class Stops(Keeping):
    """Asks for a stop once so many steps were logged."""

    def __init__(self, after: int | None) -> None:
        super().__init__()
        self._after = after

    def stop_requested(self) -> bool:
        return self._after is not None and len(self.points) >= self._after


def run(folder: Path, number: int, stop_after: int | None = None, function: str = "fit") -> tuple[str, Stops]:
    spec = case_spec(train={"function": f"own_loop:{function}"})
    prepared = case_data(spec, folder)
    task = WorkerTask(
        spec, RunFolder(Folder.at(folder), "own", number), Folder.at(prepared.folder).uri, [str(folder)]
    )
    link = Stops(stop_after)
    return train_worker(task, link, keep_prints=False), link


def losses(link: Stops) -> list[float]:
    return [point.value for point in link.points if point.key == "train/loss"]


@pytest.fixture(autouse=True)
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_loop.py").write_text(CODE)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("own_loop", None)


def test_it_trains_is_tested_and_exported(tmp_path: Path) -> None:
    status, _ = run(tmp_path, 1)
    folder = RunFolder(Folder.at(tmp_path), "own", 1)
    result = folder.read_result()
    assert status == "completed"
    assert result is not None
    assert result["metrics"]["test/accuracy"] > 0.85
    assert result["step"] == 33
    assert load_bundle(folder.model.local_path()).manifest["task"] == "multiclass"


def test_a_stop_and_a_resume_repeat_an_unhurt_run(tmp_path: Path) -> None:
    _, whole = run(tmp_path, 1)
    status, first = run(tmp_path, 2, stop_after=5)
    assert status == "stopped"
    status, second = run(tmp_path, 2)
    assert status == "completed"
    both = [*losses(first), *losses(second)]
    assert both == losses(whole)


def test_what_it_returns_must_be_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserCodeError, match="own_loop:wrong' returned a int"):
        run(tmp_path, 1, function="wrong")


def test_shares_of_the_ranks_make_up_the_batches(tmp_path: Path) -> None:
    from orchestrator.engine.own import TrainContext
    from orchestrator.engine.recipe import Placement
    from orchestrator.worker import build_recipe, checkpoint_store

    spec = case_spec()
    prepared = case_data(spec, tmp_path)
    recipe = build_recipe(spec, prepared)
    store = checkpoint_store(spec, RunFolder(Folder.at(tmp_path), "own", 1))

    def batches(rank: int, world_size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        link = Keeping()
        link.rank, link.world_size = rank, world_size
        context = TrainContext(spec, link, prepared, recipe, store, Placement(torch.device("cpu")))
        return list(context.batches(epoch=1))

    whole, first, second = batches(0, 1), batches(0, 2), batches(1, 2)
    for (inputs, targets), (left, _), (right, labels) in zip(whole, first, second, strict=True):
        assert torch.equal(torch.cat([left, right]), inputs)
        assert torch.equal(targets[-len(labels) :], labels)


def test_a_save_is_due_by_the_clock_or_when_the_driver_asks(tmp_path: Path) -> None:
    from orchestrator.engine.own import TrainContext
    from orchestrator.engine.recipe import Placement
    from orchestrator.worker import build_recipe, checkpoint_store

    class Asks(Keeping):
        asked = False

        def wish(self) -> Wish:
            return "save" if self.asked else "go on"

    spec = case_spec(checkpoint={"every": "1h"})
    prepared, link = case_data(spec, tmp_path), Asks()
    store = checkpoint_store(spec, RunFolder(Folder.at(tmp_path), "own", 1))
    recipe = build_recipe(spec, prepared)
    context = TrainContext(spec, link, prepared, recipe, store, Placement(torch.device("cpu")))
    assert not context.should_save()
    link.asked = True
    assert context.should_save()
    link.asked = False
    assert not context.should_save()
    context.cadence.interval_s = 0.0
    assert context.should_save()
    context.save({"model": {}}, step=3, epoch=0)
    context.saver.finish()
    assert [manifest.step for manifest in store.manifests()] == [3]
