"""Metrics against scikit-learn, and over any split of the samples into ranks against the whole."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference

from orchestrator.engine import collectives
from orchestrator.engine.objective import metrics as module
from orchestrator.engine.objective.metrics import DEFAULTS, FITTING, MetricSet, check_metrics
from orchestrator.errors import UsageError, UserCodeError
from orchestrator.vision import prepare_torchvision

prepare_torchvision()
import torchmetrics  # noqa: E402

OUTPUTS = {"multiclass": 4, "binary": 1, "multilabel": 3, "regression": 1, "language_modeling": 7}


def samples(task: str, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs as the objective shapes them, and targets."""
    rng = np.random.default_rng(seed)
    shape = {"binary": (n,), "regression": (n,), "language_modeling": (n, 5, 7)}.get(task, (n, OUTPUTS[task]))
    outputs = torch.from_numpy(rng.normal(size=shape).astype(np.float32))
    if task == "regression":
        return outputs, torch.from_numpy(rng.normal(size=n).astype(np.float32))
    if task == "multilabel":
        return outputs, torch.from_numpy(rng.integers(0, 2, (n, 3)).astype(np.float32))
    if task == "language_modeling":
        targets = torch.from_numpy(rng.integers(0, 7, (n, 5)))
        return outputs, targets.masked_fill(torch.from_numpy(rng.random((n, 5)) < 0.3), -100)
    return outputs, torch.from_numpy(rng.integers(0, max(2, OUTPUTS[task]), n))


def values_of(task: str, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, float]:
    metrics = MetricSet(task, FITTING[task], OUTPUTS[task])
    for rows in np.array_split(np.arange(len(targets)), 7):
        metrics.update(outputs[rows], targets[rows])
    return metrics.compute()


def test_multiclass_metrics_equal_scikit_learn() -> None:
    outputs, targets = samples("multiclass", 200)
    got, predicted = values_of("multiclass", outputs, targets), outputs.argmax(1)
    shares = outputs.double().softmax(1)
    assert got["accuracy"] == pytest.approx(reference.accuracy_score(targets, predicted))
    assert got["precision"] == pytest.approx(reference.precision_score(targets, predicted, average="macro"))
    assert got["recall"] == pytest.approx(reference.recall_score(targets, predicted, average="macro"))
    assert got["f1"] == pytest.approx(reference.f1_score(targets, predicted, average="macro"))
    auroc = reference.roc_auc_score(targets, shares, multi_class="ovr")
    assert got["auroc"] == pytest.approx(auroc, abs=1e-5)


def test_binary_metrics_equal_scikit_learn() -> None:
    outputs, targets = samples("binary", 100)
    got, predicted = values_of("binary", outputs, targets), outputs > 0
    assert got["accuracy"] == pytest.approx(reference.accuracy_score(targets, predicted))
    assert got["precision"] == pytest.approx(reference.precision_score(targets, predicted))
    assert got["recall"] == pytest.approx(reference.recall_score(targets, predicted))
    assert got["f1"] == pytest.approx(reference.f1_score(targets, predicted))
    assert got["auroc"] == pytest.approx(reference.roc_auc_score(targets, outputs), abs=1e-6)


def test_multilabel_metrics_equal_scikit_learn() -> None:
    outputs, targets = samples("multilabel", 100)
    got, predicted = values_of("multilabel", outputs, targets), outputs > 0
    assert got["accuracy"] == pytest.approx(float((predicted == targets.bool()).float().mean()))
    assert got["precision"] == pytest.approx(reference.precision_score(targets, predicted, average="macro"))
    assert got["recall"] == pytest.approx(reference.recall_score(targets, predicted, average="macro"))
    assert got["f1"] == pytest.approx(reference.f1_score(targets, predicted, average="macro"))
    assert got["auroc"] == pytest.approx(reference.roc_auc_score(targets, outputs), abs=1e-6)


@pytest.mark.parametrize(("shift", "unit"), [(0.0, 1.0), (1e4, 1.0), (0.0, 1e-4)])
def test_regression_metrics_equal_scikit_learn_in_any_unit(shift: float, unit: float) -> None:
    outputs, targets = samples("regression", 50)
    outputs, targets = shift + unit * outputs, shift + unit * targets
    got, actual, predicted = values_of("regression", outputs, targets), targets.double(), outputs.double()
    assert got["mse"] == pytest.approx(reference.mean_squared_error(actual, predicted))
    assert got["rmse"] == pytest.approx(math.sqrt(got["mse"]))
    assert got["mae"] == pytest.approx(reference.mean_absolute_error(actual, predicted))
    assert got["r2"] == pytest.approx(reference.r2_score(actual, predicted))


