"""Searches that go on beyond their end, trials that end before theirs, and what is refused before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engine.link import WorkerLink
from orchestrator.engine.loop import train
from orchestrator.errors import SpecError, UsageError
from orchestrator.records import EpochReport, Verdict
from orchestrator.runners.job import resolve_job
from orchestrator.runners.ray_workers.pool import Pool
from orchestrator.runners.search.conductor import Conductor
from orchestrator.runners.search.trial_runs import TrialRuns
from orchestrator.runners.search.winner import _begin
from orchestrator.runs.choose import Choice, choose_run
from orchestrator.runs.claim import release_claim
from orchestrator.runs.folder import RunFolder
from orchestrator.spec import load_spec
from orchestrator.storage import Folder
from orchestrator.worker import WorkerTask, checkpoint_store
from tests.unit.engine_case import case_attempt, case_spec
from tests.unit.runs_helpers import identity_of
from tests.unit.search_run_case import setting_in
from tests.unit.search_simulation import settings, space_of
from tests.unit.test_trial_resume import epochs, save, trial
from tests.unit.tune_case import searching
from tests.unit.tune_case import space_of as space_of_job

LR = {"train.optimizer.lr": {"loguniform": [1e-4, 1e-1]}}


def chosen(storage: Folder, resume: str | None = None, **tune: Any) -> Choice:
    spec = load_spec(searching(LR, scheduler={"kind": "asha"}, **tune)).spec
    choice = choose_run(storage, spec, identity_of(spec), resume=resume)
    choice.run.write_verdict(Verdict("SUCCEEDED", 0, "done"))
    release_claim(choice.run, choice.claim)
    return choice


def test_a_search_that_ended_well_goes_on_with_more_trials_or_more_time(tmp_path: Path) -> None:
    storage = Folder.at(tmp_path)
    first = chosen(storage, num_samples=4, time_budget="1h")
    for more in ({"num_samples": 8, "time_budget": "1h"}, {"num_samples": 8}):
        again = chosen(storage, first.run.label, **more)
        assert (again.run.label, again.resumed) == (first.run.label, True)
    for no_more in ({"num_samples": 8}, {"num_samples": 4}, {"num_samples": 8, "time_budget": "2h"}):
        with pytest.raises(UsageError, match="is finished") as error:
            chosen(storage, first.run.label, **no_more)
        assert "tune.num_samples" in error.value.mend


def test_a_search_whose_time_was_used_up_goes_on_with_more() -> None:
    events: list[dict[str, Any]] = []
    facts: dict[str, Any] = {"seed": 0, "max_epochs": 3}
    short, longer = settings(time_budget=100), settings(time_budget=300)
    conductor = Conductor(short, space_of(short), **facts, record=events.append)
    running = conductor.next_trial(0.0)
    assert running is not None
    conductor.tick(101.0)
    conductor.ended(running.trial_id, "broken off")
    assert (running.state, conductor.finished) == ("STOPPED", True)
    same = Conductor.replay(short, space_of(short), **facts, record=lambda event: None, events=events)
    assert (same.why_ended, same.finished) == (conductor.why_ended, True)
    more = Conductor.replay(longer, space_of(longer), **facts, record=lambda event: None, events=events)
    assert (more.why_ended, more.trials[running.trial_id].state) == ("", "PENDING")
    again = more.next_trial(0.0)
    assert again is more.trials[running.trial_id]
    more.tick(201.0)
    assert more.why_ended == "the time budget of 300 s is used up"


def test_the_checkpoints_of_an_earlier_winner_are_forgotten(tmp_path: Path) -> None:
    with setting_in(tmp_path) as setting:
        run = setting.run.trial("trial-009")  # stands for the run itself
        task = WorkerTask(setting.job.loaded.spec, run, "", [])
        best = replace(trial(1), best_epoch=3, best_params={"train.optimizer.lr": 0.1 + 0.2})
        _begin(task, best, "retrain")
        save(setting, "trial-009", 1)
        _begin(task, best, "retrain")
        assert epochs(setting, "trial-009") == [1]
        _begin(task, best, "checkpoint")
        assert epochs(setting, "trial-009") == []


@pytest.mark.parametrize(("then", "wish"), [("checkpoint", "stop"), ("retrain", "leave")])
def test_a_trial_that_is_good_enough_is_saved_where_its_checkpoint_may_be_taken(
    tmp_path: Path, then: str, wish: str
) -> None:
    goal = {"metric": {"val/loss": 0.5}}
    with setting_in(tmp_path, then=then, stop=goal, scheduler={"kind": "fifo"}) as setting:
        conductor = Conductor(
            setting.section,
            space_of_job(setting.job.loaded),
            seed=0,
            max_epochs=9,
            record=lambda event: None,
        )
        runs = TrialRuns(setting, conductor, Pool(1, recycle_bytes=10**9))
        running = conductor.next_trial(0.0)
        assert running is not None
        assert runs._decide(running, EpochReport(1, 10, {"val/loss": 0.6}, 1.0)) == "go on"
        assert runs._decide(running, EpochReport(2, 20, {"val/loss": 0.4}, 2.0)) == wish
        conductor.ended(running.trial_id, "paused" if wish == "stop" else "stopped")
        assert running.state == "COMPLETED"


def test_an_epoch_that_is_cut_short_is_reported(tmp_path: Path) -> None:
    spec = case_spec(train={"max_steps": 15, "max_epochs": 3})
    link = WorkerLink()
    link.gates = ()
    attempt = case_attempt(spec, tmp_path, link)
    link.start()
    assert train(attempt).status == "completed"
    letter = link.letter()
    assert letter is not None
    assert [(report.epoch, report.step) for report in letter.reports] == [(1, 11), (2, 15)]
    assert all("val/loss" in report.metrics for report in letter.reports)
    assert [
        one.epoch for one in checkpoint_store(spec, RunFolder(Folder.at(tmp_path), "case", 1)).manifests()
    ][-1] == 1


@pytest.mark.parametrize("path", ["init_from", "init_from.uri"])
def test_weights_to_begin_with_are_not_searched(path: str) -> None:
    with pytest.raises(SpecError, match="fetched once, for all trials"):
        load_spec(searching(LR | {path: {"choice": ["digits-1", "digits-2"]}}))


def test_inline_is_refused_before_anything_starts() -> None:
    with pytest.raises(UsageError, match="tune searches among many"):
        resolve_job(load_spec(searching(LR)), inline=True, address=None)
