"""`orchestrator tune status`, `best`, `stop` and `resume` on folders as a driver leaves them."""

from __future__ import annotations

import json
import shlex
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from orchestrator.checkpoints.manifest import MANIFEST, Manifest, checkpoint_name, dump_manifest
from orchestrator.cli import tune as verbs
from orchestrator.cli.app import app
from orchestrator.errors import UsageError
from orchestrator.records import Verdict
from orchestrator.runs.folder import RunFolder
from orchestrator.spec import LoadedSpec, render
from orchestrator.storage import Folder
from tests.unit.runs_helpers import beat, kill, make_spec, start
from tests.unit.search_case import search, trial


@pytest.fixture(autouse=True)
def _no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "ORCHESTRATOR_STORAGE"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A search at work: digits-1."""
    run = start(Folder.at(tmp_path)).run
    beat(run)
    run.write_search(search())
    return run


def call(*arguments: str, storage: Folder | None = None) -> Result:
    options = ["--storage", storage.path] if storage else []
    return CliRunner().invoke(app, ["tune", *arguments, *options], env={"COLUMNS": "200", "TERM": "dumb"})


def commit(run: RunFolder, label: str, epoch: int) -> Folder:
    """A checkpoint at the end of an epoch of a trial, as far as its manifest goes."""
    name = checkpoint_name(10 * epoch)
    folder = (run.trial(label).checkpoints / name).create()
    manifest = Manifest(name, 10 * epoch, epoch, 1, 0.0, 1, {}, {})
    folder.write_bytes(MANIFEST, dump_manifest(manifest))
    return folder


def facts_of(text: str) -> dict[str, str]:
    return {line[:13].strip(): line[13:].strip() for line in text.split("\n\n")[0].splitlines()}


def test_status_while_the_search_goes_on(run: RunFolder) -> None:
    done = call("status", "digits", storage=run.storage)
    assert done.exit_code == 0
    facts = facts_of(done.output)
    assert (facts["run"], facts["state"]) == ("digits-1", "SEARCHING")
    assert facts["best so far"].startswith("trial-004, val/loss 0.1 at epoch 4: hidden=[64, 32] lr=0.04938")
    assert facts["time left"] == "about 20s"
    header, *rows = done.output.split("\n\n")[1].splitlines()
    assert header.split() == ["TRIAL", "STATE", "val/loss", "EPOCH", "TIME", "PARAMETERS"]
    assert [row.split()[0] for row in rows] == [f"trial-00{number}" for number in (4, 3, 2, 5, 1)]
    assert "ValueError: no such layer" in rows[-1]


def test_status_says_that_the_driver_is_dead(run: RunFolder) -> None:
    kill(run)
    done = call("status", "digits", storage=run.storage)
    assert facts_of(done.output)["state"] == (
        "DEAD: its driver died; it goes on with: orchestrator tune resume digits-1"
    )
    assert "time left" not in done.output
    told = json.loads(call("status", "digits", "-o", "json", storage=run.storage).output)
    assert told == search() | {"run": "digits-1", "run_state": "DEAD"}


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (Verdict("SUCCEEDED", 0, "done"), "SUCCEEDED"),
        (Verdict("STOPPED", 143, "stopped"), "STOPPED; it goes on with: orchestrator tune resume digits-1"),
        (Verdict("FAILED", 1, "ten equal failures"), "FAILED: ten equal failures"),
    ],
)
def test_status_after_the_search(run: RunFolder, verdict: Verdict, expected: str) -> None:
    run.write_verdict(verdict)
    assert facts_of(call("status", "digits", storage=run.storage).output)["state"] == expected


def test_a_search_that_has_no_trial_yet(tmp_path: Path) -> None:
    run = start(Folder.at(tmp_path)).run
    run.write_spec("tune: {num_samples: 3}\n")
    assert "PENDING: no trial has begun yet" in call("status", "digits", storage=run.storage).output
    assert json.loads(call("status", "digits", "-o", "json", storage=run.storage).output)["run"] == "digits-1"
    done = call("best", "digits", storage=run.storage)
    assert (done.exit_code, done.stderr) == (1, "no trial of digits-1 has a score yet\n")


@pytest.mark.parametrize("verb", ["status", "best", "resume"])
def test_a_run_without_a_search_is_a_usage_error(tmp_path: Path, verb: str) -> None:
    run = start(Folder.at(tmp_path)).run
    run.write_spec(render(make_spec()))
    error = call(verb, "digits-1", storage=run.storage).exception
    assert isinstance(error, UsageError)
    assert "has no `tune`" in str(error)
    assert "orchestrator status digits-1" in str(error)


def test_best_can_be_pasted(run: RunFolder) -> None:
    for epoch in (3, 4, 5):
        commit(run, "trial-004", epoch)
    out = call("best", "digits", storage=run.storage).output
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert lines["trial"] == "trial-004 of digits-1, RUNNING"
    assert lines["score"] == "val/loss 0.1 at epoch 4"
    assert shlex.split(lines["parameters"]) == [
        "model.args.hidden=[64, 32]",
        f"train.optimizer.lr={0.0123456 * 4}",
    ]
    place = (run.trial("trial-004").checkpoints / checkpoint_name(40)).uri
    assert lines["checkpoint"] == f"{place} (epoch 4)"
    assert "MLflow" not in lines
    told = json.loads(call("best", "digits", "-o", "json", storage=run.storage).output)
    assert (told["best"]["id"], told["best"]["checkpoint"]) == ("trial-004", place)
    assert told["best"]["overrides"] == lines["parameters"]


def test_best_takes_the_newest_checkpoint_where_that_of_the_best_epoch_is_gone(run: RunFolder) -> None:
    assert "checkpoint" not in call("best", "digits", storage=run.storage).output
    newest = commit(run, "trial-004", 7)
    assert f"{newest.uri} (epoch 7)" in call("best", "digits", storage=run.storage).output


def test_best_links_to_mlflow(run: RunFolder) -> None:
    record = run.read_record()
    assert record is not None
    run.write_record(replace(record, tracking_uri="http://tracking:5000"))
    trials = [trial(4, "COMPLETED", 0.1, mlflow_run_id="abc")]
    run.write_search(search(*trials, experiment_id="7"))
    out = call("best", "digits", storage=run.storage).output
    assert "http://tracking:5000/#/experiments/7/runs/abc?workflowType=machine_learning" in out
    run.write_search(search(*trials))
    assert "MLflow      run abc" in call("best", "digits", storage=run.storage).output


def test_best_of_a_population_says_that_its_parameters_changed(run: RunFolder) -> None:
    assert "changed" not in call("best", "digits", storage=run.storage).output
    run.write_search(
        search(trial(4, "COMPLETED", 0.1, best_params={"train.optimizer.lr": 0.5}), scheduler="pbt")
    )
    out = call("best", "digits", storage=run.storage).output
    assert "parameters  train.optimizer.lr=0.5\n" in out
    assert "pbt changed them in the course of the trial" in out
    assert json.loads(call("best", "digits", "-o", "json", storage=run.storage).output)["parameters_change"]


def test_best_of_several_metrics_is_a_pareto_front(run: RunFolder) -> None:
    run.write_search(
        search(metric=["val/loss", "val/f1"], mode=["min", "max"], pareto=["trial-003", "trial-004"])
    )
    out = call("best", "digits", storage=run.storage).output
    assert out.startswith("Pareto front of digits-1: 2 of 5 trials\n")
    assert "trial-003 of digits-1" in out
    assert "trial-004 of digits-1" in out
    told = json.loads(call("best", "digits", "-o", "json", storage=run.storage).output)
    assert [entry["id"] for entry in told["pareto"]] == ["trial-003", "trial-004"]


def test_stop_is_that_of_any_run(run: RunFolder) -> None:
    def driver() -> None:
        while not run.stop_requested():
            threading.Event().wait(0.05)
        run.write_verdict(Verdict("STOPPED", 143, "stopped"))

    thread = threading.Thread(target=driver)
    thread.start()
    done = call("stop", "digits", storage=run.storage)
    thread.join()
    assert done.exit_code == 0
    assert "asked to save and end" in done.output
    assert "STOPPED digits-1" in done.output


@pytest.fixture
def resumed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[LoadedSpec, Any]]:
    """What would be run: the runner itself has tests of its own."""
    found: list[tuple[LoadedSpec, Any]] = []
    monkeypatch.setattr(
        verbs, "run_loaded", lambda loaded, **options: found.append((loaded, options["resume"]))
    )
    return found


def test_resume_of_a_run_takes_the_spec_that_it_recorded(
    run: RunFolder, resumed: list[tuple[LoadedSpec, Any]]
) -> None:
    spec = make_spec(description="costs ${env:NOTHING} $5")
    run.write_spec(render(spec))
    assert call("resume", "digits", "train.max_epochs=9", storage=run.storage).exit_code == 0
    [(loaded, label)] = resumed
    assert label == "digits-1"
    assert loaded.spec.storage == run.storage.uri
    assert loaded.spec.train.max_epochs == 9
    assert loaded.spec.description == spec.description
    assert (loaded.spec.data, loaded.spec.model) == (spec.data, spec.model)


def test_resume_of_a_run_with_secrets_asks_for_the_spec(
    run: RunFolder, resumed: list[tuple[LoadedSpec, Any]]
) -> None:
    run.write_spec(render(make_spec(secrets={"TOKEN": "a long secret"})))
    error = call("resume", "digits-1", storage=run.storage).exception
    assert isinstance(error, UsageError)
    assert "has secrets (TOKEN)" in str(error)
    assert not resumed
    assert call("resume", "digits-1", "secrets.TOKEN=told again", storage=run.storage).exit_code == 0


def test_resume_of_a_spec_takes_its_newest_run(
    run: RunFolder, resumed: list[tuple[LoadedSpec, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = start(run.storage, fresh=True).run
    second.write_search(search())
    spec = tmp_path / "job.yaml"
    spec.write_text(render(make_spec(storage=run.storage.path)))
    assert call("resume", str(spec), "seed=3").exit_code == 0
    [(loaded, label)] = resumed
    assert (label, loaded.spec.seed, loaded.path) == ("digits-2", 3, spec)
    error = call("resume", str(spec), "name=other").exception
    assert isinstance(error, UsageError)
    assert f"begin with: orchestrator run {spec}" in str(error)
