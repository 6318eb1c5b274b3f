"""A whole run in this process that fails once and goes on: what is found of its attempts afterwards."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

import orchestrator
from orchestrator.runners.result import Result
from orchestrator.storage import Folder
from orchestrator.tracking import mlflow_sink
from orchestrator.tracking.memory import MemorySink
from tests.unit.s3_case import ACCOUNT, s3_server

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


@pytest.fixture(params=["local", pytest.param("bucket", marks=pytest.mark.slow)])
def storage(
    request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Folder]:
    if request.param == "local":
        yield Folder.at(folder / "runs")
        return
    with s3_server() as address:
        variables = {**ACCOUNT, "AWS_ENDPOINT_URL": f"http://{address}", "HOME": str(folder / "node1")}
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        Folder.at("s3://bucket?allow_bucket_creation=true").create()
        yield Folder.at("s3://bucket/runs")


def texts(folder: Folder) -> dict[str, str]:
    return {name: folder.read_bytes(name).decode() for name in folder.names() if "." in name}


def test_a_failed_attempt_and_the_next_driver(
    storage: Folder, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = MemorySink()
    monkeypatch.setattr(mlflow_sink, "mlflow_process", lambda uri: nullcontext(sink))
    spec: dict[str, Any] = {
        "name": "flaky",
        "data": {"source": {"kind": "sklearn", "name": "digits"}, "target": "label"},
        "model": {"name": "flaky_once:Flaky", "args": {"marker": str(folder / "marker")}},
        "train": {"max_epochs": 2, "global_batch_size": 128},
        "secrets": {"HUSH": "s3cret-value"},
        "storage": storage.uri,
        "mlflow": {"tracking_uri": f"sqlite:///{folder}/mlflow.db"},
    }

    def run() -> Result:
        return orchestrator.run(spec, inline=True, quiet=True)

    first = run()
    assert (first.status, first.exit_code) == ("FAILED", 1)
    (recorded,) = sink.runs.values()
    logs = storage / "flaky-1" / "logs" / "attempt-1"
    bundle = texts(logs / "postmortem")
    assert "no luck with ***" in bundle["verdict.json"]
    told = {**bundle, **texts(logs)}
    assert told.keys() >= {"rank-0.log", "driver.log", "environment.json", "spec.yaml"}
    assert not [name for name, text in told.items() if "s3cret" in text]
    assert "no luck with ***" in told["rank-0.log"]
    assert "verdict: FAILED" in told["driver.log"]
    assert "postmortem/attempt-1/verdict.json" in recorded.artifacts
    assert recorded.artifacts >= {"logs/attempt-1/rank-0.log", "logs/attempt-1/driver.log"}
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
