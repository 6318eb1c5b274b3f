"""Ways to train one network on the same images: ours, the tutorials', Lightning, Accelerate, an expert's.

Each contestant trains `case.total_steps` optimizer steps in this process, from the same weights, with AdamW at
the same learning rate and batches drawn at random. A hook on
torch's optimizers times all of them the same way, from the end of one step to the end of a later one.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, Dataset

from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.preparing.prepare import prepare
from orchestrator.engine.attempt import start_attempt
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.loop import train
from orchestrator.engine.seed import seed_everything
from orchestrator.models.build import build_model
from orchestrator.records import Letter, Reply
from orchestrator.runs.folder import RunFolder
from orchestrator.spec import JobSpec, load_spec
from orchestrator.storage import Folder
from orchestrator.vision import import_torchvision
from orchestrator.worker import build_recipe, checkpoint_store

LEARNING_RATE = 1e-3
NUM_CLASSES = 10
SEED = 0


def images(num_images: int, side: int, channels: int) -> dict[str, NDArray[Any]]:
    """A source of kind `python`: ten smooth patterns, shifted at random, on dark ground with noise; uint8.

    `image` (num_images, side, side, channels), `label` (num_images,).
    """
    generator = np.random.default_rng(SEED)
    coarse = generator.random((NUM_CLASSES, 7, 7, channels)) ** 3
    repeat = -(-side // 7)
    patterns = coarse.repeat(repeat, axis=1).repeat(repeat, axis=2)[:, :side, :side]
    labels = generator.integers(0, NUM_CLASSES, num_images)
    pixels = np.empty((num_images, side, side, channels), np.uint8)
    for i, label in enumerate(labels):
        shifted = np.roll(patterns[label], generator.integers(-2, 3, 2), axis=(0, 1))
        noisy = shifted * 200 + generator.normal(0, 20, shifted.shape)
        pixels[i] = noisy.clip(0, 255)
    return {"image": pixels, "label": labels}


@dataclass(frozen=True)
class Case:
    """One network on one kind of image, and how long it is trained for a measurement."""

    name: str
    model: str
    side: int
    channels: int
    num_steps: int
    """That are timed."""
    warm_up_steps: int = 8
    batch_size: int = 64

    @property
    def total_steps(self) -> int:
        return self.warm_up_steps + self.num_steps

    @property
    def num_images(self) -> int:
        return self.batch_size * self.total_steps

    def spec(self, precision: str) -> JobSpec:
        """The job as a user would write it: one epoch, no validation, every step logged."""
        source = {
            "kind": "python",
            "function": f"{__name__}:images",
            # A tenth stays aside: a split must leave some rows untrained.
            "args": {
                "num_images": self.num_images * 10 // 9 + 10,
                "side": self.side,
                "channels": self.channels,
            },
        }
        document: dict[str, Any] = {
            "name": self.name.replace("_", "-"),
            "seed": SEED,
            "data": {
                "source": source,
                "target": "label",
                "split": {"kind": "random", "train": 0.9, "val": 0.0, "test": 0.1},
                "transforms": [{"kind": "standardize"}],
            },
            "model": {"name": self.model},
            "train": {
                "max_epochs": 1,
                "max_steps": self.total_steps,
                "global_batch_size": self.batch_size,
                "drop_last": True,
                "optimizer": {"kind": "adamw", "lr": LEARNING_RATE},
                "precision": precision,
            },
        }
        return load_spec(document).spec


CASES = (
    Case("mnist_cnn", "cnn", side=28, channels=1, num_steps=60),
    Case("resnet18", "torchvision/resnet18", side=32, channels=3, num_steps=16, warm_up_steps=4),
)


class StepClock:
    """Measures the steps of whatever trains while it is open, but for the first ones, which are slow.

    torch calls it after every step of every optimizer. A GPU is waited for at both ends.
    """

    def __init__(self, warm_up_steps: int, num_steps: int) -> None:
        self._ends = (warm_up_steps, warm_up_steps + num_steps)
        self._times_s: list[float] = []
        self._step = 0

    def __enter__(self) -> StepClock:
        self._handle = register_optimizer_step_post_hook(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()

    def _note(self, *_: object) -> None:
        self._step += 1
        if self._step in self._ends:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self._times_s.append(time.perf_counter())

    @property
    def seconds(self) -> float:
        first, last = self._times_s
        return last - first


@dataclass
class Stage:
    """What all contestants of a case share: the images, prepared for ours, and the network's first weights."""

    case: Case
    storage: Path
    num_workers: int = 0
    """Of the DataLoader, for Lightning and Accelerate."""

    @cached_property
    def prepared(self) -> Prepared:
        spec = self.case.spec("fp32")
        return prepare(spec.data, task=spec.train.task, seed=SEED, storage=Folder.at(self.storage))

    @cached_property
    def data(self) -> dict[str, NDArray[Any]]:
        case = self.case
        return images(case.num_images, case.side, case.channels)

    @cached_property
    def moments(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Mean and deviation of each channel, of pixels from 0 to 255."""
        pixels = self.data["image"]
        return pixels.mean((0, 1, 2), dtype=np.float32), pixels.std((0, 1, 2), dtype=np.float32)

    def network(self) -> nn.Module:
        """The network with the weights that ours begins with."""
        case = self.case
        seed_everything(SEED)
        shape = (case.channels, case.side, case.side)
        return build_model(case.spec("fp32").model, shape, NUM_CLASSES)

    def loader(self, num_workers: int) -> DataLoader[Any]:
        """As the tutorials do it: one image at a time through torchvision's transforms."""
        transforms = import_torchvision().transforms
        mean, std = self.moments
        transform = transforms.Compose(
            [transforms.ToTensor(), transforms.Normalize((mean / 255).tolist(), (std / 255).tolist())]
        )
        images_of = TransformedImages(self.data["image"], self.data["label"], transform)
        return DataLoader(
            images_of, batch_size=self.case.batch_size, shuffle=True, drop_last=True, num_workers=num_workers
        )


class TransformedImages(Dataset[Any]):
    """Images as a tutorial's data set gives them: transformed one by one."""

    def __init__(self, pixels: NDArray[Any], labels: NDArray[Any], transform: Callable[[Any], Any]) -> None:
        self.pixels, self.labels, self.transform = pixels, labels, transform

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.pixels[index]), int(self.labels[index])


