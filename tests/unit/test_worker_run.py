"""Who is blamed for what ends a worker."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from orchestrator.engine.link import WorkerLink
from orchestrator.errors import UserCodeError
from orchestrator.runs.folder import RunFolder
from orchestrator.storage import Folder
from orchestrator.worker import WorkerTask, train_worker
from tests.unit.engine_case import case_data, case_spec

CODE = """
from pathlib import Path


class Net:
    def __init__(self, storage, away):
        if away:
            Path(storage).rename(storage + ".away")
        raise FileNotFoundError("vocabulary.txt")
"""


@pytest.mark.parametrize(("away", "cause"), [(False, "user error"), (True, "hardware")])
def test_code_that_fails_without_its_storage_is_not_to_blame(tmp_path: Path, away: bool, cause: str) -> None:
    """A user error ends a run for good; storage that is away for a moment must not."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "lost_net.py").write_text(CODE)
    storage = tmp_path / "runs"
    net = {"name": "lost_net:Net", "args": {"storage": str(storage), "away": away}}
    spec = case_spec(model=net)
    prepared = case_data(spec, tmp_path)
    task = WorkerTask(
        spec,
        RunFolder(Folder.at(storage), "lost", 1),
        Folder.at(prepared.folder).uri,
        [str(tmp_path / "code")],
    )
    link = WorkerLink()
    try:
        with pytest.raises(UserCodeError):
            train_worker(task, link, keep_prints=False)
    finally:
        sys.modules.pop("lost_net", None)
    assert link.failure is not None
    assert link.failure.cause == cause
    assert "vocabulary.txt" in link.failure.error
    assert ("is not there" in link.failure.error) == away
