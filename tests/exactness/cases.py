"""Small trainings of which every bit must come out the same, however often their workers are killed."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.preparing.prepare import prepare
from orchestrator.spec import JobSpec, load_spec
from orchestrator.storage import Folder
from tests.unit.prepared_case import reshard

DIGITS = {
    "source": {"kind": "python", "function": "tests.exactness.cases:some_digits"},
    "target": "label",
    "split": {"kind": "random", "train": 0.7, "val": 0.15, "test": 0.15},
    "transforms": [{"kind": "standardize"}],
}

IMAGES: dict[str, Any] = {
    "name": "images",
    "seed": 3,
    "data": DIGITS | {"augment": [{"kind": "crop", "padding": 1}, {"kind": "mixup", "p": 0.5}]},
    "model": {
        "name": "cnn",
        "args": {"channels": [4], "hidden": 16, "dropout": 0.2, "batch_norm": True},
    },
    "train": {
        "max_epochs": 4,
        "global_batch_size": 36,
        "microbatch_size": 8,
        "optimizer": {"kind": "adamw", "lr": 0.01},
        "schedule": {"kind": "cosine", "warmup_steps": 5},
        "ema": {"decay": 0.9},
        "clip_grad_norm": 1.0,
        "early_stopping": {"metric": "val/loss", "mode": "min", "patience": 50},
    },
    "checkpoint": {"every_n_steps": 5},
}
"""Dropout, batch statistics, augmentation, accumulation, averaged weights, and saves inside an epoch."""

STREAMED: dict[str, Any] = {
    "name": "streamed",
    "seed": 4,
    "data": DIGITS | {"iterate": {"kind": "streaming", "window": "40kB"}},
    "model": {"name": "mlp", "args": {"hidden": [32], "dropout": 0.3}},
    "train": {
        "max_epochs": 5,
        "global_batch_size": 40,
        "optimizer": {"kind": "sgd", "lr": 0.05, "momentum": 0.9},
        "schedule": {"kind": "plateau"},
    },
    "checkpoint": {"every_n_steps": 4, "num_to_keep": 3},
}
"""The data as a stream of shards, momentum, and a learning rate that follows the validation."""

ELASTIC: dict[str, Any] = {
    "name": "elastic",
    "seed": 5,
    "data": {
        "source": {"kind": "python", "function": "tests.exactness.cases:numbered_rows"},
        "target": "value",
        "split": {"kind": "random", "train": 0.8, "val": 0.2, "test": 0.0},
    },
    "model": {"name": "tests.exactness.cases:Numbered"},
    "train": {
        "max_epochs": 4,
        "global_batch_size": 50,
        "microbatch_size": 5,
        "optimizer": {"kind": "adamw", "lr": 0.01},
        "ema": {"decay": 0.9},
    },
    "checkpoint": {"every_n_steps": 3},
}
"""No dropout and no batch statistics, so that the number of workers changes no more than roundings; and a network
that notes which rows it was given."""

SHARDS = {"streamed": 40}
"""Rows of a shard, where one shard would not do."""


def case(sections: dict[str, Any], **changes: Any) -> JobSpec:
    """The spec of a case, with sections merged over it."""
    return load_spec(sections, overrides_dict=changes).spec


def prepared_case(spec: JobSpec, storage: Path) -> Prepared:
    """The case's data, prepared in the storage."""
    prepared = prepare(spec.data, task=spec.train.task, seed=spec.seed, storage=Folder.at(storage))
    if spec.name in SHARDS:
        reshard(prepared, SHARDS[spec.name])
    return prepared


def some_digits() -> dict[str, Any]:
    """420 of scikit-learn's digits, 8×8 pixels each."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return {"image": digits.images[:420].astype(np.float32), "label": digits.target[:420]}


def numbered_rows() -> dict[str, Any]:
    """410 rows: a row's own number, four numbers, and what is to be found from these."""
    draw = np.random.default_rng(0)
    numbers = draw.normal(size=(410, 4)).astype(np.float32)
    columns = {name: numbers[:, index] for index, name in enumerate("abcd")}
    value = np.tanh(numbers @ np.array([1.0, -2.0, 0.5, 1.5], np.float32))
    return {"number": np.arange(410, dtype=np.float32), **columns, "value": value.astype(np.float32)}


class Numbered(nn.Module):
    """A perceptron on all columns but the first. It notes the first, the rows' numbers, for `note_steps`."""

    def __init__(self, input_shape: tuple[int, ...], num_outputs: int) -> None:
        super().__init__()
        assert input_shape == (5,)
        self.layers = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, num_outputs))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training:
            if (
                self.layers[0].weight.grad is None
            ):  # the first microbatch of a step, or of a try before the first
                SEEN.clear()
            SEEN.extend(inputs[:, 0].int().tolist())
        outputs: torch.Tensor = self.layers(inputs[:, 1:])
        return outputs


SEEN: list[int] = []
"""The numbers of the rows that went through the network since the last gradients were dropped."""


def note_steps(file: Path) -> None:
    """From now on this process adds a line to the file for each optimizer step: its number, by the optimizer's own
    count, which is part of a checkpoint; then the numbers of the rows."""
    handle = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def note(optimizer: torch.optim.Optimizer, args: object, kwargs: object) -> None:
        if not SEEN:  # another network
            return
        step = int(next(iter(optimizer.state.values()))["step"])
        os.write(handle, f"{step}: {' '.join(map(str, SEEN))}\n".encode())

    register_optimizer_step_post_hook(note)
