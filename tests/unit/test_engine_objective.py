"""Losses and weights against torch's own mean losses and formulas written out here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_class_weight

from orchestrator.engine.objective.objective import Objective, build_objective
from orchestrator.errors import DataError, UsageError, UserCodeError
from orchestrator.spec.train import Loss

CLASSES, LABELS, LENGTH, VOCABULARY = 4, 3, 5, 7
WEIGHTS = [0.5, 1.0, 2.0, 3.5]
Case = tuple[torch.Tensor, torch.Tensor]
Mean = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def case(task: str, n: int = 11, seed: int = 0) -> Case:
    """Logits as a network gives them, and targets."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64) * 2

    def integers(top: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, top, shape, generator=generator)

    if task == "multiclass":
        return normal(n, CLASSES), integers(CLASSES, n)
    if task == "binary":
        return normal(n, 1), integers(2, n)
    if task == "multilabel":
        return normal(n, LABELS), integers(2, n, LABELS).double()
    if task == "regression":
        return normal(n, 1), normal(n)
    targets = integers(VOCABULARY, n, LENGTH)
    lengths = integers(LENGTH + 1, n)
    lengths[0] = 0  # nothing but padding
    return normal(n, LENGTH, VOCABULARY), targets.masked_fill(torch.arange(LENGTH) >= lengths[:, None], -100)


def objective_of(task: str, loss: dict[str, object], counts: Sequence[int] | None = None) -> Objective:
    num_outputs = {"multiclass": CLASSES, "multilabel": LABELS, "language_modeling": VOCABULARY}.get(task, 1)
    return build_objective(
        task, Loss.model_validate(loss), num_outputs=num_outputs, class_counts=counts, num_samples=20
    )