def autocast(precision: str) -> contextlib.AbstractContextManager[Any]:
    if precision == "bf16":
        return torch.autocast("cpu", dtype=torch.bfloat16)
    return contextlib.nullcontext()


def tutorial(stage: Stage, precision: str, num_workers: int) -> None:
    """The loop of torch's own tutorials."""
    loader = stage.loader(num_workers)
    network = stage.network()
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    running_loss = 0.0
    for inputs, labels in loader:
        optimizer.zero_grad()
        with autocast(precision):
            loss = criterion(network(inputs), labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()


def lightning(stage: Stage, precision: str) -> None:
    """Lightning's Trainer with everything switched off that is not training."""
    import lightning as pl

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    network = stage.network()

    class Classifier(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def training_step(self, batch: Any, _: int) -> torch.Tensor:
            inputs, labels = batch
            return F.cross_entropy(self.network(inputs), labels)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=LEARNING_RATE)

    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        precision={"fp32": "32-true", "bf16": "bf16-mixed"}[precision],
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on the number of workers, among others
        trainer.fit(Classifier(), stage.loader(stage.num_workers))


def accelerate(stage: Stage, precision: str) -> None:
    """The tutorials' loop with Accelerate's three lines."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    # Its state is one for the process; without this a second precision is refused.
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, mixed_precision={"fp32": "no", "bf16": "bf16"}[precision])
    network = stage.network()
    model, optimizer, loader = accelerator.prepare(
        network,
        torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE),
        stage.loader(stage.num_workers),
    )
    for inputs, labels in loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(inputs), labels)
        accelerator.backward(loss)
        optimizer.step()


def expert(stage: Stage, precision: str) -> None:
    """By hand, with all that is known to help: batches gathered from memory and transformed as a whole,
    channels-last, a fused optimizer."""
    pixels = torch.from_numpy(stage.data["image"])
    labels = torch.from_numpy(stage.data["label"])
    mean, std = (torch.from_numpy(moment).view(-1, 1, 1) for moment in stage.moments)
    network: Any = stage.network()
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, fused=True)
    for rows in torch.randperm(len(labels)).split(stage.case.batch_size):
        inputs = pixels[rows].permute(0, 3, 1, 2).float().sub_(mean).div_(std)
        optimizer.zero_grad()
        with autocast(precision):
            loss = F.cross_entropy(network(inputs), labels[rows])
        loss.backward()
        optimizer.step()


class Driver:
    """Takes a worker's letters as the driver does: pickled, and acknowledged."""

    def exchange(self, letter: Letter) -> Reply:
        arrived: Letter = pickle.loads(pickle.dumps(letter))
        return Reply(arrived.first + len(arrived.points))


def ours(stage: Stage, precision: str, rank: int = 0, world_size: int = 1) -> None:
    """The engine on the case's job. Collective where there are several ranks."""
    train_by_engine(stage.case.spec(precision), stage.prepared, stage.storage, rank, world_size)


def train_by_engine(
    spec: JobSpec, prepared: Prepared, storage: Path, rank: int = 0, world_size: int = 1
) -> None:
    """Train as a worker does: through the loop, with every step logged and carried to a driver. No checkpoint
    is saved. Collective where there are several ranks."""
    recipe = build_recipe(spec, prepared)
    run = RunFolder(Folder.at(storage), spec.name, 1)
    link = WorkerLink(rank=rank, world_size=world_size, channel=Driver()).start()
    try:
        attempt = start_attempt(recipe, link, checkpoint_store(spec, run), spec.checkpoint)
        # Saving comes after an epoch's last step; it would only keep the disk busy for the next turn.
        attempt.save = lambda: None  # type: ignore[method-assign]
        train(attempt)
    finally:
        link.close()
