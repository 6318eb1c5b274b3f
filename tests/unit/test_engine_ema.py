"""Averaged weights against the sum written out here."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from orchestrator.engine.link import WorkerLink
from orchestrator.engine.optim.ema import Ema
from orchestrator.errors import CheckpointError
from orchestrator.runs.folder import RunFolder
from orchestrator.storage import Folder
from orchestrator.worker import WorkerTask, checkpoint_store, train_worker
from tests.unit.engine_case import case_data, case_spec
from tests.unit.sharding import gathered, one_rank, sharded


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(3, 4, bias=False), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)
    )


def train(model: torch.nn.Module, ema: Ema, steps: int, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(6, 3, generator=generator)).square().mean().backward()
        optimizer.step()
        ema.update()


def test_averages_are_the_formula_and_follow_the_statistics() -> None:
    model = network()
    model[2].weight.requires_grad_(False)
    model[1].register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    ema = Ema(model, decay=0.3)
    averages = copy.deepcopy(model.state_dict())
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        for parameter in model.parameters():
            parameter.data.add_(torch.randn(parameter.shape, generator=generator))
        model(torch.randn(6, 3, generator=generator))
        ema.update()
        decay = min(0.3, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if name not in ("2.weight", "1.num_batches_tracked", "1.mask"):
                averages[name] += (1 - decay) * (value - averages[name])
            else:
                averages[name] = value.clone()
    weights = copy.deepcopy(model.state_dict())
    with ema.swap():
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, averages[name], msg=name)
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights[name])


def test_weights_come_back_after_an_error() -> None:
    model = network()
    ema = Ema(model, decay=0.9)
    train(model, ema, 3)
    weights = copy.deepcopy(model.state_dict())

    def evaluate() -> None:
        with ema.swap():
            assert not torch.equal(model.state_dict()["0.weight"], weights["0.weight"])
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        evaluate()
    assert torch.equal(model.state_dict()["0.weight"], weights["0.weight"])


def test_the_state_goes_on_where_it_was() -> None:
    model = network()
    ema = Ema(model, decay=0.999)
    train(model, ema, 3)
    other_model = network()
    other = Ema(other_model, decay=0.999)
    other_model.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(ema.state_dict()))
    train(model, ema, 3, seed=2)
    train(other_model, other, 3, seed=2)
    assert ema.state_dict()["num_updates"] == other.state_dict()["num_updates"] == 6
    for one, two in zip(
        ema.state_dict()["averages"].values(), other.state_dict()["averages"].values(), strict=True
    ):
        assert torch.equal(one, two)
    with pytest.raises(CheckpointError, match=r"do not fit the model: .*weight"):
        Ema(torch.nn.Linear(3, 4), decay=0.9).load_state_dict(ema.state_dict())


def test_a_reset_begins_from_the_weights() -> None:
    model = network()
    ema = Ema(model, decay=0.999)
    train(model, ema, 3)
    ema.reset()
    assert ema.state_dict()["num_updates"] == 0
    assert torch.equal(ema.state_dict()["averages"]["0.weight"], model.state_dict()["0.weight"])


def outputs_after_evaluations(model: torch.nn.Module) -> torch.Tensor:
    """Train and evaluate in turn; the outputs of the last evaluation."""
    ema = Ema(model, decay=0.9)
    for seed in (1, 2):
        train(model, ema, 2, seed)
        model.eval()
        with ema.swap(), torch.no_grad():
            outputs: torch.Tensor = model(torch.arange(12.0).view(4, 3))
        model.train()
    return outputs


def test_sharded_weights_are_averaged_alike() -> None:
    """Though FSDP2 keeps what it gathered for the forward pass of an evaluation."""
    whole = network()
    wanted = outputs_after_evaluations(whole)
    with one_rank():
        parts = sharded(network())
        torch.testing.assert_close(outputs_after_evaluations(parts), wanted)
        for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
            torch.testing.assert_close(gathered(other), one.data)


def test_the_exported_weights_are_the_averaged_ones(tmp_path: Path) -> None:
    """What was tested is what is exported, though the model has its own weights back by then."""
    spec = case_spec(train={"max_epochs": 1, "ema": {"decay": 0.9}})
    run = RunFolder(Folder.at(tmp_path), "case", 1)
    task = WorkerTask(spec, run, Folder.at(case_data(spec, tmp_path).folder).uri, [])
    assert train_worker(task, WorkerLink(), keep_prints=False) == "completed"
    owners = checkpoint_store(spec, run).load_newest()
    assert owners is not None
    exported = load_file(run.model.local_path() / "model.safetensors")
    for name, average in owners[1]["ema"]["averages"].items():
        assert torch.equal(exported[name], average)
        assert not torch.equal(exported[name], owners[1]["model"][name])
