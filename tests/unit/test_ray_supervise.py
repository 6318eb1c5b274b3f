"""What the loop of attempts makes of a head that is lost while no worker is at work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

from orchestrator.runners.chronicle import Chronicle
from orchestrator.runners.desk import Desk
from orchestrator.runners.ray_workers import supervise
from orchestrator.runners.ray_workers.head_watch import HeadLost
from orchestrator.runners.ray_workers.supervise import RunFailed, run_ray
from orchestrator.runs.folder import RunRecord, create_run
from orchestrator.spec import load_spec
from orchestrator.storage import Folder
from orchestrator.tracking.memory import MemorySink
from orchestrator.tracking.ops import StartRun
from orchestrator.tracking.tracker import Tracker
from orchestrator.worker import WorkerTask
from tests.unit.spec_helpers import MINIMAL


class Watch:
    """A head that falls silent after so many looks."""

    def __init__(self, looks: int) -> None:
        self._looks = looks

    def __enter__(self) -> Watch:
        return self

    def __exit__(self, *error: object) -> None: ...

    def check(self) -> None:
        self._looks -= 1
        if self._looks < 0:
            raise HeadLost("Ray's head has not answered", "run the same command again")


class Staff:
    """Workers that cannot be had: the wait for them is ended by its `check`, or by Ray."""

    group = None

    def __init__(self, waits: bool) -> None:
        self._waits = waits
        self.closed = False

    def ready(self, avoid: object, check: Callable[[], None], say: object) -> Any:
        while self._waits:
            check()
        raise ray.exceptions.RaySystemError("the store is full")

    def keep_only(self, ranks: object) -> None: ...

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def tracker(tmp_path: Path) -> Iterator[Tracker]:
    opened = Tracker.open(tmp_path / "journal", MemorySink(), interval_s=0.01)
    opened.start_run(StartRun("digits", "digits-1"))
    yield opened
    opened.close(10)


@pytest.mark.parametrize("waits", [True, False], ids=["while workers are placed", "before another attempt"])
def test_a_head_that_is_lost_between_attempts_is_blamed_on_no_rank(
    tmp_path: Path, tracker: Tracker, monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    monkeypatch.setattr(supervise, "HeadWatch", lambda patience_s, on_lost: Watch(looks=1))
    run = create_run(Folder.at(tmp_path / "runs"), "digits")
    run.write_record(RunRecord("digits", 1))
    task = WorkerTask(load_spec(MINIMAL).spec, run, str(tmp_path), ())
    chronicle = Chronicle(run, tracker, str, began_s=0.0)
    staff: Any = Staff(waits)
    with pytest.raises(RunFailed, match="the same command") as failed:
        run_ray(task, Desk(lambda points: None), staff, chronicle, say=lambda text: None, embedded=False)
    failure = failed.value.failure
    assert (failure.rank, failure.exit_code, failure.cause) == (-1, 75, "control plane")
    assert staff.closed
