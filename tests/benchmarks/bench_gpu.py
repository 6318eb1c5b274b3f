"""How fast the engine trains on a GPU: samples/s or tokens/s, MFU, peak memory, against a hand-written loop.

    python tests/benchmarks/bench_gpu.py [--runs 5] [--only mnist_cnn,resnet50,gpt] [--tiny]

All in bf16 with `torch.compile`. The hand-written loop is what an expert writes: data already on the GPU,
channels-last images, autocast, a compiled model, a fused optimizer. Both take turns. MFU is the floating-point
work that torch's FlopCounterMode finds in a step (forward and backward), over the time it took and what the GPU
can do in bf16. Without a GPU nothing is measured; `--tiny` then runs the script itself on small sizes.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.preparing.prepare import prepare
from orchestrator.engine.attempt import start_attempt
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.loop import train
from orchestrator.engine.seed import seed_everything
from orchestrator.runs.folder import RunFolder
from orchestrator.spec import JobSpec, load_spec
from orchestrator.storage import Folder
from orchestrator.worker import build_recipe, checkpoint_store
from tests.benchmarks.engine_peers import Driver, StepClock
from tests.benchmarks.machine import describe_machine

PEAK_BF16_TFLOPS = {"H200": 989, "H100": 989, "A100": 312, "L40S": 362, "L4": 121, "A10": 125, "B200": 2250}
"""Dense, by a part of the GPU's name, from NVIDIA's data sheets (the SXM versions)."""
GPT_MFU_TARGET = 0.45
"""On an H200 or H100."""
LEARNING_RATE = 3e-4
SEED = 0


def noise(num_images: int, side: int, channels: int, num_classes: int) -> dict[str, NDArray[Any]]:
    """A source of kind `python`: images of nothing, quickly made; `image` uint8 and `label`."""
    generator = np.random.default_rng(SEED)
    pixels = generator.integers(0, 256, (num_images, side, side, channels), dtype=np.uint8)
    return {"image": pixels, "label": np.arange(num_images) % num_classes}


def babble(num_samples: int, length: int, num_words: int) -> dict[str, list[str]]:
    """A source of kind `python`: texts of `length` words, in which all `num_words` words occur; `text`."""
    generator = np.random.default_rng(SEED)
    count = num_samples * length
    numbers = np.concatenate(
        [np.arange(num_words), generator.integers(0, num_words, max(0, count - num_words))]
    )
    words = np.char.add("w", generator.permutation(numbers)[:count].astype(str)).reshape(num_samples, length)
    return {"text": [" ".join(row) for row in words]}


@dataclass(frozen=True)
class GpuCase:
    """One network with its data, and how long it is trained for a measurement."""

    name: str
    model: dict[str, Any]
    batch_size: int
    num_steps: int
    side: int = 0
    channels: int = 0
    num_classes: int = 10
    length: int = 0
    """Tokens per sample of a language model."""
    vocab_size: int = 0
    num_samples: int = 0
    """In the training part; seen several times where the steps need more."""
    warm_up_steps: int = 15
    precision: str = "bf16"
    compile: bool = True

    def spec(self) -> JobSpec:
        rows = self.num_samples * 10 // 9 + 10
        data: dict[str, Any] = {"split": {"kind": "random", "train": 0.9, "val": 0.0, "test": 0.1}}
        if self.length:
            args = {"num_samples": rows, "length": self.length, "num_words": self.vocab_size - 2}
            data |= {
                "source": {"kind": "python", "function": f"{MODULE}:babble", "args": args},
                "text": {"tokenizer": "word", "length": self.length, "vocab_size": self.vocab_size},
            }
        else:
            args = {
                "num_images": rows,
                "side": self.side,
                "channels": self.channels,
                "num_classes": self.num_classes,
            }
            data |= {
                "source": {"kind": "python", "function": f"{MODULE}:noise", "args": args},
                "target": "label",
                "transforms": [{"kind": "scale", "by": 255}],
            }
        steps = self.warm_up_steps + self.num_steps
        document: dict[str, Any] = {
            "name": self.name,
            "seed": SEED,
            "data": data,
            "model": self.model,
            "train": {
                "max_steps": steps,
                "max_epochs": steps,
                "global_batch_size": self.batch_size,
                "microbatch_size": self.batch_size,
                "drop_last": True,
                "optimizer": {"kind": "adamw", "lr": LEARNING_RATE},
                "precision": self.precision,
                "compile": self.compile,
            },
        }
        return load_spec(document).spec


MODULE = "tests.benchmarks.bench_gpu"
CASES = (
    GpuCase("mnist_cnn", {"name": "cnn"}, 1024, 200, side=28, channels=1, num_samples=1024 * 50),
    GpuCase(
        "resnet50",
        {"name": "torchvision/resnet50"},
        256,
        40,
        side=224,
        channels=3,
        num_classes=1000,
        num_samples=256 * 20,
    ),
    GpuCase(
        "gpt",
        {"name": "gpt", "args": {"width": 768, "layers": 12, "heads": 12}},
        32,
        40,
        length=1024,
        vocab_size=50304,
        num_samples=32 * 20,
    ),
)
TINY: dict[str, dict[str, Any]] = {
    "mnist_cnn": {"batch_size": 32, "num_samples": 320},
    "resnet50": {"batch_size": 4, "side": 32, "num_samples": 32, "num_classes": 4},
    "gpt": {
        "model": {"name": "gpt", "args": {"width": 32, "layers": 2, "heads": 2}},
        "batch_size": 4,
        "length": 16,
        "vocab_size": 66,
        "num_samples": 64,
    },
}
"""What `--tiny` changes; it also trains a few steps only, in fp32 and without compiling."""


@dataclass
class GpuStage:
    """What both contestants of a case share."""

    case: GpuCase
    device: torch.device
    storage: Path

    @cached_property
    def prepared(self) -> Prepared:
        spec = self.case.spec()
        return prepare(spec.data, task=spec.train.task, seed=SEED, storage=Folder.at(self.storage))

    def ours(self) -> None:
        """The engine through its loop, every step logged."""
        spec = self.case.spec()
        run = RunFolder(Folder.at(self.storage), spec.name, 1)
        link = WorkerLink(device=self.device, channel=Driver()).start()
        try:
            recipe = build_recipe(spec, self.prepared)
            attempt = start_attempt(recipe, link, checkpoint_store(spec, run), spec.checkpoint)
            attempt.save = lambda: None  # type: ignore[method-assign]
            train(attempt)
        finally:
            link.close()

    def by_hand(self) -> None:
        """An expert's loop; data on the device from the beginning."""
        case, device = self.case, self.device
        network = self.network()
        model: Any = torch.compile(network) if case.compile else network
        optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, fused=True)
        features, targets = self.rows(case.num_samples)
        for _ in range(case.warm_up_steps + case.num_steps):
            rows = torch.randint(len(targets), (case.batch_size,), device=device)
            optimizer.zero_grad()
            with torch.autocast(device.type, torch.bfloat16, enabled=case.precision == "bf16"):
                loss = self.loss(model, self.inputs(features[rows]), targets[rows])
            loss.backward()
            optimizer.step()

    def network(self) -> nn.Module:
        seed_everything(SEED)
        network: Any = build_recipe(self.case.spec(), self.prepared).build().to(self.device)
        if not self.case.length:
            network.to(memory_format=torch.channels_last)
        return network  # type: ignore[no-any-return]

    def rows(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        batch = self.prepared.part("train").gather(np.arange(count))
        return batch.features.to(self.device), batch.targets.to(self.device)

    def inputs(self, features: torch.Tensor) -> torch.Tensor:
        """Stored rows as the network's input: images scaled, channels-last; tokens as they are."""
        return features.long() if self.case.length else features.permute(0, 3, 1, 2).float().div_(255)

    def loss(self, model: Callable[[Any], Any], inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        outputs = model(inputs)
        return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())

    def flops_per_step(self) -> int:
        """Floating-point operations of one forward and backward pass over a batch."""
        count = min(2, self.case.batch_size)
        features, targets = self.rows(count)
        with FlopCounterMode(display=False) as counter:
            self.loss(self.network(), self.inputs(features), targets).backward()
        return int(counter.get_total_flops()) * self.case.batch_size // count


@dataclass(frozen=True)
class Measured:
    per_s: float
    """Steps."""
    peak_bytes: int


def measure(stage: GpuStage, way: Callable[[], None]) -> Measured:
    on_gpu = stage.device.type == "cuda"
    gc.collect()
    torch.compiler.reset()
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with StepClock(stage.case.warm_up_steps, stage.case.num_steps) as clock:
        way()
    peak = torch.cuda.max_memory_allocated() if on_gpu else 0
    return Measured(stage.case.num_steps / clock.seconds, peak)


def peak_flops(device: torch.device) -> float | None:
    """What the GPU can do in bf16 each second; None where we do not know it."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((tflops * 1e12 for part, tflops in PEAK_BF16_TFLOPS.items() if part in name), None)


def compare(stage: GpuStage, runs: int) -> bool:
    """Measure both in turns, print the table; whether the target is met where there is one."""
    case, peak = stage.case, peak_flops(stage.device)
    flops = stage.flops_per_step()
    ways = {"by hand": stage.by_hand, "ours": stage.ours}
    found: dict[str, list[Measured]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            found[name].append(measure(stage, way))
    unit, per_step = (
        ("tokens/s", case.batch_size * case.length) if case.length else ("samples/s", case.batch_size)
    )
    print(
        f"\n{case.name}: batch {case.batch_size}, {flops / 1e9:,.1f} GFLOP per step, {runs} rounds in turns"
    )
    print(f"{'':<8} {unit:>12} {'MFU':>6} {'peak GiB':>9}")
    mfu = {}
    for name, runs_of in found.items():
        per_s = statistics.median(run.per_s for run in runs_of)
        mfu[name] = flops * per_s / peak if peak else float("nan")
        memory = max(run.peak_bytes for run in runs_of) / 2**30
        print(f"{name:<8} {per_s * per_step:12,.0f} {mfu[name]:6.1%} {memory:9.1f}")
    ratio = statistics.median(a.per_s / b.per_s for a, b in zip(found["ours"], found["by hand"], strict=True))
    print(f"ours / by hand: {ratio:.2f}", flush=True)
    if case.name == "gpt" and peak == PEAK_BF16_TFLOPS["H200"] * 1e12:
        good = mfu["ours"] >= GPT_MFU_TARGET
        print(f"MFU of ours: target at least {GPT_MFU_TARGET:.0%}: {'met' if good else 'MISSED'}")
        return good
    return True


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default=",".join(case.name for case in CASES))
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    print(describe_machine("torch", "torchvision"))
    if not torch.cuda.is_available() and not arguments.tiny:
        print("no GPU: nothing to measure here")
        return 0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        print(f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
    good = True
    for case in CASES:
        if case.name not in arguments.only.split(","):
            continue
        if arguments.tiny:
            short: dict[str, Any] = {
                "num_steps": 3,
                "warm_up_steps": 2,
                "precision": "fp32",
                "compile": False,
            }
            case = replace(case, **short, **TINY[case.name])
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            good &= compare(GpuStage(case, device, Path(folder)), arguments.runs)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
