"""What a checkpoint costs: a model of 100M parameters with AdamW, saved beside its training.

    python tests/benchmarks/bench_checkpoint.py [--millions 100] [--repeats 5] [--folder DIR]

Blocks of steps without and with a save alternate within one run, so that both meet the same machine. Stall: how long
`save` keeps training waiting. Extra: how much longer a block with a save takes than one without, while the file is
written on the same processors. The interval is what `checkpoint.every: auto` chooses from these saves, with its
default mean time between failures. Peers: torch.save, with the same flush to the disk, and torch's
distributed checkpoint (`async_save`), which has no checksums.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict_saver import async_save

from orchestrator.checkpoints.cadence import Cadence
from orchestrator.checkpoints.manifest import STATE
from orchestrator.checkpoints.saver import Part, Saved, Saver
from orchestrator.checkpoints.store import CheckpointStore
from orchestrator.checkpoints.tensors import dump_state
from orchestrator.spec.checkpoint import CheckpointSection
from orchestrator.storage import Folder
from tests.benchmarks.machine import describe_machine

WIDTH = 2048
STALL_SHARE, WALL_SHARE = 0.10, 0.035


class Training:
    """A deep network of equal layers, with AdamW, on noise."""

    def __init__(self, millions: float) -> None:
        layers = max(1, round(millions * 1e6 / (WIDTH * WIDTH + WIDTH)))
        self.model = nn.Sequential(
            *(layer for _ in range(layers) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU()))
        )
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, fused=True)
        self._inputs = torch.randn(16, WIDTH)
        self.steps(2)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def state(self) -> dict[str, object]:
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def steps(self, count: int) -> float:
        """Take steps; seconds."""
        began_s = time.perf_counter()
        for _ in range(count):
            self.optimizer.zero_grad()
            self.model(self._inputs).square().mean().backward()
            self.optimizer.step()
        return time.perf_counter() - began_s


def timed(action: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    action()
    return time.perf_counter() - began_s


def save_blocking(training: Training, folder: Path, repeats: int) -> list[Saved]:
    saver = Saver(CheckpointStore(Folder.at(folder)), asynchronous=False)
    for step in range(repeats):
        saver.save([Part(STATE, training.state(), dump_state)], step=step, epoch=0, metrics={})
    return saver.take_saved()


def save_beside(
    training: Training, folder: Path, repeats: int, block_steps: int
) -> tuple[list[Saved], list[float]]:
    """The saves, and by how much each made its block of steps longer."""
    saver = Saver(CheckpointStore(Folder.at(folder)))
    saver.reserve([Part(STATE, training.state(), dump_state)])
    saver.wait()
    extra = []
    for step in range(repeats):
        without_s = training.steps(block_steps)
        began_s = time.perf_counter()
        saver.save([Part(STATE, training.state(), dump_state)], step=step, epoch=0, metrics={})
        training.steps(block_steps)
        with_s = time.perf_counter() - began_s
        if saver.busy:
            print(f"  the write outlasted its block of {block_steps} steps")
        saver.finish()
        extra.append(with_s - without_s)
    return saver.take_saved(), extra


def torch_save(training: Training, folder: Path) -> None:
    with (folder / "peer.pt").open("wb") as file:
        torch.save(training.state(), file)
        file.flush()
        os.fsync(file.fileno())


def dcp_stalls(training: Training, folder: Path, repeats: int) -> list[float]:
    """How long torch's own asynchronous save keeps training waiting."""
    dist.init_process_group(
        "cpu:gloo,cuda:gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1
    )
    stalls = []
    try:
        for number in range(repeats):
            began_s = time.perf_counter()
            future = async_save(training.state(), checkpoint_id=folder / f"dcp-{number}")
            stalls.append(time.perf_counter() - began_s)
            assert isinstance(future, Future)
            future.result()
            shutil.rmtree(folder / f"dcp-{number}")
    finally:
        dist.destroy_process_group()
    return stalls


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--millions", type=float, default=100.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    repeats: int = arguments.repeats
    print(describe_machine("torch"))
    folder = Path(tempfile.mkdtemp(prefix="bench-checkpoint-", dir=arguments.folder))
    try:
        training = Training(arguments.millions)
        step_s = training.steps(3) / 3
        print(
            f"{training.num_parameters / 1e6:.1f}M parameters, AdamW, {step_s:.3f} s a step, medians of {repeats}"
        )
        blocking = save_blocking(training, folder / "blocking", repeats)
        blocking_s = statistics.median(saved.seconds for saved in blocking)
        block_steps = max(3, round(2.5 * blocking_s / step_s))
        beside, extra = save_beside(training, folder / "beside", repeats, block_steps)
        peer_s = statistics.median(timed(lambda: torch_save(training, folder)) for _ in range(repeats))
        dcp_s = statistics.median(dcp_stalls(training, folder, repeats))
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    stall_s = statistics.median(saved.stall_s for saved in beside)
    extra_s = max(0.0, statistics.median(extra))
    section = CheckpointSection(every="auto")
    cadence = Cadence(section.every, section.mean_time_between_failures)
    for saved in beside:
        cadence.learn(saved)
    interval_s = cadence.interval_s or 0.0
    print(f"file                          {beside[0].size_bytes / 1e9:.2f} GB")
    print(
        f"blocking save                 {blocking_s:.2f} s ({peer_s / blocking_s:.2f} of it for torch.save + fsync)"
    )
    print(
        f"asynchronous save             {statistics.median(saved.seconds for saved in beside):.2f} s to its commit"
    )
    print(f"stall / blocking save         {stall_s / blocking_s:.3f} ({stall_s:.3f} s; target {STALL_SHARE})")
    print(f"stall / DCP async_save's      {stall_s / dcp_s:.3f} ({dcp_s:.3f} s)")
    print(f"interval chosen               {interval_s:.0f} s")
    print(f"stall, share of wall time     {stall_s / (stall_s + interval_s):.4f} (target {WALL_SHARE})")
    print(
        f"extra, share of wall time     {extra_s / (extra_s + interval_s):.4f} ({extra_s:.2f} s a checkpoint)"
    )
    return 0 if stall_s <= STALL_SHARE * blocking_s and stall_s <= WALL_SHARE * (stall_s + interval_s) else 1


if __name__ == "__main__":
    raise SystemExit(main())
