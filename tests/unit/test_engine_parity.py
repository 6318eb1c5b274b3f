"""The loop against plain torch loops, written here the way a tutorial would: the same weights, bit for bit."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from orchestrator.data.prepared.order import epoch_permutation
from orchestrator.engine.attempt import Attempt
from orchestrator.engine.loop import train
from orchestrator.engine.recipe import Recipe
from orchestrator.engine.seed import seed_everything
from orchestrator.spec import load_spec
from tests.unit.engine_case import case_attempt, case_data, case_spec
from tests.unit.engine_tasks import TASKS, Loss, Task

ADAMW = {"kind": "adamw", "lr": 0.01}
DIGITS = Task(
    {
        "source": {"kind": "sklearn", "name": "digits"},
        "target": "label",
        "split": {"kind": "stratified", "train": 0.2, "val": 0.1, "test": 0.7},
        "transforms": [{"kind": "standardize"}],
    },
    {"name": "cnn", "args": {"channels": [4], "hidden": 8}},
    F.cross_entropy,
)

MakeOptimizer = Callable[[Any], torch.optim.Optimizer]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.01, fused=True)


def plain_loop(
    recipe: Recipe,
    loss_of: Loss,
    make: MakeOptimizer = adamw,
    *,
    microbatch: int | None = None,
    dtype: torch.dtype | None = None,
    clip: float | None = None,
    schedule: Callable[[torch.optim.Optimizer, int], Any] | None = None,
) -> torch.nn.Module:
    """Epochs over the same batches, with nothing of ours but the network, the rows, and their order."""
    part, size = recipe.train_part, recipe.train.global_batch_size
    everything = part.gather(np.arange(part.num_rows))
    inputs = recipe.pipeline.transform(everything.features)
    targets = recipe.pipeline.transform_targets(everything.targets)
    seed_everything(recipe.seed)
    model = recipe.build()
    if any(isinstance(module, torch.nn.Conv2d) for module in model.modules()):
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    optimizer = make(model.parameters())
    course = schedule(optimizer, recipe.total_steps) if schedule else None
    for epoch in range(recipe.train.max_epochs):
        order = torch.from_numpy(epoch_permutation(part.num_rows, recipe.seed, epoch))
        for rows in order.split(size):
            optimizer.zero_grad()
            for some in rows.split(microbatch or len(rows)):
                context = torch.autocast("cpu", dtype=dtype) if dtype else contextlib.nullcontext()
                with context:
                    outputs = model(inputs[some])
                loss = loss_of(outputs.float(), targets[some])
                (loss * len(some) / len(rows)).backward()
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            if course is not None:
                course.step()
    return model


def trained(task: Task, storage: Path, **section: Any) -> Attempt:
    torch.set_num_threads(1)
    attempt = case_attempt(load_spec(task.sections(**section)).spec, storage)
    train(attempt)
    return attempt


def assert_equal(attempt: Attempt, reference: torch.nn.Module, *, exactly: bool = True) -> None:
    theirs = dict(reference.named_parameters())
    for name, ours in attempt.model.named_parameters():
        if exactly:
            assert torch.equal(ours, theirs[name]), name
        else:
            torch.testing.assert_close(ours, theirs[name], rtol=2e-4, atol=2e-5, msg=name)


@pytest.mark.parametrize("name", TASKS)
def test_every_task(tmp_path: Path, name: str) -> None:
    """The loss is divided after the sum here and in the mean there: equal but for the last bits."""
    attempt = trained(TASKS[name], tmp_path, optimizer=ADAMW)
    assert attempt.position.step == attempt.recipe.total_steps > 4
    assert_equal(attempt, plain_loop(attempt.recipe, TASKS[name].loss), exactly=False)


@pytest.mark.parametrize(
    ("section", "make"),
    [
        (ADAMW, adamw),
        (
            {"kind": "sgd", "lr": 0.05, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
            lambda parameters: torch.optim.SGD(
                parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01, fused=True
            ),
        ),
        (
            {"kind": "adam", "lr": 0.01, "weight_decay": 0.1},
            lambda parameters: torch.optim.Adam(parameters, lr=0.01, weight_decay=0.1, fused=True),
        ),
        (
            {"kind": "rmsprop", "lr": 0.002, "momentum": 0.5},
            lambda parameters: torch.optim.RMSprop(parameters, lr=0.002, momentum=0.5),
        ),
        (
            {"kind": "adagrad", "lr": 0.02},
            lambda parameters: torch.optim.Adagrad(parameters, lr=0.02, fused=True),
        ),
    ],
    ids=lambda value: value["kind"] if isinstance(value, dict) else "",
)
def test_every_optimizer(tmp_path: Path, section: dict[str, Any], make: MakeOptimizer) -> None:
    attempt = trained(DIGITS, tmp_path, optimizer=section)
    assert_equal(attempt, plain_loop(attempt.recipe, F.cross_entropy, make), exactly=False)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("microbatch", [None, 7])
def test_precision_and_accumulation(tmp_path: Path, precision: str, microbatch: int | None) -> None:
    attempt = trained(
        DIGITS, tmp_path, optimizer=ADAMW, precision=precision, microbatch_size=microbatch, clip_grad_norm=0.5
    )
    reference = plain_loop(
        attempt.recipe,
        F.cross_entropy,
        microbatch=microbatch,
        dtype=torch.bfloat16 if precision == "bf16" else None,
        clip=0.5,
    )
    if precision == "fp32":
        assert_equal(attempt, reference, exactly=False)
    else:  # bf16 keeps 8 bits: what differs in the last bit of fp32 may round to the other side
        for ours, theirs in zip(attempt.model.parameters(), reference.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("section", "schedule"),
    [
        (
            {"kind": "cosine"},
            lambda optimizer, steps: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
        ),
        (
            {"kind": "one_cycle"},
            lambda optimizer, steps: torch.optim.lr_scheduler.OneCycleLR(
                optimizer, 0.01, steps, cycle_momentum=False
            ),
        ),
        (
            {"kind": "constant", "warmup_steps": 4},
            lambda optimizer, steps: torch.optim.lr_scheduler.LinearLR(optimizer, 1 / 5, 1.0, 4),
        ),
    ],
    ids=["cosine", "one_cycle", "warm-up"],
)
def test_schedules_in_the_loop(tmp_path: Path, section: dict[str, Any], schedule: Any) -> None:
    attempt = trained(DIGITS, tmp_path, optimizer=ADAMW, schedule=section)
    assert_equal(attempt, plain_loop(attempt.recipe, F.cross_entropy, schedule=schedule), exactly=False)


def test_one_process_is_a_tutorials_loop_bit_for_bit(tmp_path: Path) -> None:
    """A power of two as batch size, so that dividing by it first or last gives the same bits."""
    spec = case_spec(train={"global_batch_size": 64, "drop_last": True, "schedule": {"kind": "constant"}})
    torch.set_num_threads(1)
    attempt = case_attempt(spec, tmp_path)
    train(attempt)

    # The reference reads scikit-learn's arrays itself, and standardises by the training rows alone.
    rows = case_data(spec, tmp_path).part("train").source_rows()
    digits = load_digits()
    images = torch.from_numpy(digits.images[rows]).float().unsqueeze(1)
    images = (images - digits.images[rows].mean()) / digits.images[rows].std()
    labels = torch.from_numpy(digits.target[rows])
    ours = attempt.recipe.pipeline.transform(attempt.recipe.train_part.gather(np.arange(len(rows))).features)
    torch.testing.assert_close(images.float(), ours, rtol=1e-5, atol=1e-6)
    seed_everything(3)
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10)
    )
    optimizer = adamw(model.parameters())
    for epoch in range(3):
        order = torch.from_numpy(epoch_permutation(len(labels), 3, epoch))
        for batch in order.split(64)[: len(labels) // 64]:
            optimizer.zero_grad()
            # Statistics may differ in the last bit (sums in another order): both loops take ours.
            F.cross_entropy(model(ours[batch]), labels[batch]).backward()
            optimizer.step()
    for one, other in zip(attempt.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_accumulated_microbatches_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    whole = case_attempt(case_spec(), tmp_path, run="whole-1")
    parts = case_attempt(case_spec(train={"microbatch_size": 7}), tmp_path, run="parts-1")
    for attempt in (whole, parts):
        train(attempt)
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
