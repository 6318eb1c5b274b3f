"""The threads in which trials run: how each ends, whatever happens to its workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import PlacementError, TrackingError
from orchestrator.runners.ray_workers import supervise
from orchestrator.runners.ray_workers.follow import Done
from orchestrator.runners.ray_workers.pool import Pool
from orchestrator.runners.search import trial_runs
from orchestrator.runners.search.conductor import Conductor
from orchestrator.runners.search.trial import Trial
from orchestrator.runners.search.trial_runs import Setting, TrialRuns
from orchestrator.spec import load_spec
from tests.unit.search_run_case import setting_in
from tests.unit.tune_case import searching, space_of

Train = Callable[..., Done]


@pytest.fixture
def setting(tmp_path: Path) -> Iterator[Setting]:
    with setting_in(tmp_path, num_samples=4) as setting:
        yield setting


def runs_of(setting: Setting, monkeypatch: pytest.MonkeyPatch, train: Train) -> TrialRuns:
    """The runs of trials, each of which is trained by `train`."""
    monkeypatch.setattr(supervise, "run_trial", train)
    spec = setting.job.loaded.spec
    conductor = Conductor(
        setting.section,
        space_of(setting.job.loaded),
        seed=0,
        max_epochs=spec.train.max_epochs,
        record=lambda event: None,
    )
    return TrialRuns(setting, conductor, Pool(2, recycle_bytes=10**9))


def begin(runs: TrialRuns) -> Trial:
    with runs.lock:
        trial = runs._conductor.next_trial(0.0)
        assert trial is not None
        runs.start(trial)
    return trial


def wait(runs: TrialRuns, count: int = 0) -> None:
    until_s = time.monotonic() + 5
    while runs.count > count and time.monotonic() < until_s:
        time.sleep(0.01)
    assert runs.count == count


def test_a_trial_that_is_told_to_stop_while_its_data_is_prepared_gets_no_workers(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    told, preparing = threading.Event(), threading.Event()

    def prepare(*arguments: Any, **named: Any) -> Any:
        preparing.set()
        assert told.wait(5)
        assert named["stop"].is_set()
        return setting.prepared

    monkeypatch.setattr(trial_runs, "_data_of", lambda spec: object())  # each has data of its own
    monkeypatch.setattr(trial_runs, "prepare_data", prepare)

    def train(task: Any, *rest: Any, **named: Any) -> Done:
        trained.append(task)
        return Done("left", 1)

    runs = runs_of(setting, monkeypatch, train)
    trial = begin(runs)
    assert preparing.wait(5)
    runs.stop_all()
    told.set()
    wait(runs)
    assert not trained
    assert (trial.state, runs.trouble) == ("PENDING", None)


def test_a_trial_whose_desk_was_not_there_yet_is_told_to_stop_all_the_same(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def train(task: Any, desk: Any, *rest: Any, **named: Any) -> Done:
        asked.append(desk.stop_requested)
        return Done("stopped", 0, ended=False)

    runs = runs_of(setting, monkeypatch, train)
    child_of = runs.child_of

    def stopping(trial: Trial) -> Any:  # called between the lease and the desk
        runs.stop_all()
        return child_of(trial)

    monkeypatch.setattr(runs, "child_of", stopping)
    trial = begin(runs)
    wait(runs)
    assert asked == [True]
    assert trial.state == "PENDING"


def test_no_place_for_the_only_trial_ends_the_search_and_no_place_beside_others_does_not(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()

    def train(task: Any, *rest: Any, **named: Any) -> Done:
        if task.run.label == "trial-001":
            assert free.wait(5)
            return Done("left", 1)
        raise PlacementError("there is no place")

    runs = runs_of(setting, monkeypatch, train)
    begin(runs)
    second = begin(runs)
    wait(runs, 1)
    assert (second.state, runs.crowded, runs.trouble) == ("PENDING", True, None)
    free.set()
    wait(runs)
    assert not runs.crowded
    assert begin(runs) is second
    wait(runs)
    assert isinstance(runs.trouble, PlacementError)
    assert second.state == "PENDING"


def test_what_breaks_where_an_end_is_told_ends_the_search(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise AssertionError("the scheduler is at its wits' end")

    runs = runs_of(setting, monkeypatch, lambda *rest, **named: Done("left", 1))
    monkeypatch.setattr(runs._conductor, "ended", broken)
    begin(runs)
    wait(runs)
    assert isinstance(runs.trouble, AssertionError)
    assert not runs._pool._busy


def test_a_pause_that_was_not_saved_is_none(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    """The workers were killed before they had saved, as the driver was to stop."""

    def train(task: Any, desk: Any, *rest: Any, **named: Any) -> Done:
        desk._decided = "stop"
        return Done("stopped", 1, ended=False)

    runs = runs_of(setting, monkeypatch, train)
    ended: list[str] = []
    monkeypatch.setattr(runs._conductor, "ended", lambda trial_id, how, failure=None: ended.append(how))
    begin(runs)
    wait(runs)
    assert ended == ["broken off"]


def test_a_group_may_be_given_back_to_a_pool_that_was_closed() -> None:
    pool = Pool(1, recycle_bytes=10**9)
    lease = pool.lease(load_spec(searching()).spec.resources)
    pool.close()
    pool.give_back(lease)
    assert not pool._idle


def test_a_trial_does_not_fail_since_its_driver_cannot_record_it(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(trial: Trial) -> Any:
        raise TrackingError("the disk is full")

    runs = runs_of(setting, monkeypatch, lambda *rest, **named: Done("left", 1))
    monkeypatch.setattr(runs, "child_of", full)
    trial = begin(runs)
    wait(runs)
    assert isinstance(runs.trouble, TrackingError)
    assert not trial.is_finished()
