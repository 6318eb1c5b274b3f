"""The loop against a plain torch loop, written here the way a tutorial would: same weights, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from orchestrator.data.order import epoch_permutation
from orchestrator.engine.loop import train
from orchestrator.engine.seed import seed_everything
from tests.unit.engine_case import case_attempt, case_data, case_spec


def plain_loop(images: torch.Tensor, labels: torch.Tensor, *, seed: int, sgd: bool) -> torch.nn.Module:
    """Three epochs over the same batches, without anything of ours but the order of the samples."""
    seed_everything(seed)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10)
    )
    if sgd:
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            model.parameters(), lr=0.05, momentum=0.9, fused=True
        )
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.01, fused=True)
    steps = 3 * int(np.ceil(len(labels) / 50))
    warm_up = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            (step + 1) / 4 if step < 3 else 0.5 * (1 + np.cos(np.pi * min(1.0, (step - 3) / (steps - 3))))
        ),
    )
    for epoch in range(3):
        order = torch.from_numpy(epoch_permutation(len(labels), seed, epoch))
        for rows in order.split(50):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
            warm_up.step()
    return model


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_weights_equal_a_plain_loop_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    section = (
        {"kind": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
        if optimizer == "sgd"
        else {"kind": "adamw", "lr": 0.01}
    )
    spec = case_spec(train={"optimizer": section})
    torch.set_num_threads(1)
    attempt = case_attempt(spec, tmp_path)
    train(attempt)

    # The reference reads scikit-learn's arrays itself, and standardises by the training rows alone.
    rows = case_data(spec, tmp_path).part("train").source_rows()
    digits = load_digits()
    images = torch.from_numpy(digits.images[rows]).float().unsqueeze(1)
    images = (images - digits.images[rows].mean()) / digits.images[rows].std()
    labels = torch.from_numpy(digits.target[rows])
    if not torch.equal(
        images,
        attempt.recipe.pipeline.transform(attempt.recipe.train_part.gather(np.arange(len(rows))).features),
    ):
        # Statistics may differ in the last bit (sums in another order): then both loops take ours.
        ours = attempt.recipe.pipeline.transform(
            attempt.recipe.train_part.gather(np.arange(len(rows))).features
        )
        torch.testing.assert_close(images.float(), ours, rtol=1e-5, atol=1e-6)
        images = ours
    reference = plain_loop(images.float(), labels, seed=3, sgd=optimizer == "sgd")
    for ours_parameter, theirs in zip(attempt.model.parameters(), reference.parameters(), strict=True):
        assert torch.equal(ours_parameter, theirs)


def test_accumulated_microbatches_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    whole = case_attempt(case_spec(), tmp_path, run="whole-1")
    parts = case_attempt(case_spec(train={"microbatch_size": 7}), tmp_path, run="parts-1")
    for attempt in (whole, parts):
        train(attempt)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
