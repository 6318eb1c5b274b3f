"""What a search leaves in MLflow: progress, description, tables, pictures, and who was best."""

from __future__ import annotations

import csv
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from orchestrator.export.search_importance import FEWEST_TRIALS, importance
from orchestrator.export.search_report import search_description
from orchestrator.export.search_table import short_names, table
from orchestrator.records import Point
from orchestrator.runners.search import recording
from orchestrator.runs.folder import RunFolder
from orchestrator.spec.tune import TuneSection
from orchestrator.storage import Folder
from orchestrator.tracking.memory import MemoryRun, MemorySink
from orchestrator.tracking.ops import StartRun
from orchestrator.tracking.tracker import Tracker

LR, KIND, MOMENTUM = "train.optimizer.lr", "train.optimizer.kind", "train.optimizer.momentum"
HIDDEN, SIZE = "model.args.hidden", "train.global_batch_size"
SECTION = TuneSection.model_validate(
    {
        "param_space": {
            LR: {"loguniform": [1e-4, 1e-1]},
            KIND: {"choice": ["sgd", "adamw"]},
            MOMENTUM: {"uniform": [0.5, 0.99], "when": {KIND: "sgd"}},
            HIDDEN: {"grid_search": [[64], [128, 64]]},
            SIZE: {"expr": "64 // 2"},
        }
    }
)
PICTURES = {"best_so_far.png", "parallel_coordinates.png", "importance.png", "learning_curves.png"}


def trial(number: int, **changes: Any) -> dict[str, Any]:
    """One whose score depends on its learning rate alone."""
    chance = random.Random(number)
    lr = 10 ** chance.uniform(-4, -1)
    kind = chance.choice(["sgd", "adamw"])
    score = abs(math.log10(lr) + 2)
    return {
        "id": f"trial-{number:03d}",
        "state": "COMPLETED",
        "params": {
            LR: lr,
            KIND: kind,
            **({MOMENTUM: chance.uniform(0.5, 0.99)} if kind == "sgd" else {}),
            HIDDEN: chance.choice([[64], [128, 64]]),
            SIZE: 32,
        },
        "epoch": 4,
        "score": score,
        "best_epoch": 3,
        "metrics": {"val/loss": score + 0.1, "size": 2 - score + chance.random()},
        "seconds": 2.5,
        "error": "",
        "mlflow_run_id": None,
        "attempts": 1,
        **changes,
    }


