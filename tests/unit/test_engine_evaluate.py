"""An evaluation's predictions against a plain forward pass, for any number of ranks."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from orchestrator.data.prepare import prepare
from orchestrator.data.prepared import Prepared
from orchestrator.engine import evaluate as module
from orchestrator.engine.evaluate import Evaluation, evaluate
from orchestrator.engine.objective import build_objective
from orchestrator.spec.train import Loss
from orchestrator.spec.data import DataSection
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
        build_objective("regression", Loss(name="mse")),
        [],
        num_outputs=1,
        device=torch.device("cpu"),
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
        build_objective("multiclass", Loss(name="auto")),
        [],
        num_outputs=10,
        device=torch.device("cpu"),
        batch_size=64,
        detailed=True,
    )
    assert evaluation.predictions is None
    assert np.sum(evaluation.confusion_matrix or []) == digits.part("test").num_rows
