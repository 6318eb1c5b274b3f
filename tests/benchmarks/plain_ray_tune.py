"""The peers of the search benchmark: what one writes by hand with Ray Tune, and with Ray Tune and Ray Train.

Arguments: the way (`trainer`: each trial runs a TorchTrainer, as Ray documents it for Ray Train V2; `function`: each
trial is the loop itself), trials, workers of each trial, trials at once, and a folder. The same network, data, batch
and search space as the benchmark's spec, a report each epoch; no checkpoints, and no MLflow. The last line of the
output is the times at which trials ended, as JSON.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback
from sklearn.datasets import load_digits

EPOCHS = 5
BATCH = 64
LR = (1e-4, 1e-1)


def network() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Flatten(),
        torch.nn.Linear(64, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 64),
        torch.nn.ReLU(),
        torch.nn.Linear(64, 10),
    )


def epochs(model: torch.nn.Module, lr: float, rank: int = 0, world: int = 1) -> Any:
    """Train; yields the loss on the validation part after each epoch."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)
    labels = torch.tensor(digits.target)
    images = (images - images[:1258].mean()) / images[:1258].std()
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    for epoch in range(EPOCHS):
        order = torch.randperm(1258, generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(BATCH):
            mine = batch.tensor_split(world)[rank]
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(images[mine]), labels[mine])
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            yield torch.nn.functional.cross_entropy(model(images[1258:1527]), labels[1258:1527]).item()


def one_trial(config: dict[str, Any]) -> None:
    """A trial that is the loop itself."""
    for loss in epochs(network(), config["lr"]):
        tune.report({"val_loss": loss})


def one_worker(config: dict[str, Any]) -> None:
    """What each worker of a trainer does."""
    context = ray.train.get_context()
    model = ray.train.torch.prepare_model(network())
    for loss in epochs(model, config["lr"], context.get_world_rank(), context.get_world_size()):
        ray.train.report({"val_loss": loss})


def one_trainer(config: dict[str, Any]) -> None:
    """A trial that runs a trainer with workers of its own."""
    ray.train.torch.TorchTrainer(
        one_worker,
        train_loop_config={"lr": config["lr"]},
        scaling_config=ray.train.ScalingConfig(num_workers=config["workers"]),
        run_config=ray.train.RunConfig(
            name=f"trial-{tune.get_context().get_trial_id()}",
            storage_path=config["folder"],
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


class Clock(tune.Callback):  # type: ignore[misc]
    """When trials ended."""

    def __init__(self) -> None:
        self.ended_s: list[float] = []

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ended_s.append(time.time())


def main() -> None:
    way, (trials, workers, at_once) = sys.argv[1], map(int, sys.argv[2:5])
    folder = Path(sys.argv[5]).resolve()
    # The trials' own processes share one CPU more than there are, so that their workers always find theirs.
    extra = 1 if way == "trainer" else 0
    ray.init("local", num_cpus=max(os.cpu_count() or 1, workers * at_once) + extra)
    each = {"CPU": 1 / at_once} if way == "trainer" else {"CPU": 1}
    clock = Clock()
    results = tune.Tuner(
        tune.with_resources(one_trainer if way == "trainer" else one_trial, each),
        param_space={"lr": tune.loguniform(*LR), "workers": workers, "folder": str(folder / "train")},
        tune_config=tune.TuneConfig(
            metric="val_loss", mode="min", num_samples=trials, max_concurrent_trials=at_once
        ),
        run_config=tune.RunConfig(
            name="search", storage_path=str(folder / "tune"), callbacks=[clock], verbose=0
        ),
    ).fit()
    if results.num_errors or len(results) != trials:
        sys.exit(f"{results.num_errors} of {len(results)} trials failed: {results.errors[:1]}")
    print(json.dumps({"ended_s": clock.ended_s, "best": results.get_best_result().metrics["val_loss"]}))


if __name__ == "__main__":
    main()
