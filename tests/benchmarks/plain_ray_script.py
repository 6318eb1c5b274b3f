"""The peer of the start-up benchmark: what one writes by hand with Ray Train and MLflow, and nothing else.

Arguments: the MLflow tracking URI, a file that gets the time of the first optimizer step, the number of epochs,
and optionally the address of a running cluster. The same network, data, batch and logging as `jobs/digits.yaml`.
"""

import sys
import time
from pathlib import Path
from typing import Any

import mlflow
import ray
import ray.train
import torch
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer, prepare_model
from sklearn.datasets import load_digits


def network() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(32, 64, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(256, 128),
        torch.nn.ReLU(),
        torch.nn.Linear(128, 10),
    )


def train(config: dict[str, Any]) -> None:
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1)[:1258]
    labels = torch.tensor(digits.target)[:1258]
    images = (images - images.mean()) / images.std()
    model = prepare_model(network())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.002)
    if rank == 0:
        mlflow.set_tracking_uri(config["tracking_uri"])
        mlflow.set_experiment("plain")
        mlflow.start_run()
    step = 0
    for epoch in range(config["epochs"]):
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(64):
            mine = batch.tensor_split(world)[rank]
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images[mine]), labels[mine])
            loss.backward()
            optimizer.step()
            step += 1
            if rank == 0:
                if step == 1:
                    Path(config["first_step"]).write_text(str(time.time()))
                mlflow.log_metric("train/loss", loss.item(), step=step)
    if rank == 0:
        mlflow.end_run()


if __name__ == "__main__":
    tracking_uri, first_step, epochs, *address = sys.argv[1:]
    ray.init(address=address[0] if address else "local")
    TorchTrainer(
        train,
        train_loop_config={"tracking_uri": tracking_uri, "first_step": first_step, "epochs": int(epochs)},
        scaling_config=ScalingConfig(num_workers=2),
    ).fit()
