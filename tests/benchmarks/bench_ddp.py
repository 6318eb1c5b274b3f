"""Two workers against one on two cores: how far the engine scales, against bare torchrun processes.

    python tests/benchmarks/bench_ddp.py [--runs 5]

A ResNet-18 on 32×32 images with a fixed global batch, gloo, one thread per worker. Each round starts one worker
and then two by torchrun; in the same processes a plain DDP loop, the same loop with the engine's faster network
(`equipped`), and the engine take turns. What must hold is the speed that two workers reach. The speed-up over one
worker compares only with the equipped loop: whoever computes faster gains less from a second worker.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from orchestrator.engine.device.tiny_maps import speed_up_tiny_maps
from tests.benchmarks.engine_peers import LEARNING_RATE, Case, Stage, StepClock, ours
from tests.benchmarks.machine import describe_machine

CASE = Case(
    "resnet18_ddp", "torchvision/resnet18", side=32, channels=3, num_steps=6, warm_up_steps=2, batch_size=128
)
TARGET = 0.9
WAYS = ("plain", "equipped", "ours")
TURNS = 2
"""Of each contestant in one start of the processes."""


def plain_ddp(stage: Stage, rank: int, world_size: int, equipped: bool) -> None:
    """What one starts by torchrun: DDP around the network, batches gathered from memory, AdamW."""
    pixels = torch.from_numpy(stage.data["image"])
    labels = torch.from_numpy(stage.data["label"])
    mean, std = (torch.from_numpy(moment).view(-1, 1, 1) for moment in stage.moments)
    network: Any = stage.network()
    if equipped:
        network.to(memory_format=torch.channels_last)
        speed_up_tiny_maps(network)
    model = DistributedDataParallel(network) if world_size > 1 else network
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, fused=equipped)
    for batch in torch.randperm(len(labels)).split(stage.case.batch_size):
        rows = batch.tensor_split(world_size)[rank]
        inputs = pixels[rows].permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs.sub_(mean).div_(std)), labels[rows])
        loss.backward()
        optimizer.step()


def worker(folder: Path) -> None:
    """One process under torchrun; rank 0 writes the samples per second of every turn to `speeds.json`."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    stage = Stage(CASE, folder)
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(TURNS):
        for way in speeds:
            dist.barrier()
            with StepClock(CASE.warm_up_steps, CASE.num_steps) as clock:
                if way == "ours":
                    ours(stage, "fp32", rank, world_size)
                else:
                    plain_ddp(stage, rank, world_size, equipped=way == "equipped")
            gc.collect()
            speeds[way].append(CASE.num_steps * CASE.batch_size / clock.seconds)
    if rank == 0:
        (folder / "speeds.json").write_text(json.dumps(speeds))
    dist.destroy_process_group()


def start(world_size: int, folder: Path) -> dict[str, float]:
    """Samples per second by contestant, the median of its turns, with so many workers."""
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={world_size}",
    ]
    env = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"} | os.environ
    done = subprocess.run(
        [*command, __file__, "--worker", str(folder)], env=env, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    turns: dict[str, Any] = json.loads((folder / "speeds.json").read_text())
    return {way: statistics.median(values) for way, values in turns.items()}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker)
        return 0
    print(describe_machine("torch"))
    print(
        f"{CASE.model}, global batch {CASE.batch_size}, {CASE.num_steps} steps timed, {arguments.runs} rounds"
    )
    rounds = []
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        for _ in range(arguments.runs):
            rounds.append((start(1, Path(folder)), start(2, Path(folder))))
    print(f"{'samples/s':<10} {'1 worker':>9} {'2 workers':>10} {'speed-up':>9}")
    for way in WAYS:
        one, two = (statistics.median(found[way] for found in column) for column in zip(*rounds, strict=True))
        speed_up = statistics.median(two[way] / one[way] for one, two in rounds)
        print(f"{way:<10} {one:9.0f} {two:10.0f} {speed_up:9.2f}")
    good = True
    for other in WAYS[:-1]:
        speed = statistics.median(two["ours"] / two[other] for _, two in rounds)
        good &= speed >= TARGET
        verdict = "met" if speed >= TARGET else "MISSED"
        print(f"two workers, ours / {other}: {speed:.2f} (target at least {TARGET}): {verdict}")
    scaling = statistics.median(
        (two["ours"] / one["ours"]) / (two["equipped"] / one["equipped"]) for one, two in rounds
    )
    print(f"speed-up by the second worker, ours / equipped: {scaling:.2f}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
