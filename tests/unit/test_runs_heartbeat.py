from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

import pytest

from orchestrator.records import Progress, Verdict
from orchestrator.runs.claim import live_claim, release_claim, take_claim
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.heartbeat import Heartbeat
from orchestrator.runs.reconcile import reconcile
from orchestrator.runs.views import describe_run, run_state
from orchestrator.storage import Folder
from tests.unit.runs_helpers import HALFWAY, kill, start


class Reasons:
    """Collects what `on_stop` is told; `come` waits for the first."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self._event = threading.Event()

    def __call__(self, reason: str) -> None:
        self.told.append(reason)
        self._event.set()

    def come(self) -> list[str]:
        assert self._event.wait(20)
        return self.told


def test_beats_carry_progress_and_the_last_is_written_at_the_end(tmp_path: Path) -> None:
    choice = start(Folder.at(tmp_path))
    progress: list[Progress | None] = [None]
    heart = Heartbeat(choice.run, choice.claim, lambda: progress[0], lambda _: None, interval_s=60)
    with heart:
        progress[0], heart.attempt = HALFWAY, 2
    pulse = choice.run.read_beat()
    assert pulse is not None
    assert (pulse.progress, pulse.attempt, pulse.claim) == (HALFWAY, 2, 1)
    assert run_state(choice.run, time.time()) == "RUNNING"


def test_a_request_to_stop_is_told_once(tmp_path: Path) -> None:
    choice, reasons = start(Folder.at(tmp_path)), Reasons()
    with Heartbeat(choice.run, choice.claim, lambda: None, reasons, interval_s=0.01) as heart:
        choice.run.request_stop()
        reasons.come()
    assert reasons.told == ["stop requested"]
    assert not heart.lost


def test_a_driver_that_was_replaced_is_told_and_writes_no_more(tmp_path: Path) -> None:
    choice, reasons = start(Folder.at(tmp_path)), Reasons()
    kill(choice.run)
    newer = take_claim(choice.run, time.time())
    assert newer is not None
    with Heartbeat(choice.run, choice.claim, lambda: None, reasons, interval_s=0.01) as heart:
        assert reasons.come() == ["another driver has taken over this run"]
    assert heart.lost
    assert choice.run.read_beat() is None


def test_faults_of_the_storage_are_survived_and_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    choice = start(Folder.at(tmp_path))
    failed_thrice, write, calls = threading.Event(), RunFolder.write_beat, []

    def write_badly(run: RunFolder, pulse: object) -> None:
        calls.append(pulse)
        if len(calls) >= 3:
            failed_thrice.set()
        raise OSError("disk is gone")

    monkeypatch.setattr(RunFolder, "write_beat", write_badly)
    with (
        caplog.at_level(logging.WARNING),
        Heartbeat(choice.run, choice.claim, lambda: HALFWAY, lambda _: None, interval_s=0.01),
    ):
        assert failed_thrice.wait(20)
        monkeypatch.setattr(RunFolder, "write_beat", write)
    assert len([r for r in caplog.records if "disk is gone" in r.message]) == 1
    assert choice.run.read_beat() is not None


def test_reconcile_gives_dead_runs_a_verdict_and_leaves_the_others(tmp_path: Path) -> None:
    storage = Folder.at(tmp_path)
    dead, live, done = (start(storage, fresh=True) for _ in range(3))
    with Heartbeat(dead.run, dead.claim, lambda: HALFWAY, lambda _: None):
        pass
    kill(dead.run)
    done.run.write_verdict(Verdict("SUCCEEDED", 0, "done"))
    kill(done.run)
    assert run_state(dead.run, time.time()) == "DEAD"
    told: list[tuple[str, str]] = []
    closed = reconcile(storage, lambda run, verdict: told.append((run.label, verdict.status)))
    assert closed == [dead.run]
    assert told == [("digits-1", "FAILED")]
    verdict = dead.run.read_verdict()
    assert verdict is not None
    assert (verdict.exit_code, verdict.cause) == (1, "control plane")
    assert verdict.reason.startswith("the driver died at 2")
    assert "step 120" in verdict.mend
    assert live.run.read_verdict() is None
    assert reconcile(storage, lambda run, verdict: told.append(("again", ""))) == []
    assert live_claim(live.run, time.time()) == live.claim


def test_reconcile_lets_a_dead_run_be_resumed_at_once(tmp_path: Path) -> None:
    storage = Folder.at(tmp_path)
    dead = start(storage)
    kill(dead.run)
    reconcile(storage, lambda run, verdict: None)
    again = start(storage)
    assert (again.run, again.resumed) == (dead.run, True)


def test_reconcile_tries_again_where_the_tracking_was_down(tmp_path: Path) -> None:
    storage = Folder.at(tmp_path)
    dead = start(storage)
    kill(dead.run)

    def down(run: RunFolder, verdict: Verdict) -> None:
        raise ConnectionError("no server")

    assert reconcile(storage, down) == []
    assert dead.run.read_verdict() is None
    assert reconcile(storage, lambda run, verdict: None) == [dead.run]


def test_reconcile_yields_to_a_driver_that_takes_the_run_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = Folder.at(tmp_path)
    dead = start(storage)
    kill(dead.run)
    monkeypatch.setattr("orchestrator.runs.reconcile.take_claim", lambda run, now_s: None)
    assert reconcile(storage, lambda run, verdict: pytest.fail("touched")) == []


def test_a_run_is_described(tmp_path: Path) -> None:
    choice = start(Folder.at(tmp_path))
    run = choice.run
    assert describe_run(run)["state"] == "PENDING"
    with Heartbeat(run, choice.claim, lambda: HALFWAY, lambda _: None):
        pass
    running = describe_run(run)
    assert (running["name"], running["state"], running["eta_s"]) == ("digits-1", "RUNNING", 12)
    run.update_record(mlflow_run_id="abc")
    run.write_result({"metrics": {"best/val_loss": 0.2, "train/loss": 1.0}})
    run.write_verdict(Verdict("SUCCEEDED", 0, "done", metrics={"test/accuracy": 0.98}))
    release_claim(run, choice.claim)
    ended = describe_run(run)
    assert (ended["state"], ended["eta_s"], ended["mlflow_run_id"]) == ("SUCCEEDED", None, "abc")
    assert ended["metrics"] == {"best/val_loss": 0.2, "test/accuracy": 0.98}
    assert ended["folder"] == str(tmp_path / "digits-1")
    assert 0 <= ended["duration_s"] < 60