def test_token_metrics_leave_padding_out() -> None:
    outputs, targets = samples("language_modeling", 40)
    got, counted = values_of("language_modeling", outputs, targets), targets != -100
    nats = float(F.cross_entropy(outputs.double()[counted], targets[counted]))
    assert got["perplexity"] == pytest.approx(math.exp(nats))
    assert got["bits_per_token"] == pytest.approx(nats / math.log(2))
    right = outputs.argmax(2)[counted] == targets[counted]
    assert got["accuracy"] == pytest.approx(float(right.float().mean()))


@pytest.mark.parametrize("task", ["multiclass", "binary"])
def test_a_confusion_matrix_counts_by_actual_and_predicted_class(task: str) -> None:
    outputs, targets = samples(task, 60)
    metrics = MetricSet(task, [], OUTPUTS[task], confusion=True)
    metrics.update(outputs, targets)
    predicted = outputs.argmax(1) if task == "multiclass" else outputs > 0
    assert metrics.confusion_matrix() == reference.confusion_matrix(targets, predicted).tolist()
    assert MetricSet("regression", [], 1, confusion=True).confusion_matrix() is None


def over_ranks(whole: MetricSet, ranks: Sequence[MetricSet], compute: Callable[[MetricSet], Any]) -> Any:
    """What the first rank computes with the others, the ranks played one after another in this process.

    Each first says what it would give to the collectives, and hears what one process with all samples gives
    (alone, a rank without samples may compute nothing); then the first one hears what all have said.
    """

    def said_by(one: MetricSet, heard: Iterator[Any] | None) -> list[Any]:
        said: list[Any] = []

        def gather(value: Any) -> list[Any]:
            said.append(value)
            return [value if heard is None else next(heard)] * 2

        patch.setattr(collectives, "gather_objects", gather)
        compute(copy.deepcopy(one))
        return said

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collectives, "world_size", lambda: len(ranks))
        by_all = said_by(whole, None)
        answers = zip(*[said_by(rank, iter(by_all)) for rank in ranks], strict=True)
        patch.setattr(collectives, "gather_objects", lambda value: list(next(answers)))
        return compute(ranks[0])


def keeping_all(outputs: torch.Tensor, targets: torch.Tensor) -> float:
    """A user's metric that needs all samples at once, in any order."""
    assert outputs.shape == targets.shape
    return float((outputs - targets.float()).abs().median())


class Largest(torchmetrics.Metric):  # type: ignore[misc]
    """A user's metric in torchmetrics' way."""

    top: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("top", default=torch.tensor(-math.inf), dist_reduce_fx="max")

    def update(self, scores: torch.Tensor, targets: torch.Tensor) -> None:
        self.top = torch.maximum(self.top, scores.max())

    def compute(self) -> torch.Tensor:
        return self.top


shared_metric = Largest()


@settings(max_examples=50)
@given(
    task=st.sampled_from(sorted(FITTING)),
    edges=st.lists(st.integers(0, 12), max_size=3).map(sorted),
    exact=st.booleans(),
)
def test_ranks_together_give_the_value_of_the_whole(task: str, edges: list[int], exact: bool) -> None:
    """For any number of samples on each of 1 to 4 ranks, none included."""
    names = [*FITTING[task], f"{__name__}:Largest"]
    if task in ("binary", "regression"):
        names.append(f"{__name__}:keeping_all")
    options: dict[str, Any] = {"confusion": True, "num_samples": 12 if exact else 2**30}
    outputs, targets = samples(task, 12)
    whole = MetricSet(task, names, OUTPUTS[task], **options)
    whole.update(outputs, targets)
    ranks = []
    for start, stop in zip([0, *edges], [*edges, 12], strict=True):
        ranks.append(MetricSet(task, names, OUTPUTS[task], **options))
        for row in range(start, stop, 2):
            ranks[-1].update(outputs[row : min(row + 2, stop)], targets[row : min(row + 2, stop)])
    wanted, matrix = copy.deepcopy(whole).compute(), copy.deepcopy(whole).confusion_matrix()
    assert over_ranks(whole, ranks, MetricSet.compute) == pytest.approx(wanted, rel=1e-5, nan_ok=True)
    assert over_ranks(whole, ranks, MetricSet.confusion_matrix) == matrix


