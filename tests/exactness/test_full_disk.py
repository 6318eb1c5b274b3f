"""A disk that fills up during a run: the run ends with a verdict that says so, and goes on when there is room."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.records import Progress
from orchestrator.runners.books import journal_folder
from orchestrator.runners.driver import run_job
from orchestrator.runs.folder import RunFolder
from orchestrator.spec import load_spec
from orchestrator.storage import Folder
from orchestrator.tracking.journal import Journal
from orchestrator.tracking.ops import LogMetrics
from tests.exactness.cases import STREAMED
from tests.unit.small_disk import SmallDisk, small_disk

STEPS = 5 * 8
"""Of the case: 294 rows in batches of 40."""


class Listening:
    """What a user is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def message(self, text: str) -> None:
        self.told.append(text)

    def progress(self, progress: Progress) -> None:
        pass


def _fill(disk: SmallDisk, run: RunFolder, ended: threading.Event) -> None:
    """Take all room once two checkpoints are there, and again what is given free, until the run has ended."""
    while len(list(run.checkpoints.local_path().glob("*/manifest.json"))) < 2 and not ended.is_set():
        time.sleep(0.002)
    while not ended.is_set():
        disk.fill()
        time.sleep(0.002)


@pytest.mark.slow
def test_a_full_disk_ends_a_run_with_a_verdict_and_loses_no_point(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "16m") as disk:
        storage = disk.folder / "runs"
        sections: dict[str, Any] = {
            "storage": str(storage),
            "mlflow": {"tracking_uri": f"sqlite:///{tmp_path}/mlflow.db"},
            "data": {"iterate": {"kind": "mapped"}},
            "checkpoint": {"every_n_steps": 2},
        }
        loaded = load_spec(STREAMED, overrides_dict=sections)
        run = RunFolder(Folder.at(storage), "streamed", 1)
        ended, listening = threading.Event(), Listening()
        filler = threading.Thread(target=_fill, args=(disk, run, ended))
        filler.start()
        try:
            failed = run_job(loaded, inline=True, observer=listening)
        finally:
            ended.set()
            filler.join()
        assert (failed.status, failed.exit_code) == ("FAILED", 1)
        assert "No space left on device" in failed.verdict.reason
        assert any("training goes on and the next save tries again" in text for text in listening.told)

        disk.free()
        for thread in threading.enumerate():  # as long as it ships, no other driver may open the journal
            if thread.name == "tracking-shipper":
                thread.join(120)
        done = run_job(loaded, inline=True, observer=listening)
        assert (done.run, done.status, done.resumed) == ("streamed-1", "SUCCEEDED", True)
        journal = Journal(journal_folder(run))
        steps = [
            point.step
            for op in journal.operations()
            if isinstance(op, LogMetrics)
            for point in op.points
            if point.key == "train/loss"
        ]
        journal.close()
        assert steps == list(range(1, STEPS + 1))
