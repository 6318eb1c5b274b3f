"""What a run leaves in its tracking journal and its folder becomes pictures among its artifacts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.records import Point, Verdict
from orchestrator.recovery.goodput import Account
from orchestrator.runners import recording
from orchestrator.runs.folder import RunFolder
from orchestrator.spec import load_spec
from orchestrator.storage import Folder
from orchestrator.tracking.memory import MemorySink
from orchestrator.tracking.tracker import Tracker

ATTEMPT: dict[str, Any] = {
    "attempt": 1, "world_size": 2, "from_step": 0, "to_step": 9, "ended": "node lost", "seconds": 3.0,
}  # fmt: skip
MATRIX = [[3, 1], [0, 2]]
PAIRS = {"actual": [1.0, 2.0], "predicted": [1.1, 1.9]}


@pytest.mark.parametrize(
    ("result", "names"),
    [
        ({"confusion_matrix": MATRIX, "predictions": None}, ["loss.png", "confusion_matrix.png"]),
        ({"confusion_matrix": None, "predictions": PAIRS}, ["loss.png", "predictions.png"]),
        ({"confusion_matrix": None, "predictions": None}, ["loss.png"]),
    ],
)
def test_pictures_of_what_the_test_part_gave(
    result: dict[str, Any], names: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(Folder.at(tmp_path), "case", 1)
    run.write_result(result)
    curves: list[Any] = []
    draw = recording.loss_curves_picture
    monkeypatch.setattr(
        recording, "loss_curves_picture", lambda losses, path: (curves.append(losses), draw(losses, path))
    )
    points = [
        Point("train/loss", 0.9, 1, 0),
        Point("train/lr", 0.1, 1, 0),
        Point("train/loss", 0.5, 2, 0),
        Point("val/loss", 0.6, 2, 0),
        Point("val/accuracy", 0.7, 2, 0),
        Point("test/loss", 0.8, 2, 0),
    ]
    manifest: Any = SimpleNamespace(classes=["cat", "dog"])
    pictures = recording._pictures(run, manifest, points)
    assert curves == [{"train": [(1, 0.9), (2, 0.5)], "val": [(2, 0.6)]}]
    assert [picture.name for picture in pictures] == names
    for picture in pictures:
        assert picture.parent == run.pictures.local_path()
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_final_figures_stand_at_step_0_where_the_ui_draws_bars(tmp_path: Path) -> None:
    spec = {
        "name": "case",
        "data": {"source": {"kind": "linear", "coefficients": [1.0]}, "target": "y"},
        "model": {"name": "linear"},
    }
    loaded, run, sink = load_spec(spec), RunFolder(Folder.at(tmp_path / "runs"), "case", 1), MemorySink()
    run.write_spec("name: case")
    tracker = Tracker.open(tmp_path / "journal", sink)
    tracker.start_run(recording.start_of(loaded, run, identity="abc", in_job=False))
    tracker.log_points([Point("val/mse", 0.5, 400, 1)])
    manifest: Any = SimpleNamespace(rows={"train": 2}, classes=None)
    verdict = Verdict("STOPPED", 143, "stopped", metrics={"best/val_mse": 0.25, "best/step": 300.0})
    account = Account(
        {"goodput/share": 0.5}, "50%: 1 restart (node lost)", [ATTEMPT, ATTEMPT | {"attempt": 2}]
    )
    run.attempt_logs(1).create().write_bytes("rank-0.log", b"hello\n")
    recording.record_end(tracker, loaded, run, verdict, manifest, 1.0, account)
    assert tracker.close(10)
    (recorded,) = sink.runs.values()
    steps = {point.key: point.step for point in recorded.points.values()}
    assert steps == {"val/mse": 400, "best/val_mse": 0, "best/step": 0, "goodput/share": 0}
    assert recorded.tags["mlflow.note.content"].startswith("## Stopped: validation MSE 0.2500")
    assert recorded.artifacts == {"spec.yaml", "attempts.json", "logs/attempt-1/rank-0.log"}
    assert "50%: 1 restart (node lost)" in recorded.tags["mlflow.note.content"]
