"""The microbatch of a sharded model is found without waiting for anyone, also where a worker's memory is smaller."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing

from orchestrator.engine.link import WorkerLink
from orchestrator.engine.loop import train
from orchestrator.errors import OutOfMemory
from orchestrator.records import Point
from tests.unit.engine_case import case_attempt, case_data, case_spec

NETS = '''
import torch
import torch.distributed
from torch import nn

class Bounded(torch.autograd.Function):
    """Runs out of memory in the backward pass."""

    @staticmethod
    def forward(ctx, values, fits):
        ctx.fits = fits
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        if len(gradient) > ctx.fits:
            raise torch.OutOfMemoryError(f"cannot hold {len(gradient)} gradients")
        return gradient, None

class Layers(nn.Module):
    """Holds `fits[rank]` samples; the middle of its three parts runs out of memory, forward or `backward`."""

    def __init__(self, input_shape, num_outputs, fits, backward=False, norm=False, unused=False):
        super().__init__()
        self.first = nn.Linear(64, 15)
        self.second = nn.Sequential(nn.Linear(15, 17), *([nn.BatchNorm1d(17)] if norm else []))
        self.third = nn.Linear(17, num_outputs)
        if unused:
            self.second.idle = nn.Parameter(torch.zeros(2))
        self.fits, self.backward = fits, backward

    def forward(self, images):
        values = self.first(images.flatten(1)).relu()
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        fits = self.fits[rank]
        if self.training and torch.is_grad_enabled():
            if self.backward:
                values = Bounded.apply(values, fits)
            elif len(images) > fits:
                raise torch.OutOfMemoryError(f"cannot hold {len(images)} samples")
        return self.third(self.second(values).relu())
'''

FSDP: dict[str, Any] = {"strategy": "fsdp"}
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "large-1": ({"fits": [50, 50, 50]}, FSDP),
    "forward-1": ({"fits": [50, 5, 9]}, FSDP),
    "backward-1": ({"fits": [9, 50, 4], "backward": True}, FSDP),
    "norm-1": ({"fits": [9, 50, 2], "norm": True}, {**FSDP, "sync_batch_norm": True}),
    "one-1": ({"fits": [1, 1, 1], "norm": True}, {**FSDP, "sync_batch_norm": True}),
    "none-1": ({"fits": [50, 0, 50]}, FSDP),
    "recomputed-1": ({"fits": [50, 5, 50], "backward": True}, {**FSDP, "activation_checkpointing": True}),
    "unused-1": ({"fits": [50, 5, 50], "unused": True}, FSDP),
    "copies-1": ({"fits": [50, 5, 50]}, {"strategy": "ddp"}),
}
STEPS = 2
OF_TWO = ("large-1", "forward-1", "backward-1", "none-1")
"""What two workers run; three run all."""

pytestmark = pytest.mark.slow


class Keeping(WorkerLink):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.points: list[Point] = []
        self.notices: list[str] = []

    def log_points(self, points: list[Point]) -> None:
        self.points += points

    def notice(self, text: str) -> None:
        self.notices.append(text)


def one_run(folder: Path, run: str, rank: int, world_size: int) -> dict[str, Any]:
    arguments, parallel = RUNS[run]
    spec = case_spec(
        model={"name": "bounded_nets:Layers", "args": arguments},
        train={"max_steps": STEPS, "global_batch_size": 24, "parallel": parallel},
    )
    link = Keeping(rank=rank, world_size=world_size)
    try:
        attempt = case_attempt(spec, folder, link, run)
    except OutOfMemory as error:
        return {"error": str(error)}
    train(attempt)
    losses = [point.value for point in link.points if point.key == "train/loss"]
    return {"size": attempt.microbatch_size, "losses": losses, "notices": link.notices}


def worker(rank: int, world_size: int, folder: Path) -> None:
    """One of several processes, which do all runs one after the other: starting them is dear."""
    torch.set_num_threads(1)
    sys.path.insert(0, str(folder))
    for size in (world_size, world_size - 1):
        if rank >= size:
            return
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous-{size}", rank=rank, world_size=size
        )
        storage = folder / f"{size}"
        facts = {run: one_run(storage, run, rank, size) for run in (RUNS if size == 3 else OF_TWO)}
        (folder / f"{size}-{rank}.json").write_text(json.dumps(facts))
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where three processes, and then two of them, have done all runs."""
    folder = tmp_path_factory.mktemp("probing")
    (folder / "bounded_nets.py").write_text(NETS)
    spec = case_spec()
    for size in (2, 3):
        case_data(spec, folder / f"{size}")
    torch.multiprocessing.start_processes(worker, (3, folder), nprocs=3, start_method="spawn")
    return folder


def facts_of(folder: Path, size: int, run: str) -> list[dict[str, Any]]:
    """What each rank has found."""
    return [json.loads((folder / f"{size}-{rank}.json").read_text())[run] for rank in range(size)]


SIZES = pytest.mark.parametrize("size", [2, 3])


@pytest.mark.parametrize(
    ("size", "run", "fits"),
    [
        (2, "large-1", 12),
        (3, "large-1", 8),
        (2, "forward-1", 3),  # 12, 6, 3
        (3, "forward-1", 4),
        (2, "backward-1", 6),
        (3, "backward-1", 4),
        (3, "norm-1", 2),
        (3, "one-1", 1),
        (3, "recomputed-1", 4),
        (3, "copies-1", 4),
    ],
)
def test_the_smallest_memory_decides_for_all(folder: Path, size: int, run: str, fits: int) -> None:
    found = facts_of(folder, size, run)
    assert [one["size"] for one in found] == [fits] * size
    told = [text for text in found[0]["notices"] if f"it computes {fits} and accumulates" in text]
    assert len(told) == (run != "large-1")


@SIZES
def test_where_one_sample_does_not_fit_all_say_so(folder: Path, size: int) -> None:
    for one in facts_of(folder, size, "none-1"):
        assert "does not hold the training step of one sample" in one["error"]


@pytest.mark.parametrize(
    ("size", "run"),
    [(2, "forward-1"), (2, "backward-1"), (3, "forward-1"), (3, "backward-1"), (3, "recomputed-1")],
)
def test_the_losses_are_those_of_a_run_with_enough_memory(folder: Path, size: int, run: str) -> None:
    """Neither the tries, whose weights mean nothing, nor making the model anew have left anything behind."""
    large, small = facts_of(folder, size, "large-1")[0], facts_of(folder, size, run)[0]
    assert len(large["losses"]) == STEPS
    assert small["losses"] == pytest.approx(large["losses"], rel=1e-4)


def test_parameters_without_gradients_are_named(folder: Path) -> None:
    notices = facts_of(folder, 3, "unused-1")[0]["notices"]
    assert [text for text in notices if "no gradient" in text] == [
        "no gradient reaches 1 of the trained parameters: second.idle"
    ]
    assert not [text for text in facts_of(folder, 3, "forward-1")[0]["notices"] if "no gradient" in text]