def test_too_many_scores_to_keep_are_counted_in_bins(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    targets = torch.from_numpy(rng.integers(0, 2, 3000))
    outputs = torch.from_numpy(rng.normal(size=3000) * 3) + 4 * targets - 5  # most scores are near 0
    monkeypatch.setattr(module, "MAX_EXACT_SCORES", 1000)
    metrics = MetricSet("binary", ["auroc"], 1, num_samples=3000)
    metrics.update(outputs, targets)
    assert metrics.compute()["auroc"] == pytest.approx(reference.roc_auc_score(targets, outputs), abs=2e-3)


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
@pytest.mark.parametrize("exact", [True, False])
def test_auroc_is_over_the_classes_that_are_there(task: str, exact: bool) -> None:
    outputs, targets = samples(task, 40)
    if task == "multiclass":
        targets[targets == 1] = 2
        shares, truth = outputs.softmax(1), F.one_hot(targets, 4)
    else:
        targets[:, 1] = 1.0
        shares, truth = outputs.sigmoid(), targets
    there = [column for column in range(truth.shape[1]) if column != 1]
    wanted = np.mean([reference.roc_auc_score(truth[:, column], shares[:, column]) for column in there])
    metrics = MetricSet(task, ["auroc"], OUTPUTS[task], num_samples=40 if exact else 2**30)
    metrics.update(outputs, targets)
    assert metrics.compute()["auroc"] == pytest.approx(wanted, abs=1e-5 if exact else 0.01)


def test_undefined_values_are_no_numbers() -> None:
    constant = values_of("regression", torch.rand(5), torch.full((5,), 0.1))
    assert math.isnan(constant["r2"])
    assert not math.isnan(constant["mse"])
    assert math.isnan(values_of("regression", torch.rand(1), torch.rand(1))["r2"])
    assert math.isnan(values_of("binary", torch.rand(5), torch.ones(5, dtype=torch.long))["auroc"])
    padding = torch.full((2, 5), -100)
    assert math.isnan(values_of("language_modeling", torch.randn(2, 5, 7), padding)["perplexity"])
    sure = torch.zeros(1, 5, 7)
    sure[..., 0] = 5000.0
    got = values_of("language_modeling", sure, torch.ones(1, 5, dtype=torch.long))
    assert got["perplexity"] == math.inf
    assert got["bits_per_token"] == pytest.approx(5000 / math.log(2))


def test_a_users_metric_begins_anew_in_each_evaluation() -> None:
    name = f"{__name__}:shared_metric"
    for outputs in (torch.tensor([5.0, 1.0]), torch.tensor([2.0, 1.0])):
        metrics = MetricSet("regression", [name], 1)
        metrics.update(outputs, torch.zeros(2))
        assert metrics.compute() == {"shared_metric": float(outputs[0])}


def two_numbers(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return outputs[:2]


def test_metrics_that_do_not_fit_are_refused() -> None:
    for task, names in DEFAULTS.items():
        check_metrics(task, names)
    with pytest.raises(UsageError, match=r"'r2' does not fit the task 'binary'.*accuracy"):
        check_metrics("binary", ["accuracy", "r2"])
    with pytest.raises(UsageError, match=r"'f1' does not fit the task 'language_modeling'.*perplexity"):
        check_metrics("language_modeling", ["f1"])
    with pytest.raises(UsageError, match="two metrics are named 'accuracy'"):
        check_metrics("binary", ["accuracy", "accuracy"])
    with pytest.raises(UsageError, match="is a float, which cannot be called"):
        check_metrics("binary", ["math:pi"])
    with pytest.raises(UsageError, match=r"is a function.*torchmetrics\.Metric"):
        check_metrics("language_modeling", [f"{__name__}:keeping_all"])
    metrics = MetricSet("regression", [f"{__name__}:two_numbers"], 1)
    metrics.update(torch.zeros(3), torch.zeros(3))
    with pytest.raises(UserCodeError, match="two_numbers' raised"):
        metrics.compute()
