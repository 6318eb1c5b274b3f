"""The end of a run on a storage that fails: it is tried again, or said, and never changes how the run ended."""

from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest

from orchestrator.errors import OrchestratorError
from orchestrator.records import Verdict
from orchestrator.runners import ending
from orchestrator.runners.ending import let_go, on_storage, write_record, write_verdict
from orchestrator.runs.folder import RunFolder, RunRecord
from orchestrator.storage import Folder
from tests.unit.runs_helpers import start

DONE = Verdict("SUCCEEDED", 0, "done")


class Failing:
    """Lets `Folder.write_json` fail so many times."""

    def __init__(self, number: int, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self._write, self._number, self._times = Folder.write_json, number, times
        monkeypatch.setattr(Folder, "write_json", lambda *arguments: self(*arguments))

    def __call__(self, folder: Folder, name: str, value: object) -> None:
        if self._times:
            self._times -= 1
            raise OSError(self._number, "the storage fails")
        self._write(folder, name, value)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return start(Folder.at(tmp_path)).run


@pytest.fixture(autouse=True)
def _in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ending, "_PAUSES_S", (0.01, 0.01))


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_storage_that_comes_back_gets_the_verdict(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    Failing(number, 2, monkeypatch)
    write_verdict(run, DONE, pytest.fail)
    assert run.read_verdict() == DONE


def test_a_full_disk_is_said(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Failing(errno.ENOSPC, 99, monkeypatch)
    said: list[str] = []
    write_verdict(run, DONE, said.append)
    write_record(run, lambda: run.write_record(RunRecord("digits", 1)), said.append)
    assert [text.split(" of ")[0] for text in said] == ["the verdict", "the record"]
    assert all("the storage fails" in text for text in said)
    with (
        pytest.raises(OrchestratorError, match=r"digits-1 cannot begin, .*the storage fails"),
        on_storage(run),
    ):
        run.update_record(attempts=3)


def test_a_claim_that_cannot_be_released_is_free_for_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    choice = start(Folder.at(tmp_path))
    with monkeypatch.context() as patch:
        Failing(errno.ENOSPC, 99, patch)
        with caplog.at_level(logging.WARNING):
            let_go(choice.run, choice.claim)
    assert "digits-1 could not be released" in caplog.text
    assert start(Folder.at(tmp_path)).run == choice.run