def summary_of(trials: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    scores = {one["id"]: one["score"] for one in trials if one["score"] is not None}
    return {
        "metric": "val/loss",
        "mode": "min",
        "num_samples": len(trials),
        "state": "ENDED",
        "limit": 2,
        "width": 1,
        "started_s": 100.0,
        "updated_s": 160.0,
        "eta_s": None,
        "why_ended": "",
        "best": min(scores, key=scores.__getitem__) if scores else None,
        "pareto": [],
        "trials": trials,
        **changes,
    }


def failed(number: int, error: str = "CUDA out of memory") -> dict[str, Any]:
    return trial(number, state="FAILED", score=None, error=error, metrics={}, best_epoch=0)


def recorded(tmp_path: Path, *summaries: dict[str, Any], verdict: str = "") -> tuple[MemorySink, RunFolder]:
    """Trials and the end of a search, as its driver records them; each summary is an end of its own."""
    sink, run = MemorySink(), RunFolder(Folder.at(tmp_path / "runs"), "digits_tune", 1)
    for summary in summaries:
        tracker = Tracker.open(tmp_path / "journal", sink, interval_s=0.01)
        tracker.start_run(StartRun("digits", run.label))
        for one in summary["trials"]:
            child = tracker.child(
                one["id"], recording.start_of_trial(run.label, one["id"], one["params"], {"team": "vision"})
            )
            if one["score"] is not None:
                child.log_points([Point("val/loss", one["score"], step, 1) for step in (4, 8)])
            recording.record_trial_end(child, one, "val/loss")
        recording.record_search_end(tracker, run, summary, SECTION, verdict)
        assert tracker.close(60)
        assert tracker.refused == []
    return sink, run


def run_of(sink: MemorySink, name: str) -> MemoryRun:
    (run,) = [run for run in sink.runs.values() if run.name == name]
    return run


def test_the_end_of_a_search(tmp_path: Path) -> None:
    trials = [
        *(trial(number) for number in range(1, 11)),
        trial(11, state="PRUNED", epoch=1),
        failed(12),
        trial(13, state="STOPPED", score=None),
    ]
    summary = summary_of(trials, why_ended="40 trials")
    sink, run = recorded(tmp_path, summary, verdict="It is trained again.")
    parent, best = run_of(sink, run.label), summary["best"]
    assert parent.artifacts == {
        f"search/{name}" for name in (*PICTURES, "trials.csv", "trials.json", "summary.md")
    }
    assert parent.tags["mlflow.note.content"].startswith("## Best of 13 trials: val/loss ")
    assert "It is trained again." in parent.tags["mlflow.note.content"]
    assert "loguniform 0.0001 … 0.1" in parent.tags["mlflow.note.content"]
    assert parent.tags["orchestrator.best_trial"] == best
    chosen = next(one for one in trials if one["id"] == best)
    assert float(parent.params[f"best.{LR}"]) == chosen["params"][LR]
    assert parent.params[f"best.{KIND}"] == chosen["params"][KIND]
    assert json.loads(parent.params[f"best.{HIDDEN}"]) == chosen["params"][HIDDEN]
    marked = [one.name for one in sink.runs.values() if one.tags.get("orchestrator.best") == "true"]
    assert marked == [best]
    figures = {point.key: (point.value, point.step) for point in parent.points.values()}
    assert figures == {
        "search/trials_completed": (10.0, 13),
        "search/trials_pruned": (1.0, 13),
        "search/trials_failed": (1.0, 13),
        "search/trials_stopped": (1.0, 13),
        "search/best_val_loss": (chosen["score"], 13),
    }
    states = {
        name: (run_of(sink, name).status, run_of(sink, name).tags["orchestrator.trial_state"])
        for name in ("trial-001", "trial-011", "trial-012", "trial-013")
    }
    assert states == {
        "trial-001": ("SUCCEEDED", "COMPLETED"),
        "trial-011": ("SUCCEEDED", "PRUNED"),
        "trial-012": ("FAILED", "FAILED"),
        "trial-013": ("STOPPED", "STOPPED"),
    }
    assert run_of(sink, "trial-012").tags["orchestrator.error"] == "CUDA out of memory"
    assert (
        run_of(sink, "trial-001").tags.items() >= {"team": "vision", "orchestrator.search": run.label}.items()
    )
    assert run_of(sink, "trial-001").params[SIZE] == "32"
    with (run.local / "search" / "trials.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["trial"] == best
    assert len(rows) == 13
    shown = json.loads((run.local / "search" / "trials.json").read_text())
    assert shown["columns"] == list(rows[0])
    assert len(shown["data"]) == 13
    assert json.loads(parent.tags["mlflow.loggedArtifacts"]) == [
        {"path": "search/trials.json", "type": "table"}
    ]


CASES: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "one": [trial(1)],
    "failed": [failed(1), failed(2), failed(3, "another")],
    "constant": [trial(number, params={LR: 0.1}) for number in range(1, 12)],
    "no params": [trial(number, params={}) for number in range(1, 4)],
    "equal": [trial(number, score=0.5) for number in range(1, 12)],
    "odd values": [
        trial(number, params={"a|b": {"x": 1} if number % 2 else None, "on": number > 4})
        for number in range(1, 12)
    ],
    "far": [trial(number, score=1e300 if number == 3 else 0.1 * number) for number in range(1, 12)],
    "infinite": [trial(number, score=math.inf if number == 3 else -0.1 * number) for number in range(1, 12)],
    "many params": [
        trial(number, params={f"p{n}": number * n for n in range(30)}) for number in range(1, 12)
    ],
}


@pytest.mark.parametrize(
    ("case", "mode"), [*((case, "min") for case in CASES), ("far", "max"), ("infinite", "max")]
)
def test_every_search_can_be_recorded(tmp_path: Path, case: str, mode: str) -> None:
    sink, run = recorded(tmp_path, summary_of(CASES[case], mode=mode))
    parent = run_of(sink, run.label)
    assert {name.removeprefix("search/") for name in parent.artifacts} >= PICTURES
    for name in PICTURES:
        assert (run.local / "search" / name).read_bytes().startswith(b"\x89PNG")


def test_a_search_of_several_objectives(tmp_path: Path) -> None:
    trials = [trial(number) for number in range(1, 13)]
    summary = summary_of(
        trials, metric=["val/loss", "size"], mode=["min", "max"], pareto=["trial-003", "trial-005"]
    )
    sink, run = recorded(tmp_path, summary)
    parent = run_of(sink, run.label)
    assert parent.artifacts >= {"search/pareto_front.png", "search/trials.csv"}
    assert (
        "## Pareto front of 12 trials: 2 trials for val/loss (min), size (max)"
        in parent.tags["mlflow.note.content"]
    )
    marked = {one.name for one in sink.runs.values() if one.tags.get("orchestrator.pareto") == "true"}
    assert marked == {"trial-003", "trial-005"}
    assert not any(key.startswith("best.") for key in parent.params)
    figures = {point.key: point.value for point in parent.points.values()}
    assert figures["search/best_size"] == max(one["metrics"]["size"] for one in trials)
    assert figures["search/pareto_trials"] == 2


def test_a_search_that_goes_on_after_its_end_may_find_a_better_one(tmp_path: Path) -> None:
    first = [trial(1, score=0.5), trial(2, score=0.4)]
    sink, run = recorded(tmp_path, summary_of(first), summary_of([*first, trial(3, score=0.1)]))
    marks = {one.name: one.tags.get("orchestrator.best") for one in sink.runs.values()}
    assert marks == {run.label: None, "trial-001": None, "trial-002": "false", "trial-003": "true"}
    assert run_of(sink, run.label).tags["orchestrator.best_trial"] == "trial-003"
    steps = [p.step for p in run_of(sink, run.label).points.values() if p.key == "search/best_val_loss"]
    assert steps == [2, 3]


def test_ends_that_a_killed_driver_did_not_record_are_made_up_for(tmp_path: Path) -> None:
    sink, run = MemorySink(), RunFolder(Folder.at(tmp_path / "runs"), "digits_tune", 1)
    trials = [trial(1), trial(2, state="PRUNED"), trial(3, state="PAUSED")]
    for driver in (1, 2):
        tracker = Tracker.open(tmp_path / "journal", sink, interval_s=0.01)
        tracker.start_run(StartRun("digits", run.label))
        if driver == 1:
            for one in trials:
                tracker.child(one["id"], recording.start_of_trial(run.label, one["id"], one["params"], {}))
        else:
            recording.record_search_end(tracker, run, summary_of(trials), SECTION)
            assert set(tracker.open_children()) == {"trial-003"}
            tracker.end_run("SUCCEEDED")
        assert tracker.close(60)
    ends = {
        name: (run_of(sink, name).status, run_of(sink, name).tags["orchestrator.trial_state"])
        for name in ("trial-001", "trial-002", "trial-003")
    }
    assert ends == {
        "trial-001": ("SUCCEEDED", "COMPLETED"),
        "trial-002": ("SUCCEEDED", "PRUNED"),
        "trial-003": ("STOPPED", "RUNNING"),
    }


def test_progress_is_told_by_the_number_of_finished_trials(tmp_path: Path) -> None:
    sink = MemorySink()
    tracker = Tracker.open(tmp_path, sink, interval_s=0.01)
    tracker.start_run(StartRun("digits", "digits_tune-1"))
    running = trial(3, state="RUNNING", score=0.9)
    recording.record_search_progress(tracker, summary_of([running]))
    for _ in range(2):
        recording.record_search_progress(tracker, summary_of([trial(1, score=0.5), running]))
    recording.record_search_progress(tracker, summary_of([trial(1, score=0.5), trial(2, score=0.2), running]))
    assert tracker.close(20)
    (run,) = sink.runs.values()
    best = [(p.step, p.value) for p in run.points.values() if p.key == "search/best_val_loss"]
    assert best == [(1, 0.5), (2, 0.2)]


def test_a_hand_over_is_noted(tmp_path: Path) -> None:
    sink = MemorySink()
    tracker = Tracker.open(tmp_path, sink, interval_s=0.01)
    tracker.start_run(StartRun("digits", "digits_tune-1"))
    child = tracker.child("trial-001", recording.start_of_trial("digits_tune-1", "trial-001", {LR: 0.1}, {}))
    recording.record_hand_over(child, 4, "trial-002", {LR: 0.08})
    child.end_run("SUCCEEDED")
    assert tracker.close(20)
    tags = run_of(sink, "trial-001").tags
    assert tags["orchestrator.hand_over.0004"] == f"from trial-002: {LR}=0.08"


def test_a_picture_that_cannot_be_drawn_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(recording, "importance_picture", broken)
    sink, run = recorded(tmp_path, summary_of([trial(1)]))
    artifacts = run_of(sink, run.label).artifacts
    assert "search/importance.png" not in artifacts
    assert "search/best_so_far.png" in artifacts


def test_importance_finds_what_matters() -> None:
    summary = summary_of([trial(number) for number in range(1, 61)])
    found = importance(summary, {LR})
    assert found is not None
    assert found.names[0] == LR
    assert found.means[0] > 5 * max(found.means[1:])
    assert found.r2 > 0.5
    assert SIZE not in found.names
    assert found == importance(summary, {LR})
    assert importance(summary_of([trial(number) for number in range(1, FEWEST_TRIALS)])) is None


def test_the_description_tells_failures_first_things_first() -> None:
    errors = ["a | b\n" + "x" * 300, "again", "again", "third", "fourth"]
    text = search_description(
        summary_of([failed(number, error) for number, error in enumerate(errors, start=1)]),
        run="digits_tune-1",
    )
    assert text.startswith("## None of 5 trials gave a value of val/loss")
    assert "- 2 trials: again" in text
    assert "1 other reason" in text
    assert "orchestrator tune status digits_tune-1" in text


def test_tables_have_a_row_for_each_trial_the_best_first() -> None:
    columns, rows = table(summary_of([trial(1, score=0.5), failed(2), trial(3, score=0.1)]))
    assert [row[columns.index("trial")] for row in rows] == ["trial-003", "trial-001", "trial-002"]
    assert rows[2][columns.index("val/loss")] is None
    assert rows[0][columns.index(HIDDEN)] in ("[64]", "[128, 64]")


def test_short_names_tell_paths_apart() -> None:
    assert short_names([LR, "train.ema.lr", "seed"]) == {
        LR: "optimizer.lr",
        "train.ema.lr": "ema.lr",
        "seed": "seed",
    }
