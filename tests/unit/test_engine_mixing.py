"""Mixed samples in the engine: losses of soft targets, a plain loop's weights, the same for any microbatch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.augment.mixing import draw_mix
from orchestrator.data.prepared.order import epoch_permutation, rank_slice
from orchestrator.engine.attempt import Attempt
from orchestrator.engine.loop import train
from orchestrator.engine.objective.evaluate import evaluate
from orchestrator.engine.objective.objective import Objective, build_objective
from orchestrator.engine.recipe import Placement, Recipe, augment_plan, training_batch
from orchestrator.engine.seed import seed_everything
from orchestrator.engine.step import global_weight
from orchestrator.errors import UsageError
from orchestrator.spec import load_spec
from orchestrator.spec.data import Mixup
from orchestrator.spec.train import Loss
from tests.unit.engine_case import case_attempt
from tests.unit.engine_tasks import TASKS, Task

CPU = Placement(torch.device("cpu"))
MIXUP: dict[str, Any] = {"kind": "mixup", "alpha": 0.8}
ADAMW = {"kind": "adamw", "lr": 0.01}
DIGITS = Task(
    {
        "source": {"kind": "sklearn", "name": "digits"},
        "target": "label",
        "split": {"kind": "stratified", "train": 0.1, "val": 0.1, "test": 0.8},
        "transforms": [{"kind": "standardize"}],
    },
    {"name": "cnn", "args": {"channels": [4], "hidden": 8}},
    F.cross_entropy,
)
CLASS_WEIGHTS = [0.5, 1.0, 1.5, 2.0, 0.7, 1.0, 3.0, 0.2, 1.0, 1.1]

OBJECTIVES: list[tuple[str, int, dict[str, Any]]] = [
    ("multiclass", 4, {}),
    ("multiclass", 4, {"label_smoothing": 0.2, "class_weights": [0.5, 1.0, 2.0, 4.0]}),
    ("binary", 1, {"class_weights": [3.0]}),
    ("multilabel", 3, {"class_weights": [1.0, 2.0, 4.0]}),
]


def hard(task: str, num_outputs: int, n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs, and targets as a part stores them."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n,) if task == "binary" else (n, num_outputs)
    outputs = torch.randn(*shape, generator=generator)
    if task == "multilabel":
        return outputs, torch.randint(0, 2, shape, generator=generator).float()
    return outputs, torch.randint(0, max(2, num_outputs), (n,), generator=generator)


def weights_of(objective: Objective, targets: torch.Tensor) -> torch.Tensor:
    weights = objective.weights(targets)
    return torch.ones(len(targets)) if weights is None else weights


@given(case=st.sampled_from(OBJECTIVES), seed=st.integers(0, 99), share=st.floats(0, 1))
def test_the_loss_of_a_mix_is_the_mix_of_the_losses(
    case: tuple[str, int, dict[str, Any]], seed: int, share: float
) -> None:
    task, num_outputs, loss = case
    objective = build_objective(task, Loss.model_validate(loss), num_outputs=num_outputs)
    outputs, one = hard(task, num_outputs, 6, seed)
    other = hard(task, num_outputs, 6, seed + 1000)[1]
    soft, soft_other = objective.soft_targets(one), objective.soft_targets(other)
    assert soft.dtype == torch.float32
    torch.testing.assert_close(objective.losses(outputs, soft), objective.losses(outputs, one))
    torch.testing.assert_close(weights_of(objective, soft), weights_of(objective, one))
    mixed = torch.lerp(soft, soft_other, share)
    wanted = (1 - share) * objective.losses(outputs, one) + share * objective.losses(outputs, other)
    torch.testing.assert_close(objective.losses(outputs, mixed), wanted, rtol=1e-4, atol=1e-5)
    wanted = (1 - share) * weights_of(objective, one) + share * weights_of(objective, other)
    torch.testing.assert_close(weights_of(objective, mixed), wanted, rtol=1e-4, atol=1e-5)


def started(task: Task, storage: Path, augment: Sequence[dict[str, Any]], **section: Any) -> Attempt:
    torch.set_num_threads(1)
    sections = task.sections(optimizer=ADAMW, **section)
    sections["data"] = sections["data"] | {"augment": list(augment)}
    return case_attempt(load_spec(sections).spec, storage)


def plain_mixup(
    recipe: Recipe, loss_of: Any, *, weights: Sequence[float] | None = None, regression: bool = False
) -> torch.nn.Module:
    """A tutorial's loop: mixes sample by sample; `loss_of(outputs, targets)` are hard samples' losses, (n,)."""
    part, size = recipe.train_part, recipe.train.global_batch_size
    everything = part.gather(np.arange(part.num_rows))
    inputs = recipe.pipeline.transform(everything.features)
    targets = recipe.pipeline.transform_targets(everything.targets)
    weight = torch.tensor(weights)[targets] if weights else torch.ones(part.num_rows)
    seed_everything(recipe.seed)
    model = recipe.build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.01, fused=True)
    for epoch in range(recipe.train.max_epochs):
        for rows in np.split(
            epoch_permutation(part.num_rows, recipe.seed, epoch), range(size, part.num_rows, size)
        ):
            mix = draw_mix(
                Mixup.model_validate(MIXUP), seed=recipe.seed, epoch=epoch, index=0,
                rows=rows, blocks=part.blocks, input_shape=(),
            )  # fmt: skip
            mixed, losses_weight, lines = [], torch.zeros(()), []
            for row, partner, share in zip(rows, mix.partners, mix.share, strict=True):
                mixed.append((1 - share) * inputs[row] + share * inputs[partner])
                losses_weight = losses_weight + (1 - share) * weight[row] + share * weight[partner]
                lines.append((int(row), int(partner), float(share)))
            outputs = model(torch.stack(mixed).float())
            total = torch.zeros(())
            for output, (row, partner, share) in zip(outputs, lines, strict=True):
                if regression:
                    target = (1 - share) * targets[row] + share * targets[partner]
                    total = total + loss_of(output[None], target[None].float())[0]
                else:
                    own, other = (loss_of(output[None], targets[index, None])[0] for index in (row, partner))
                    total = total + (1 - share) * own + share * other
            optimizer.zero_grad()
            (total / losses_weight).backward()
            optimizer.step()
    return model


def bce(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(outputs.squeeze(1), targets.float(), reduction="none")


def labels_bce(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(1)


def squared(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(outputs.squeeze(1), targets, reduction="none")


def weighted(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(
        outputs, targets, weight=torch.tensor(CLASS_WEIGHTS), label_smoothing=0.1, reduction="none"
    )


@pytest.mark.parametrize(
    ("task", "loss", "reference", "weights"),
    [
        (DIGITS, {}, lambda outputs, targets: F.cross_entropy(outputs, targets, reduction="none"), None),
        (DIGITS, {"class_weights": CLASS_WEIGHTS, "label_smoothing": 0.1}, weighted, CLASS_WEIGHTS),
        (TASKS["binary"], {}, bce, None),
        (TASKS["multilabel"], {}, labels_bce, None),
        (TASKS["regression"], {}, squared, None),
    ],
    ids=["digits", "weighted", "binary", "multilabel", "regression"],
)
@pytest.mark.parametrize("microbatch", [None, 7])
def test_mixup_is_a_plain_loops(
    tmp_path: Path, task: Task, loss: dict[str, Any], reference: Any, weights: Any, microbatch: int | None
) -> None:
    attempt = started(task, tmp_path, [MIXUP], loss=loss, microbatch_size=microbatch)
    train(attempt)
    theirs = plain_mixup(attempt.recipe, reference, weights=weights, regression=task is TASKS["regression"])
    assert attempt.position.step > 4
    for ours, wanted in zip(attempt.model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-3, atol=1e-4)


CHAIN: list[dict[str, Any]] = [
    {"kind": "crop", "padding": 1},
    MIXUP | {"p": 0.5},
    {"kind": "cutmix", "p": 0.5},
    {"kind": "rand_augment"},
]


@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_ranks_share_one_batch(tmp_path: Path, world_size: int) -> None:
    attempt = started(DIGITS, tmp_path, CHAIN, loss={"class_weights": CLASS_WEIGHTS})
    rows = epoch_permutation(attempt.recipe.train_part.num_rows, 3, 1)[:32]
    whole = training_batch(attempt.recipe, CPU, rows, 1)
    shares = [
        training_batch(attempt.recipe, CPU, rows[rank_slice(32, rank, world_size)], 1)
        for rank in range(world_size)
    ]
    assert whole[0].shape == (32, 1, 8, 8)
    assert whole[1].shape == (32, 10)
    torch.testing.assert_close(torch.cat([inputs for inputs, _ in shares]), whole[0])
    assert torch.equal(torch.cat([targets for _, targets in shares]), whole[1])
    assert not torch.equal(training_batch(attempt.recipe, CPU, rows, 2)[1], whole[1])
    # Each rank finds the weights of the whole batch by itself.
    attempt.position.epoch = 1
    wanted = float((whole[1].double() @ torch.tensor(CLASS_WEIGHTS).double()).sum())
    gathered = attempt.recipe.train_part.gather_targets(augment_plan(attempt.recipe, rows, 1).rows)
    assert global_weight(attempt, rows, gathered) == pytest.approx(wanted)


def test_bytes_are_augmented_as_pixels(tmp_path: Path) -> None:
    """No change gives back the standardised bytes, and a negative that of the bytes, from 0 to 255."""
    data = DIGITS.data | {"source": {"kind": "python", "function": f"{__name__}:bytes_of_digits"}}
    task = Task(data | {"target": "label"}, DIGITS.model, F.cross_entropy)

    def batch(*names: str) -> torch.Tensor:
        augment = [{"kind": "torchvision", "name": name, "args": {"p": 1.0}} for name in names]
        recipe = started(task, tmp_path, augment).recipe
        return training_batch(recipe, CPU, np.arange(20), 0)[0]

    plain, negative = batch(), batch("RandomInvert")
    torch.testing.assert_close(batch("RandomInvert", "RandomInvert"), plain, rtol=1e-4, atol=1e-4)
    ends = torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1).expand(2, 8, 8, 1)
    low, high = started(task, tmp_path, []).recipe.pipeline.transform(ends)
    torch.testing.assert_close(plain + negative, (low + high).expand_as(plain), rtol=1e-4, atol=1e-4)


def bytes_of_digits() -> dict[str, Any]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return {"image": (digits.images * 15).astype(np.uint8), "label": digits.target}


def test_validation_is_not_augmented(tmp_path: Path) -> None:
    losses = []
    for augment in (CHAIN[:0], CHAIN):
        attempt = started(DIGITS, tmp_path, augment)
        recipe = attempt.recipe
        assert recipe.val_part is not None
        found = evaluate(
            attempt.model, recipe.val_part, recipe.pipeline, recipe.objective, ["accuracy"],
            num_outputs=10, placement=CPU, batch_size=16,
        )  # fmt: skip
        losses.append(found.named("val"))
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("name", "kind", "loss", "message"),
    [
        ("multiclass", "mixup", {"name": "focal"}, r"\(mixup\) mixes targets.*train.loss: cross_entropy"),
        ("binary", "mixup", {"name": "focal"}, r"train.loss: bce"),
        ("multilabel", "mixup", {"name": "torch.nn:BCEWithLogitsLoss"}, r"train.loss cannot take.*bce"),
        ("multiclass", "mixup", {"name": "torch.nn:CrossEntropyLoss"}, r"train.loss cannot take"),
        ("sequence", "mixup", {}, r"augment \(mixup\).*token ids"),
        ("language_modeling", "mixup", {}, "token ids"),
        ("regression", "cutmix", {}, "cutmix"),
    ],
)
def test_what_cannot_learn_mixed_targets_is_refused_at_the_start(
    tmp_path: Path, name: str, kind: str, loss: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        started(TASKS[name], tmp_path, [{"kind": kind}], loss=loss)


def test_tasks_that_take_no_mixed_targets() -> None:
    regression = build_objective("regression", Loss(name="torch.nn:MSELoss"), num_outputs=1)
    regression.check_augment(["mixup", "flip"])
    with pytest.raises(UsageError, match=r"mixes classes.*regression\. write mixup"):
        regression.check_augment(["cutmix"])
    focal = build_objective("binary", Loss(name="focal"), num_outputs=1)
    focal.check_augment(["flip", "rand_augment"])
    model = build_objective("language_modeling", Loss(), num_outputs=7)
    with pytest.raises(UsageError, match=r"a language model cannot take\. leave it out$"):
        model.check_augment(["mixup"])
