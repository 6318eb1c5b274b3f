"""The engine's small parts against definitions written out here."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

from orchestrator.engine.causes import cause_of, describe
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.metrics import MetricSet, check_metrics
from orchestrator.engine.objective import Objective, build_objective
from orchestrator.engine.optim import learning_rate_factor
from orchestrator.engine.seed import rng_state, seed_everything, set_rng_state
from orchestrator.engine.stopping import EarlyStopper, is_better
from orchestrator.engine.window import StepWindow
from orchestrator.errors import DataError, UsageError, UserCodeError
from orchestrator.records import Letter, Point, Reply
from orchestrator.spec.optim import Schedule
from orchestrator.spec.train import Loss


def test_cosine_with_warm_up_is_the_formula() -> None:
    section = Schedule(kind="cosine", warmup_steps=4, min_lr=0.01)
    factor = learning_rate_factor(section, base_lr=0.1, total_steps=24, steps_per_epoch=6)
    assert [factor(step) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    for step in range(4, 24):
        lr = 0.01 + (0.1 - 0.01) * 0.5 * (1 + math.cos(math.pi * (step - 4) / 20))
        assert 0.1 * factor(step) == pytest.approx(lr)
    assert 0.1 * factor(24) == pytest.approx(0.01)


def test_warm_up_as_a_share_and_steps_by_epochs() -> None:
    section = Schedule(kind="step", warmup_steps=0.1, step_epochs=2, gamma=0.5)
    factor = learning_rate_factor(section, base_lr=1.0, total_steps=100, steps_per_epoch=10)
    assert factor(0) == pytest.approx(1 / 11)
    assert [factor(step) for step in (10, 19, 20, 39, 40, 99)] == [1, 1, 0.5, 0.5, 0.25, 0.5**4]


def test_early_stopping_waits_out_its_patience_and_keeps_its_state() -> None:
    stopper = EarlyStopper("val/loss", "min", patience=2, min_delta=0.1)
    assert [stopper.update(value) for value in (1.0, 0.95, 0.8)] == [False, False, False]
    again = EarlyStopper("val/loss", "min", patience=2, min_delta=0.1)
    again.load_state_dict(stopper.state_dict())
    assert [again.update(value) for value in (0.79, float("nan"))] == [False, True]
    assert is_better(1.0, None, mode="max")
    assert not is_better(float("nan"), None, mode="min")


def test_multiclass_metrics_equal_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(200, 4)), rng.integers(0, 4, 200)
    metrics = MetricSet("multiclass", ["accuracy", "precision", "recall", "f1", "auroc"], 4, confusion=True)
    for rows in np.array_split(np.arange(200), 7):
        metrics.update(torch.from_numpy(logits[rows]), torch.from_numpy(targets[rows]))
    got, predicted = metrics.compute(), logits.argmax(1)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert got["accuracy"] == pytest.approx(reference.accuracy_score(targets, predicted))
    assert got["precision"] == pytest.approx(reference.precision_score(targets, predicted, average="macro"))
    assert got["recall"] == pytest.approx(reference.recall_score(targets, predicted, average="macro"))
    assert got["f1"] == pytest.approx(reference.f1_score(targets, predicted, average="macro"))
    assert got["auroc"] == pytest.approx(
        reference.roc_auc_score(targets, shares, multi_class="ovr"), abs=1e-5
    )
    assert metrics.confusion_matrix() == reference.confusion_matrix(targets, predicted).tolist()


def test_binary_and_regression_metrics_equal_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    logits, targets = rng.normal(size=100), rng.integers(0, 2, 100)
    binary = MetricSet("binary", ["accuracy", "f1", "auroc"], 1)
    binary.update(torch.from_numpy(logits), torch.from_numpy(targets))
    got = binary.compute()
    assert got["accuracy"] == pytest.approx(reference.accuracy_score(targets, logits > 0))
    assert got["f1"] == pytest.approx(reference.f1_score(targets, logits > 0))
    assert got["auroc"] == pytest.approx(reference.roc_auc_score(targets, logits), abs=1e-6)
    actual, predicted = rng.normal(size=50), rng.normal(size=50)
    regression = MetricSet("regression", ["mse", "rmse", "mae", "r2"], 1)
    regression.update(torch.from_numpy(predicted), torch.from_numpy(actual))
    got = regression.compute()
    assert got["mse"] == pytest.approx(reference.mean_squared_error(actual, predicted))
    assert got["rmse"] == pytest.approx(math.sqrt(got["mse"]))
    assert got["mae"] == pytest.approx(reference.mean_absolute_error(actual, predicted))
    assert got["r2"] == pytest.approx(reference.r2_score(actual, predicted))


def test_metrics_and_losses_that_do_not_fit_the_task_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'r2' does not fit the task 'binary'.*accuracy"):
        check_metrics("binary", ["accuracy", "r2"])
    with pytest.raises(UsageError, match=r"'mse' does not fit the task 'multiclass'.*cross_entropy"):
        build_objective("multiclass", Loss(name="mse"))
    objective = build_objective("multiclass", Loss(name="auto"))
    with pytest.raises(UsageError, match=r"\(2, 5\).*\(2, 10\)"):
        objective.check_outputs(torch.zeros(2, 5), num_samples=2, num_outputs=10)
    build_objective("binary", Loss(name="auto")).check_outputs(torch.zeros(2), num_samples=2, num_outputs=1)


@pytest.mark.parametrize(
    ("task", "loss", "function"),
    [
        ("multiclass", "auto", torch.nn.CrossEntropyLoss()),
        ("binary", "bce", torch.nn.BCEWithLogitsLoss()),
        ("regression", "auto", torch.nn.MSELoss()),
        ("regression", "l1", torch.nn.L1Loss()),
        ("regression", "huber", torch.nn.HuberLoss()),
    ],
)
def test_the_mean_of_sample_losses_is_torchs_loss(task: str, loss: str, function: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(9, 3 if task == "multiclass" else 1, generator=generator)
    targets = torch.randint(0, 2, (9,), generator=generator)
    objective = build_objective(task, Loss(name=loss))
    shaped = objective.shape_outputs(outputs)
    wanted = targets if task == "multiclass" else targets.float()
    losses = objective.losses(shaped, targets if task != "regression" else wanted)
    assert losses.shape == (9,)
    torch.testing.assert_close(losses.mean(), function(shaped, wanted))


def test_random_state_comes_back() -> None:
    device = torch.device("cpu")
    seed_everything(5, rank=1)
    state = rng_state(device)
    first = (np.random.rand(), torch.rand(3))
    set_rng_state(state, device)
    second = (np.random.rand(), torch.rand(3))
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])
    seed_everything(5, rank=2)
    assert not torch.equal(torch.rand(3), first[1])


def test_a_window_gives_the_loss_of_each_global_batch() -> None:
    window = StepWindow(torch.device("cpu"))
    assert not window.full
    window.add(1, torch.tensor(6.0), 3, 0.1)
    assert window.full
    agreement = window.agree(stop=True)
    assert agreement.stop
    assert [(record.step, record.loss, record.lr) for record in agreement.records] == [(1, 2.0, 0.1)]
    assert window.agree(stop=False).records == []


def test_the_link_delivers_everything_once_though_letters_get_lost() -> None:
    received: dict[int, Point] = {}
    broken = threading.Event()
    broken.set()

    class Flaky:
        calls = 0

        def exchange(self, letter: Letter) -> Reply:
            self.calls += 1
            if broken.is_set() and self.calls < 3:
                raise ConnectionError
            for offset, point in enumerate(letter.points):
                assert (
                    received.setdefault(letter.first + offset, point) is point
                    or received[letter.first + offset] == point
                )
            return Reply(len(received), stop=len(received) >= 100)

    link = WorkerLink(channel=Flaky(), interval_s=0.01).start()
    for step in range(100):
        link.log({"loss": float(step)}, step)
    assert link.close()
    assert [received[index].step for index in range(100)] == list(range(100))
    assert link.unacknowledged() == []
    assert link.stop_requested()


def test_causes() -> None:
    assert cause_of(MemoryError()) == "out of memory"
    assert cause_of(RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer")) == "hardware"
    assert cause_of(TypeError("forward() takes 2 arguments")) == "user error"
    assert cause_of(DataError("row 3 is damaged")) == "data"
    assert describe(ValueError("two\n  lines")) == "ValueError: two lines"


def test_a_loss_of_the_wrong_length_is_refused() -> None:
    objective = Objective("regression", lambda outputs, targets: (outputs - targets)[:3])
    with pytest.raises(UserCodeError, match=r"shape \(3,\) for 5 samples"):
        objective.losses(torch.zeros(5), torch.zeros(5))