def whole_loss(objective: Objective, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    weights = objective.weights(targets)
    losses = objective.losses(objective.shape_outputs(outputs), targets)
    assert losses.shape == (len(targets),)
    assert weights is None or weights.shape == (len(targets),)
    return losses.sum() / (len(targets) if weights is None else weights.sum())


def tensor(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def tokens(**settings: object) -> Mean:
    return lambda outputs, targets: F.cross_entropy(outputs.transpose(1, 2), targets, **settings)  # type: ignore[arg-type]


def focal_by_class(gamma: float, weights: Sequence[float]) -> Mean:
    """Sample by sample, from probabilities."""

    def mean(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        terms, total = [], 0.0
        for scores, target in zip(outputs.softmax(1), targets.tolist(), strict=True):
            p, weight = scores[target], weights[target]
            terms.append(-weight * (1 - p) ** gamma * p.log())
            total += weight
        return torch.stack(terms).sum() / total

    return mean


def focal_by_answer(gamma: float, weights: Sequence[float]) -> Mean:
    """Outputs of shape (n, labels); the mean over everything."""

    def mean(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        p, y = outputs.sigmoid(), targets.view_as(outputs).double()
        terms = -tensor(weights) * y * (1 - p) ** gamma * p.log() - (1 - y) * p**gamma * (1 - p).log()
        return terms.mean()

    return mean


def flat(function: Callable[..., torch.Tensor], **settings: object) -> Mean:
    return lambda outputs, targets: function(outputs.squeeze(1), targets.double(), **settings)


CASES: list[tuple[str, dict[str, object], Mean]] = [
    ("multiclass", {}, F.cross_entropy),
    (
        "multiclass",
        {"name": "cross_entropy", "label_smoothing": 0.2, "class_weights": WEIGHTS},
        lambda o, t: F.cross_entropy(o, t, weight=tensor(WEIGHTS), label_smoothing=0.2),
    ),
    ("multiclass", {"name": "focal"}, focal_by_class(2.0, [1, 1, 1, 1])),
    ("multiclass", {"name": "focal", "gamma": 0.5, "class_weights": WEIGHTS}, focal_by_class(0.5, WEIGHTS)),
    (
        "multiclass",
        {"name": "focal", "gamma": 0.0, "class_weights": WEIGHTS},
        lambda o, t: F.cross_entropy(o, t, weight=tensor(WEIGHTS)),
    ),
    ("binary", {}, flat(F.binary_cross_entropy_with_logits)),
    ("binary", {"class_weights": [3.0]}, flat(F.binary_cross_entropy_with_logits, pos_weight=tensor([3.0]))),
    ("binary", {"name": "focal", "gamma": 1.5, "class_weights": [3.0]}, focal_by_answer(1.5, [3.0])),
    ("multilabel", {}, F.binary_cross_entropy_with_logits),
    (
        "multilabel",
        {"name": "bce", "class_weights": [1.0, 2.0, 4.0]},
        lambda o, t: F.binary_cross_entropy_with_logits(o, t, pos_weight=tensor([1.0, 2.0, 4.0])),
    ),
    ("multilabel", {"name": "focal", "class_weights": [1.0, 2.0, 4.0]}, focal_by_answer(2.0, [1, 2, 4])),
    ("regression", {}, flat(F.mse_loss)),
    ("regression", {"name": "l1"}, flat(F.l1_loss)),
    ("regression", {"name": "huber", "delta": 0.3}, flat(F.huber_loss, delta=0.3)),
    ("language_modeling", {}, tokens()),
    (
        "language_modeling",
        {"label_smoothing": 0.1, "class_weights": [1.0, 2, 3, 4, 5, 6, 7]},
        tokens(label_smoothing=0.1, weight=tensor([1, 2, 3, 4, 5, 6, 7])),
    ),
]


def names(value: object) -> str | None:
    if isinstance(value, dict):
        return "-".join(str(part) for part in value.values()) or "auto"
    return value if isinstance(value, str) else "reference"


@pytest.mark.parametrize(("task", "loss", "reference"), CASES, ids=names)
def test_the_loss_is_the_reference_on_the_whole_batch(
    task: str, loss: dict[str, object], reference: Mean
) -> None:
    torch.set_default_dtype(torch.float64)  # that of the weights
    try:
        outputs, targets = case(task)
        torch.testing.assert_close(
            whole_loss(objective_of(task, loss), outputs, targets), reference(outputs, targets)
        )
    finally:
        torch.set_default_dtype(torch.float32)


@given(data=st.data(), index=st.integers(0, len(CASES) - 1), num_cuts=st.integers(1, 4))
def test_parts_of_a_batch_add_up_to_the_gradient_of_the_whole(
    data: st.DataObject, index: int, num_cuts: int
) -> None:
    """However ranks and microbatches cut it, each part dividing by the weights of the whole batch."""
    task, loss, _ = CASES[index]
    objective = objective_of(task, loss)
    outputs, targets = (value.float() if value.is_floating_point() else value for value in case(task))
    edges = sorted(data.draw(st.lists(st.integers(0, len(targets)), min_size=num_cuts, max_size=num_cuts)))
    whole, cut = outputs.clone().requires_grad_(), outputs.clone().requires_grad_()
    whole_loss(objective, whole, targets).backward()
    weights = objective.weights(targets)
    total = len(targets) if weights is None else weights.sum()
    for start, stop in zip([0, *edges], [*edges, len(targets)], strict=True):
        part = objective.shape_outputs(cut[start:stop])
        (objective.losses(part, targets[start:stop]).sum() / total).backward()
    torch.testing.assert_close(cut.grad, whole.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("task", ["multiclass", "binary"])
def test_the_focal_loss_has_a_slope_where_the_model_is_sure(task: str, gamma: float) -> None:
    outputs = torch.tensor([[200.0, -200.0]] if task == "multiclass" else [[-200.0]], requires_grad=True)
    objective = build_objective(task, Loss(name="focal", gamma=gamma), num_outputs=outputs.shape[1])
    for target in (0, 1):
        losses = objective.losses(objective.shape_outputs(outputs), torch.tensor([target]))
        (slope,) = torch.autograd.grad(losses.sum(), outputs)
        assert losses.isfinite().all()
        assert slope.isfinite().all()


def test_low_precision_outputs_give_float32_losses() -> None:
    outputs, targets = case("multiclass")
    objective = objective_of("multiclass", {})
    low = outputs.bfloat16()
    assert objective.losses(low, targets).dtype == torch.float32
    torch.testing.assert_close(
        objective.losses(low, targets), F.cross_entropy(low.float(), targets, reduction="none")
    )


def test_balanced_weights() -> None:
    labels = np.repeat([0, 1, 2, 3], [2, 5, 3, 10])
    objective = objective_of("multiclass", {"class_weights": "balanced"}, [2, 5, 3, 10])
    wanted = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    weights = objective.weights(torch.arange(4))
    assert weights is not None
    assert weights.tolist() == pytest.approx(wanted.tolist())

    # Of 20 samples 5 are positive: a positive answer weighs 15 / 5, as do the balanced weights' ratio.
    binary = objective_of("binary", {"class_weights": "balanced"}, [15, 5])
    outputs, targets = case("binary")
    wanted_loss = F.binary_cross_entropy_with_logits(
        outputs.float().squeeze(1), targets.float(), pos_weight=torch.tensor([3.0])
    )
    torch.testing.assert_close(whole_loss(binary, outputs.float(), targets), wanted_loss)

    outputs, targets = case("multilabel")
    labelled = objective_of("multilabel", {"class_weights": "balanced"}, [10, 5, 4])
    wanted_loss = F.binary_cross_entropy_with_logits(
        outputs.float(), targets.float(), pos_weight=torch.tensor([1.0, 3.0, 4.0])
    )
    torch.testing.assert_close(whole_loss(labelled, outputs.float(), targets), wanted_loss)


@pytest.mark.parametrize(
    ("task", "loss", "counts", "message"),
    [
        (
            "multiclass",
            {"name": "mse"},
            None,
            r"'mse' does not fit the task 'multiclass'.*cross_entropy, focal",
        ),
        ("binary", {"name": "cross_entropy"}, None, r"does not fit the task 'binary'.*bce, focal"),
        ("regression", {"label_smoothing": 0.1}, None, r"label_smoothing: the loss 'mse' does not use it"),
        ("binary", {"label_smoothing": 0.1}, None, r"label_smoothing: the loss 'bce'.*cross_entropy"),
        ("regression", {"name": "huber", "gamma": 1.0}, None, r"gamma: the loss 'huber'.*choose focal"),
        ("multiclass", {"delta": 2.0}, None, r"delta: the loss 'cross_entropy'"),
        ("regression", {"name": "torch.nn:L1Loss", "delta": 2.0}, None, "delta: the loss 'torch.nn:L1Loss'"),
        ("multiclass", {"class_weights": [1.0, 2.0]}, None, r"\[1.0, 2.0\] does not fit.*write 4 finite"),
        ("binary", {"class_weights": [1.0, 2.0]}, None, r"1 finite number\(s\) above 0.*positive answers"),
        ("multiclass", {"class_weights": [1.0, 2.0, 0.0, 1.0]}, None, "above 0"),
        ("multiclass", {"class_weights": "balanced"}, None, "no counts to balance by"),
        ("multiclass", {"class_weights": "balanced"}, [3, 0, 1, 1], "no row .* is of class 1 "),
        ("multilabel", {"class_weights": "balanced"}, [3, 20, 1], "every row .* is of class 1 "),
        ("regression", {"name": "math:pi"}, None, "is a float, which cannot be called"),
    ],
)
def test_what_does_not_fit_is_refused(
    task: str, loss: dict[str, object], counts: Sequence[int] | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        objective_of(task, loss, counts)


@pytest.mark.parametrize(
    "name", ["torch.nn.functional:smooth_l1_loss", "torch.nn:SmoothL1Loss", f"{__name__}:Doubled"]
)
def test_a_users_mean_counts_the_same_for_each_sample(name: str) -> None:
    outputs, targets = case("regression")
    objective = objective_of("regression", {"name": name})
    wanted = F.smooth_l1_loss(outputs.squeeze(1), targets) * (2 if "Doubled" in name else 1)
    torch.testing.assert_close(whole_loss(objective, outputs, targets), wanted)


class Doubled:
    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return 2 * F.smooth_l1_loss(outputs, targets, reduction="none")


class Needy:
    def __init__(self, size: int) -> None:
        self.size = size


def losses_of_tokens(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs.transpose(1, 2), targets.clamp_min(0), reduction="none")


def means_of_samples(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    losses = F.cross_entropy(outputs.transpose(1, 2), targets, reduction="none")
    return losses.sum(1) / (targets != -100).sum(1).clamp_min(1)


def a_number(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    return 3.0


def mean_of_all(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs.transpose(1, 2), targets)


@pytest.mark.parametrize("function", ["losses_of_tokens", "means_of_samples", "mean_of_all"])
def test_a_users_loss_of_tokens_is_their_mean(function: str) -> None:
    outputs, targets = case("language_modeling")
    objective = objective_of("language_modeling", {"name": f"{__name__}:{function}"})
    ours = whole_loss(objective, outputs, targets)
    torch.testing.assert_close(ours, mean_of_all(outputs, targets), check_dtype=False)


def test_users_losses_that_cannot_be_used() -> None:
    with pytest.raises(UserCodeError, match=r"Needy' cannot be made without arguments.*size"):
        objective_of("regression", {"name": f"{__name__}:Needy"})
    odd = Objective("regression", lambda outputs, targets: (outputs - targets)[:3])
    with pytest.raises(UserCodeError, match=r"shape \(3,\) for 5 samples"):
        odd.losses(torch.zeros(5), torch.zeros(5))
    a_number = objective_of("regression", {"name": f"{__name__}:a_number"})
    with pytest.raises(UserCodeError, match="returned float, not a tensor"):
        a_number.losses(torch.zeros(5), torch.zeros(5))


@pytest.mark.parametrize(
    ("task", "good", "bad", "message"),
    [
        ("multiclass", (2, 4), (2, 5), r"\(2, 5\).*\(2, 4\)"),
        ("binary", (2,), (2, 2), r"\(2, 2\).*\(2, 1\)"),
        ("multilabel", (2, 3), (2,), r"\(2,\).*\(2, 3\)"),
        ("language_modeling", (2, 5, 7), (2, 7), r"\(2, 7\).*\(2, length, 7\).*per token"),
    ],
)
def test_outputs_of_another_shape_are_refused(
    task: str, good: tuple[int, ...], bad: tuple[int, ...], message: str
) -> None:
    objective = objective_of(task, {})
    num_outputs = objective.num_outputs or 0
    objective.check_outputs(torch.zeros(good), num_samples=2, num_outputs=num_outputs)
    with pytest.raises(UsageError, match=message):
        objective.check_outputs(torch.zeros(bad), num_samples=2, num_outputs=num_outputs)
    if task == "language_modeling":
        with pytest.raises(UsageError, match=r"\(2, 5, 7\).*\(2, 4, 7\)"):
            objective.check_outputs(torch.zeros(good), num_samples=2, num_outputs=7, length=4)


@pytest.mark.parametrize(
    ("task", "index", "value", "message"),
    [
        ("multiclass", (3,), 4, r"row 3 of the part 'val' is 4.*0 to 3"),
        ("multiclass", (9,), -1, r"row 9 .* is -1"),
        ("binary", (2,), 2, r"row 2 .* is 2.*needs 0 or 1"),
        ("multilabel", (5, 2), 0.5, r"row 5, position 2 .* is 0.5.*needs 0 or 1"),
        ("regression", (1,), float("nan"), r"row 1 .* is nan.*finite"),
        ("language_modeling", (4, 1), 7, r"row 4, position 1 .* is 7.*0 to 6"),
    ],
)
def test_wrong_targets_are_named(task: str, index: tuple[int, ...], value: float, message: str) -> None:
    _, targets = case(task)
    objective = objective_of(task, {})
    objective.check_targets(targets)
    targets[index] = value
    with pytest.raises(DataError, match=message):
        objective.check_targets(targets, part="val")
