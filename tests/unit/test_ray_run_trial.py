"""After a trial its workers take the next one: but only those that certainly do nothing any more."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray

from orchestrator.errors import PlacementError
from orchestrator.records import Failure
from orchestrator.runners.chronicle import Chronicle
from orchestrator.runners.desk import Desk
from orchestrator.runners.ray_workers import follow
from orchestrator.runners.ray_workers.follow import Done
from orchestrator.runners.ray_workers.group import StartFailed
from orchestrator.runners.ray_workers.process import Ended
from orchestrator.runners.ray_workers.supervise import RunFailed, run_trial
from orchestrator.runs.folder import RunRecord, create_run
from orchestrator.spec import load_spec
from orchestrator.storage import Folder
from orchestrator.tracking.memory import MemorySink
from orchestrator.tracking.ops import StartRun
from orchestrator.tracking.tracker import Tracker
from orchestrator.worker import WorkerTask
from tests.unit.spec_helpers import minimal
from tests.unit.trial_case import WORKS, AskedToStop, Group, Head, Staff, done, failed


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Run a trial of two workers, that is never tried again; gives how it ended and its staff."""
    monkeypatch.setattr(follow, "COLLECT_S", 0.2)
    monkeypatch.setattr(follow, "QUIET_S", 0.2)
    tracker = Tracker.open(tmp_path / "journal", MemorySink(), interval_s=0.01)
    tracker.start_run(StartRun("digits", "digits-1"))
    folder = create_run(Folder.at(tmp_path / "runs"), "digits")
    folder.write_record(RunRecord("digits", 1))
    never = dict.fromkeys(("max_failures", "max_control_plane_failures", "max_preemption_failures"), 0)

    def run_it(
        told: list[dict[int, Any]] | Exception,
        desk: Desk | None = None,
        head: Head | None = None,
        **failure: Any,
    ) -> tuple[Any, Any]:
        spec = load_spec(minimal(failure={**never, **failure})).spec
        staff: Any = Staff(told if isinstance(told, Exception) else Group(told))
        task = WorkerTask(spec, folder, str(tmp_path), (), gates=(1, 2))
        chronicle = Chronicle(folder, tracker, str, began_s=0.0)
        try:
            args: Any = (task, desk or Desk(lambda points: None), staff, chronicle, head or Head())
            return run_trial(*args, say=lambda text: None), staff
        except Exception as error:  # noqa: BLE001 - the tests look at it
            return error, staff
        finally:
            chronicle.close()

    yield run_it
    tracker.close(10)


def stopping() -> Desk:
    desk = Desk(lambda points: None)
    desk.request_stop()
    return desk


@pytest.mark.parametrize("status", ["completed", "stopped", "left"])
def test_workers_that_ended_together_stay_with_their_process_group(run: Any, status: str) -> None:
    ended, staff = run([{0: WORKS}, {1: done(status, 7), 0: WORKS}, {0: done(status, 5)}])
    assert ended == Done(status, 2, memory_bytes=7)
    assert (staff.closed, staff.kept) == (0, [])
    assert (staff._ready.kept_group, staff._ready.ended_together) == ([True], 1)


def test_workers_whose_code_failed_stay_but_meet_anew(run: Any) -> None:
    error, staff = run([{0: failed(0, "user error", peer_lost=True), 1: failed(1, "user error")}])
    assert isinstance(error, RunFailed)
    assert error.failure.rank == 1
    assert (staff.closed, staff.kept) == (0, [[0, 1]])
    assert staff._ready.ended_together == 0


def test_a_worker_that_is_still_at_it_is_ended_with_the_trial(run: Any) -> None:
    error, staff = run([{0: WORKS, 1: failed(1, "user error")}, {0: WORKS}])
    assert isinstance(error, RunFailed)
    assert (staff.closed, staff.kept) == (0, [[1]])


def test_a_worker_that_ends_its_process_is_not_kept(run: Any) -> None:
    leaving = replace(failed(1, "user error").ended.failure, process_exit=3)  # type: ignore[union-attr, type-var]
    told = {0: failed(0, "hardware", peer_lost=True), 1: replace(WORKS, ended=Ended(failure=leaving))}
    error, staff = run([told])
    assert isinstance(error, RunFailed)
    assert (error.failure.rank, staff.closed, staff.kept) == (1, 0, [[0]])


def test_a_worker_that_died_is_not_kept(run: Any) -> None:
    dead = Failure(1, 1, 1.0, "killed", "hardware")
    error, staff = run([{1: dead, 0: failed(0, "hardware", peer_lost=True)}])
    assert isinstance(error, RunFailed)
    assert (error.failure.rank, staff.closed, staff.kept) == (1, 0, [[0]])


def test_no_worker_of_a_trial_that_hung_is_kept(run: Any) -> None:
    error, staff = run([{0: WORKS, 1: WORKS}], hang_timeout=0.05)
    assert isinstance(error, RunFailed)
    assert "no rank has moved" in error.failure.error
    assert staff.kept == [[]]


def test_workers_that_do_not_save_in_time_are_ended(run: Any) -> None:
    """The stop comes while they work, else they would not have begun."""
    desk = Desk(lambda points: None)
    ended, staff = run([AskedToStop(desk, {0: WORKS, 1: WORKS})], desk, stop_grace=0.05)
    assert ended == Done("stopped", 2, ended=False)
    assert staff.closed == 1


def test_a_failure_while_the_search_stops_is_a_stop(run: Any) -> None:
    desk = Desk(lambda points: None)
    ended, staff = run([AskedToStop(desk, {0: WORKS, 1: failed(1, "user error")}), {0: WORKS}], desk)
    assert (ended.status, ended.ended, staff.closed) == ("stopped", False, 1)


def test_a_trial_that_is_stopped_before_it_began(run: Any) -> None:
    ended, staff = run([{0: WORKS}], stopping())
    assert (ended.status, staff.closed, staff.kept) == ("stopped", 1, [])


@pytest.mark.parametrize(
    ("trouble", "raised", "cause"),
    [
        (PlacementError("no room", "free some"), PlacementError, None),
        (StartFailed("cannot import", "install it"), RunFailed, "internal"),
        (ray.exceptions.RaySystemError("the store is full"), RunFailed, "control plane"),
    ],
    ids=["no place", "cannot start", "ray"],
)
def test_what_is_no_ranks_fault_ends_the_workers(
    run: Any, trouble: Exception, raised: type[Exception], cause: str | None
) -> None:
    error, staff = run(trouble)
    assert type(error) is raised
    assert staff.closed == 1
    if isinstance(error, RunFailed):
        assert (error.failure.rank, error.failure.cause) == (-1, cause)


@pytest.mark.parametrize("looks", [0, 3])
def test_a_head_that_is_lost_ends_the_workers(run: Any, looks: int) -> None:
    error, staff = run([{0: WORKS, 1: WORKS}], head=Head(looks))
    assert isinstance(error, RunFailed)
    assert (error.failure.rank, error.failure.cause, staff.closed) == (-1, "control plane", 1)
