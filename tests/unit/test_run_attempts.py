"""A whole run in this process that fails once and goes on: what is found of its attempts afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import orchestrator
from orchestrator.runners.result import Result
from orchestrator.tracking import mlflow_sink
from orchestrator.tracking.memory import MemorySink

MODEL = '''
import os
from pathlib import Path
import torch

class Flaky(torch.nn.Module):
    """Fails in its 15th training step, the first time."""

    def __init__(self, input_shape, num_outputs, marker):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, num_outputs))
        self.marker, self.steps = Path(marker), 0

    def forward(self, images):
        self.steps += self.training
        if self.steps == 15 and not self.marker.exists():
            self.marker.touch()
            raise ValueError("no luck with " + os.environ["HUSH"])
        return self.layers(images)
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "flaky_once.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("flaky_once", None)


def test_a_failed_attempt_and_the_next_driver(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = MemorySink()
    monkeypatch.setattr(mlflow_sink, "MlflowSink", lambda uri: sink)
    spec: dict[str, Any] = {
        "name": "flaky",
        "data": {"source": {"kind": "sklearn", "name": "digits"}, "target": "label"},
        "model": {"name": "flaky_once:Flaky", "args": {"marker": str(folder / "marker")}},
        "train": {"max_epochs": 2, "global_batch_size": 128},
        "secrets": {"HUSH": "s3cret-value"},
        "storage": str(folder / "runs"),
    }

    def run() -> Result:
        return orchestrator.run(spec, inline=True, quiet=True)

    first = run()
    assert (first.status, first.exit_code) == ("FAILED", 1)
    (recorded,) = sink.runs.values()
    bundle = Path(first.folder) / "logs" / "attempt-1" / "postmortem"
    assert "no luck with ***" in (bundle / "verdict.json").read_text()
    assert not [path for path in bundle.iterdir() if "s3cret" in path.read_text()]
    assert "postmortem/attempt-1/verdict.json" in recorded.artifacts
    assert "logs/attempt-1/rank-0.log" in recorded.artifacts
    assert recorded.tags["orchestrator.attempts"] == "1"
    second = run()
    assert (second.status, second.run) == ("SUCCEEDED", "flaky-1")
    assert "1 restart (user error)" in second.goodput
    (recorded,) = sink.runs.values()
    figures = {point.key: point.value for point in recorded.points.values()}  # the newest last
    assert figures["goodput/restarts"] == 1
    assert 0 < figures["goodput/share"] < 1
    parts = ("step", "startup", "checkpoint_stall", "wasted", "recovery", "other")
    assert sum(figures[f"goodput/{part}_seconds"] for part in parts) == pytest.approx(
        figures["goodput/seconds"]
    )
    assert "attempts.json" in recorded.artifacts
    assert recorded.tags["orchestrator.attempts"] == "2"
    assert "&emsp;user error |" in recorded.tags["mlflow.note.content"]
    assert "&emsp;completed |" in recorded.tags["mlflow.note.content"]
