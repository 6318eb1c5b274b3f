"""Weights to begin with, through whole runs: from an earlier run, and from a registered model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import orchestrator
from orchestrator.runs.folder import RunFolder
from orchestrator.storage import Folder

SPEC: dict[str, Any] = {
    "name": "first",
    "seed": 1,
    "data": {
        "source": {"kind": "sklearn", "name": "digits"},
        "target": "label",
        "split": {"kind": "stratified", "train": 0.3, "val": 0.1, "test": 0.6},
        "transforms": [{"kind": "standardize"}],
    },
    "model": {"name": "mlp", "args": {"hidden": [16]}},
    "train": {"max_epochs": 3, "global_batch_size": 32, "optimizer": {"kind": "adamw", "lr": 0.01}},
    "mlflow": {"registered_model_name": "first"},
}


def weights(folder: Path, run: str) -> dict[str, torch.Tensor]:
    name, _, number = run.rpartition("-")
    return load_file(RunFolder(Folder.at(folder), name, int(number)).model.local_path() / "model.safetensors")


@pytest.mark.parametrize("uri", ["first-1", "models:/first/1"])
def test_a_run_begins_with_the_weights_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    storage = tmp_path / "runs"
    first = orchestrator.run(SPEC, inline=True, quiet=True, storage=str(storage))
    assert first.status == "SUCCEEDED", first.verdict
    later = orchestrator.run(
        SPEC,
        inline=True,
        quiet=True,
        storage=str(storage),
        name="second",
        init_from={"uri": uri},
        model={"freeze": ["1.*"]},
        train={"max_epochs": 1, "optimizer": {"kind": "adamw", "lr": 1e-9, "weight_decay": 0.0}},
    )
    assert later.status == "SUCCEEDED", later.verdict
    before, after = weights(storage, "first-1"), weights(storage, "second-1")
    assert torch.equal(after["1.weight"], before["1.weight"])
    torch.testing.assert_close(after["3.weight"], before["3.weight"], rtol=0, atol=1e-6)
    assert later.metrics["test/accuracy"] == pytest.approx(first.metrics["test/accuracy"], abs=0.005)
