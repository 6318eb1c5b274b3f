"""The search's main thread, without workers: what it writes, and how it ends where nothing may run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orchestrator.runners.ray_workers.pool import Pool
from orchestrator.runners.search import search as searches
from orchestrator.runners.search.conductor import Conductor
from orchestrator.runners.search.journal import Journal
from orchestrator.runners.search.search import _Search
from orchestrator.runners.search.trial_runs import Setting
from tests.unit.search_run_case import setting_in


@pytest.fixture(autouse=True)
def _room_for_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searches, "num_side_by_side", lambda spec: 2)


def search_of(setting: Setting, **watch: Any) -> _Search:
    facts = {"stop": None, "heartbeat": None, "show_search": lambda summary: None}
    known: Any = SimpleNamespace(**(facts | watch))
    return _Search(setting, Pool(2, recycle_bytes=10**9), known)


def test_a_search_that_is_to_stop_before_it_began_starts_nothing(tmp_path: Path) -> None:
    with setting_in(tmp_path) as setting:
        search = search_of(setting, stop=("interrupted", 130))
        assert search.run() == "stopped"
        assert search.conductor.trials == {}


def test_trials_are_on_the_disk_before_they_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with setting_in(tmp_path, num_samples=2) as setting:
        search = search_of(setting)
        known: dict[str, list[str]] = {}

        def start(trial: Any) -> None:
            events = Journal(setting.run.search).events()
            known[trial.trial_id] = [
                event["event"] for event in events if event.get("trial") == trial.trial_id
            ]

        monkeypatch.setattr(search._runs, "start", start)
        search._widen()
        search._start_trials()
        assert known == {name: ["made", "started"] for name in ("trial-001", "trial-002")}


def test_a_driver_whose_run_was_taken_over_writes_nothing(tmp_path: Path) -> None:
    with setting_in(tmp_path) as setting:
        beat = SimpleNamespace(lost=False)
        search = search_of(setting, heartbeat=beat)
        search._journal.append({"event": "search ended", "why": "of old age"})
        beat.lost = True
        search._flush()
        search._show()
        assert Journal(setting.run.search).events() == []
        assert setting.run.read_search() is None
        beat.lost = False
        search._flush()
        search._show()
        assert len(Journal(setting.run.search).events()) == 1
        assert setting.run.read_search() is not None


def test_the_time_left_is_by_the_pace_of_this_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with setting_in(tmp_path, num_samples=10) as setting:
        search = search_of(setting)
        search._began_s -= 100.0
        search._ended_before = 4
        monkeypatch.setattr(Conductor, "num_ended", 5)
        assert search._eta_s() == pytest.approx(500.0, rel=0.05)
        monkeypatch.setattr(Conductor, "num_ended", 4)
        assert search._eta_s() is None
