"""How fast the engine trains each job in jobs/, against the loop of torch's tutorials on the same data.

    python tests/benchmarks/bench_jobs.py [--runs 5] [--only digits,char_lm] [--threads 2]

The other loop gets the job's samples as a TensorDataset that is transformed already, the same network, loss and
schedule, and augmentation in whole batches by our own function: more than most scripts have. Both run in one process,
in fp32, without validation, and take turns. Jobs on data of the user's own take it from the variable that the job
names (MNIST, IMAGE_FOLDER, PARQUET_IMAGES); without it they are left out, which is printed.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from orchestrator.data.augment.augment import augment
from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.preparing.prepare import prepare
from orchestrator.engine.recipe import augment_plan
from orchestrator.engine.seed import seed_everything
from orchestrator.errors import SpecError
from orchestrator.imports import add_search_paths
from orchestrator.spec import JobSpec, load_spec
from orchestrator.spec.load import LoadedSpec
from orchestrator.storage import Folder
from orchestrator.worker import build_recipe
from tests.benchmarks.engine_peers import StepClock, train_by_engine
from tests.benchmarks.machine import describe_machine

JOBS = Path(__file__).parents[2] / "jobs"
TARGET = 1.0
TURN_S = 2.0
"""How long a turn is to take, about."""
WARM_UP_STEPS = 4
MIN_STEPS = 4

_OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
_LOSSES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "multiclass": F.cross_entropy,
    "binary": lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs, targets.float()),
    "regression": F.mse_loss,
    "language_modeling": lambda outputs, targets: F.cross_entropy(outputs.flatten(0, 1), targets.flatten()),
}


@dataclass
class Job:
    """A job of jobs/ as it is trained for a measurement."""

    loaded: LoadedSpec
    storage: Path

    @property
    def spec(self) -> JobSpec:
        return self.loaded.spec

    @cached_property
    def prepared(self) -> Prepared:
        spec = self.spec
        return prepare(spec.data, task=spec.train.task, seed=spec.seed, storage=Folder.at(self.storage))

    @cached_property
    def samples(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs and targets of the training part, transformed."""
        part, pipeline = self.prepared.part("train"), self.prepared.pipeline
        batch = part.gather(np.arange(part.num_rows))
        return pipeline.transform(batch.features), pipeline.transform_targets(batch.targets)

    def with_steps(self, num_steps: int) -> JobSpec:
        train = self.spec.train.model_copy(
            update={"max_steps": WARM_UP_STEPS + num_steps, "max_epochs": 10**6}
        )
        return self.spec.model_copy(update={"train": train})


class Numbered(Dataset[Any]):
    """A dataset whose samples know their number: augmentation is drawn by it."""

    def __init__(self, samples: TensorDataset) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return (*self.samples[index], index)


def tutorial(job: Job, num_steps: int) -> None:
    """The loop of torch's own tutorials, for what the job's spec asks."""
    spec, train = job.spec, job.spec.train
    recipe = build_recipe(spec, job.prepared)
    seed_everything(spec.seed)
    network = recipe.build()
    options = {
        name: value
        for name, value in train.optimizer.model_dump(
            include={"lr", "betas", "momentum", "weight_decay"}
        ).items()
        if value is not None
    }
    optimizer = _OPTIMIZERS[train.optimizer.kind](network.parameters(), **options)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, WARM_UP_STEPS + num_steps)
    averaged = (
        AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(train.ema.decay)) if train.ema else None
    )
    criterion = _LOSSES[job.prepared.manifest.task]
    if ":" in str(train.loss.name):
        criterion = lambda outputs, targets: recipe.objective.losses(outputs, targets).mean()  # noqa: E731
    samples: Dataset[Any] = TensorDataset(*job.samples)
    if recipe.augmentations:
        samples = Numbered(TensorDataset(*job.samples))
    loader = DataLoader(samples, batch_size=train.global_batch_size, shuffle=True)
    step, running_loss, epoch = 0, 0.0, 0
    while True:
        for inputs, targets, *numbers in loader:
            if recipe.augmentations:
                inputs = augment(inputs, augment_plan(recipe, numbers[0].numpy(), epoch))
            optimizer.zero_grad()
            loss = criterion(recipe.objective.shape_outputs(network(inputs)), targets)
            loss.backward()
            if train.clip_grad_norm:
                nn.utils.clip_grad_norm_(network.parameters(), train.clip_grad_norm)
            optimizer.step()
            schedule.step()
            if averaged is not None:
                averaged.update_parameters(network)
            running_loss += loss.item()
            step += 1
            if step == WARM_UP_STEPS + num_steps:
                return
        epoch += 1


def ours(job: Job, num_steps: int) -> None:
    train_by_engine(job.with_steps(num_steps), job.prepared, job.storage)


WAYS: dict[str, Callable[[Job, int], None]] = {"tutorial": tutorial, "ours": ours}


def seconds(job: Job, way: str, num_steps: int) -> float:
    with StepClock(WARM_UP_STEPS, num_steps) as clock:
        WAYS[way](job, num_steps)
    gc.collect()
    return clock.seconds


def measure(name: str, job: Job, rounds: int) -> bool:
    """Print one row; whether the engine is fast enough."""
    batch_size = job.spec.train.global_batch_size
    num_steps = MIN_STEPS
    # The first steps are slower than others: a guess from them alone would make turns too short to mean anything.
    while (trial_s := seconds(job, "tutorial", num_steps)) < TURN_S / 2:
        num_steps = min(num_steps * 16, math.ceil(num_steps * TURN_S / trial_s))
    seconds(job, "ours", MIN_STEPS)
    speeds: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in range(rounds):
        for way in list(WAYS) if number % 2 == 0 else list(WAYS)[::-1]:
            speeds[way].append(num_steps * batch_size / seconds(job, way, num_steps))
    ratio = statistics.median(
        ours / other for ours, other in zip(speeds["ours"], speeds["tutorial"], strict=True)
    )
    middle = {way: statistics.median(values) for way, values in speeds.items()}
    verdict = "met" if ratio >= TARGET else "MISSED"
    print(
        f"{name:<20} {num_steps:>6} {middle['tutorial']:>10.0f} {middle['ours']:>10.0f} {ratio:>8.2f}  {verdict}",
        flush=True,
    )
    return ratio >= TARGET


def load(name: str) -> LoadedSpec | None:
    """The job, in fp32 and without validation; None where it needs data that is not here."""
    fixed = {"train.precision": "fp32", "train.evaluate_every_n_epochs": 10**6, "train.early_stopping": None}
    if name == "cats_dogs_vgg16":
        fixed["model.pretrained"] = False  # other weights take the same time
    try:
        return load_spec(JOBS / f"{name}.yaml", overrides_dict=fixed)
    except SpecError as error:
        print(f"{name:<20} left out: {str(error).splitlines()[0][:150]}")
        return None


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", default=",".join(sorted(path.stem for path in JOBS.glob("*.yaml"))))
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    print(describe_machine("torch"))
    torch.set_num_threads(arguments.threads)
    print(f"samples/s in fp32, medians of {arguments.runs} rounds, {arguments.threads} threads, one process")
    print(f"{'job':<20} {'steps':>6} {'tutorial':>10} {'ours':>10} {'ratio':>8}  target at least {TARGET}")
    good = True
    for name in arguments.only.split(","):
        loaded = load(name)
        if loaded is None:
            continue
        add_search_paths(loaded.search_paths)
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            good &= measure(name, Job(loaded, Path(folder)), arguments.runs)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
