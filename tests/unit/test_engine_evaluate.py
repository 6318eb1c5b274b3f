"""An evaluation's predictions against a plain forward pass, for any number of ranks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from orchestrator.data.features.pipeline import Pipeline
from orchestrator.data.prepared.part import Batch
from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.preparing.prepare import prepare
from orchestrator.engine.device.precision import Precision
from orchestrator.engine.objective import evaluate as module
from orchestrator.engine.objective.evaluate import Evaluation, evaluate
from orchestrator.engine.objective.objective import Objective, build_objective
from orchestrator.engine.recipe import Placement
from orchestrator.spec.data import DataSection
from orchestrator.spec.train import Loss
from orchestrator.storage import Folder


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    section = DataSection.model_validate(
        {
            "source": {"kind": "linear", "coefficients": [3, 2], "rows": 200},
            "target": "y",
            "target_transform": "standardize",
        }
    )
    return Prepared.load(prepare(section, task="auto", seed=0, storage=Folder.at(tmp_path)).folder)


def run(prepared: Prepared, model: torch.nn.Module, *, detailed: bool = True) -> Evaluation:
    return evaluate(
        model,
        prepared.part("train"),
        prepared.pipeline,
        build_objective("regression", Loss(name="mse"), num_outputs=1),
        [],
        num_outputs=1,
        placement=Placement(torch.device("cpu")),
        batch_size=11,
        detailed=detailed,
    )


@pytest.mark.parametrize("most", [30, 140, 2000])
def test_predictions_of_a_regression_are_of_evenly_spaced_rows(
    most: int, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_PAIRS", most)
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    rows = np.arange(0, 140, {30: 5, 140: 1, 2000: 1}[most])
    batch = prepared.part("train").gather(rows)
    with torch.no_grad():
        outputs = model(prepared.pipeline.transform(batch.features)).squeeze(1)
    pairs = run(prepared, model).predictions
    assert pairs is not None
    assert pairs["actual"] == batch.targets.tolist()
    assert pairs["predicted"] == pytest.approx(prepared.pipeline.inverse_targets(outputs).tolist(), rel=1e-5)
    assert run(prepared, model, detailed=False).predictions is None

    shares = []
    for rank in range(3):
        alone = SimpleNamespace(
            share_tensors=lambda tensors: None,
            rank=lambda rank=rank: rank,
            world_size=lambda: 3,
            sum_over_ranks=lambda value: value,
            gather_objects=lambda value: [value],
        )
        monkeypatch.setattr(module, "collectives", alone)
        shares.append(run(prepared, model).predictions or {})
    assert [value for share in shares for value in share["actual"]] == pairs["actual"]
    gathered = [value for share in shares for value in share["predicted"]]
    assert gathered == pytest.approx(pairs["predicted"], rel=1e-5)


def test_classes_have_a_confusion_matrix_instead(tmp_path: Path) -> None:
    section = DataSection.model_validate({"source": {"kind": "sklearn", "name": "digits"}, "target": "label"})
    digits = Prepared.load(prepare(section, task="auto", seed=0, storage=Folder.at(tmp_path)).folder)
    evaluation = evaluate(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)),
        digits.part("test"),
        digits.pipeline,
        build_objective("multiclass", Loss(name="auto"), num_outputs=10),
        [],
        num_outputs=10,
        placement=Placement(torch.device("cpu")),
        batch_size=64,
        detailed=True,
    )
    assert evaluation.predictions is None
    assert np.sum(evaluation.confusion_matrix or []) == digits.part("test").num_rows


class Rows:
    """A part and a pipeline in memory: tokens, or numbers that are used as they are."""

    def __init__(self, features: torch.Tensor, targets: torch.Tensor) -> None:
        self.num_rows, self._batch = len(features), Batch(features, targets)
        self.shards: list[Any] = []
        self.streaming, self.row_bytes = False, 8.0

    def gather(self, indices: np.ndarray[Any, np.dtype[np.int64]], *, pin: bool) -> Batch:
        return Batch(*(column[torch.from_numpy(indices)] for column in self._batch))

    transform = transform_targets = inverse_targets = staticmethod(lambda values: values)


def sums_of_ranks(
    rows: Rows, model: torch.nn.Module, objective: Objective, num_ranks: int, **settings: Any
) -> list[tuple[list[float], int]]:
    """Of each rank: what it adds to the sums of losses and weights, and its calls of the model."""
    found: list[tuple[list[float], int]] = []
    calls: list[int] = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    with pytest.MonkeyPatch.context() as patch:
        for rank in range(num_ranks):
            said: list[torch.Tensor] = []

            def note(value: torch.Tensor, said: list[torch.Tensor] = said) -> torch.Tensor:
                said.append(value)
                return value

            alone = SimpleNamespace(
                share_tensors=lambda tensors: None,
                rank=lambda rank=rank: rank,
                world_size=lambda: num_ranks,
                sum_over_ranks=note,
            )
            patch.setattr(module, "collectives", alone)
            calls.clear()
            evaluate_rows(rows, model, objective, **settings)
            found.append((said[0].tolist(), len(calls)))
    handle.remove()
    return found


def evaluate_rows(rows: Rows, model: torch.nn.Module, objective: Objective, **settings: Any) -> Evaluation:
    pipeline: Pipeline = rows  # type: ignore[assignment]
    assert objective.num_outputs is not None
    return evaluate(
        model,
        rows,  # type: ignore[arg-type]
        pipeline,
        objective,
        settings.pop("names", []),
        num_outputs=objective.num_outputs,
        placement=Placement(torch.device("cpu")),
        batch_size=2,
        **settings,
    )


@pytest.mark.parametrize(("num_rows", "num_ranks"), [(13, 1), (13, 3), (9, 4), (2, 4)])
def test_the_loss_is_weighted_as_in_training_and_ranks_call_the_model_alike(
    num_rows: int, num_ranks: int
) -> None:
    weights = [1.0, 2.0, 5.0]
    objective = build_objective("multiclass", Loss(class_weights=weights), num_outputs=3)
    torch.manual_seed(0)
    rows, model = Rows(torch.randn(num_rows, 4), torch.randint(0, 3, (num_rows,))), torch.nn.Linear(4, 3)
    batch = rows.gather(np.arange(num_rows), pin=False)
    wanted = F.cross_entropy(model(batch.features), batch.targets, weight=torch.tensor(weights)).item()
    assert evaluate_rows(rows, model, objective).loss == pytest.approx(wanted)
    shares = sums_of_ranks(rows, model, objective, num_ranks)
    assert sum(one[0][0] for one in shares) / sum(one[0][1] for one in shares) == pytest.approx(wanted)
    assert len({calls for _, calls in shares}) == 1


def test_a_language_models_loss_is_per_token() -> None:
    objective = build_objective("language_modeling", Loss(), num_outputs=7)
    torch.manual_seed(0)
    tokens = torch.randint(2, 7, (5, 6))
    targets = tokens.roll(-1, 1).masked_fill(torch.arange(6) > torch.tensor([5, 3, 0, 4, 2])[:, None], -100)
    model = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7))
    evaluation = evaluate_rows(
        Rows(tokens, targets), model, objective, names=["perplexity", "bits_per_token", "accuracy"]
    )
    wanted = F.cross_entropy(model(tokens).transpose(1, 2), targets).item()
    assert evaluation.loss == pytest.approx(wanted)
    assert evaluation.metrics["perplexity"] == pytest.approx(np.exp(wanted))
    assert evaluation.metrics["bits_per_token"] == pytest.approx(wanted / np.log(2))
    assert evaluation.named("val")["val/loss"] == evaluation.loss


def test_lower_precision_is_that_of_the_forward_pass() -> None:
    objective = build_objective("regression", Loss(), num_outputs=1)
    rows, model = Rows(torch.randn(7, 4), torch.randn(7)), torch.nn.Linear(4, 1)
    got = evaluate_rows(rows, model, objective, precision=Precision("bf16", "cpu"))
    batch = rows.gather(np.arange(7), pin=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = model(batch.features).squeeze(1)
    assert outputs.dtype == torch.bfloat16
    assert got.loss == pytest.approx(F.mse_loss(outputs.float(), batch.targets).item())
