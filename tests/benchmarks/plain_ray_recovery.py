"""The peer of the recovery benchmark: what one writes by hand with Ray Train V2 to survive faults.

Arguments: a folder that all nodes share, and seconds that a step takes. The same network, data and batch as
`tests/faults/case.py`, a checkpoint each epoch, failures retried without end. Rank 0 appends the time of each
optimizer step to `steps` in the folder.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model
from sklearn.datasets import load_digits


def train(config: dict[str, Any]) -> None:
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:1258]
    labels = torch.tensor(digits.target)[:1258]
    images = (images - images.mean()) / images.std()
    model = prepare_model(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    first_epoch = 0
    checkpoint = ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as folder:
            state = torch.load(Path(folder) / "state.pt", weights_only=True)
        model.module.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch = state["epoch"] + 1
    for epoch in range(first_epoch, 10_000):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(100):
            mine = batch.tensor_split(world)[rank]
            time.sleep(config["step_s"])
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images[mine]), labels[mine])
            loss.backward()
            optimizer.step()
            if rank == 0:
                with (Path(config["folder"]) / "steps").open("a") as file:
                    print(time.time_ns() // 1_000_000, file=file)
        with tempfile.TemporaryDirectory() as folder:
            saved = None
            if rank == 0:
                state = {
                    "model": model.module.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "epoch": epoch,
                }
                torch.save(state, Path(folder) / "state.pt")
                saved = Checkpoint.from_directory(folder)
            ray.train.report({"loss": loss.item()}, checkpoint=saved)


if __name__ == "__main__":
    folder, step_s = sys.argv[1:]
    ray.init()
    TorchTrainer(
        train,
        train_loop_config={"folder": folder, "step_s": float(step_s)},
        scaling_config=ScalingConfig(num_workers=2, placement_strategy="SPREAD"),
        run_config=RunConfig(
            name="peer", storage_path=f"{folder}/ray", failure_config=FailureConfig(max_failures=-1)
        ),
    ).fit()
