"""What jobs/char_lm.yaml reaches, in bits per character of its test part, against a plain loop.

    python tests/benchmarks/bench_char_lm.py [--max-epochs 3]

The reference is what one writes by hand: the same network and samples, DataLoader, AdamW without decay for vectors,
warm-up and cosine, clipped gradients, an order of its own. Both train once in this process (a few minutes each).
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import orchestrator
from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.preparing.prepare import prepare
from orchestrator.engine.seed import seed_everything
from orchestrator.imports import add_search_paths
from orchestrator.spec import JobSpec, load_spec
from orchestrator.storage import Folder
from orchestrator.worker import build_recipe
from tests.benchmarks.machine import describe_machine

JOB = Path(__file__).parents[2] / "jobs" / "char_lm.yaml"
TOLERANCE = 0.01
"""Relative."""


def samples(prepared: Prepared, part: str) -> TensorDataset:
    rows = prepared.part(part)
    batch = rows.gather(np.arange(rows.num_rows))
    return TensorDataset(batch.features.long(), batch.targets)


def reference_bits(spec: JobSpec, prepared: Prepared) -> float:
    """Bits per character of the test part after a plain loop."""
    train = spec.train
    seed_everything(spec.seed + 1)
    network = build_recipe(spec, prepared).build()
    matrices = [parameter for parameter in network.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in network.parameters() if parameter.ndim < 2]
    settings = train.optimizer.model_dump()
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings["weight_decay"]},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=settings["lr"],
        betas=settings["betas"],
    )
    loader = DataLoader(samples(prepared, "train"), batch_size=train.global_batch_size, shuffle=True)
    total = len(loader) * train.max_epochs
    warmup = round(train.schedule.warmup_steps * total)
    lowest = train.schedule.min_lr / settings["lr"]

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / warmup
        progress = (step - warmup) / (total - warmup)
        return float(lowest + (1 - lowest) * (1 + math.cos(math.pi * progress)) / 2)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    for _ in range(train.max_epochs):
        for inputs, targets in loader:
            optimizer.zero_grad()
            loss = F.cross_entropy(network(inputs).flatten(0, 1), targets.flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), train.clip_grad_norm or math.inf)
            optimizer.step()
            schedule.step()
    network.eval()
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for inputs, targets in DataLoader(samples(prepared, "test"), batch_size=64):
            nats += F.cross_entropy(network(inputs).flatten(0, 1), targets.flatten(), reduction="sum").item()
            tokens += targets.numel()
    return nats / tokens / math.log(2)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--max-epochs", type=int, default=3)
    epochs = parser.parse_args().max_epochs
    print(describe_machine("torch"), flush=True)
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        overrides = {
            "train.max_epochs": epochs,
            "train.precision": "fp32",
            "resources.num_workers": 1,
            "resources.resources_per_worker": {"CPU": 2},
            "storage": f"{folder}/runs",
            "mlflow.tracking_uri": f"sqlite:///{folder}/mlflow.db",
        }
        began = time.perf_counter()
        result = orchestrator.run(JOB, inline=True, quiet=True, **overrides)
        ours = result.metrics["test/bits_per_token"]
        print(f"ours: {ours:.4f} bits per character in {time.perf_counter() - began:.0f} s", flush=True)
        loaded = load_spec(JOB, overrides_dict=overrides)
        add_search_paths(loaded.search_paths)
        spec = loaded.spec
        torch.set_num_threads(2)
        prepared = prepare(
            spec.data, task=spec.train.task, seed=spec.seed, storage=Folder.at(f"{folder}/runs")
        )
        began = time.perf_counter()
        other = reference_bits(spec, prepared)
        print(f"plain loop: {other:.4f} bits per character in {time.perf_counter() - began:.0f} s")
    ratio = ours / other
    good = ratio <= 1 + TOLERANCE
    print(f"ours / plain loop: {ratio:.4f} (target at most {1 + TOLERANCE}): {'met' if good else 'MISSED'}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
