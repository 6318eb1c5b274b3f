"""Whatever happens to whichever file of the newest checkpoint: it is noticed and told, the one before is taken, and the
run ends with the bits of the undisturbed one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from orchestrator.checkpoints.manifest import MANIFEST, STATE
from orchestrator.engine.link import WorkerLink
from orchestrator.runs.folder import RunFolder
from orchestrator.storage import Folder
from orchestrator.worker import WorkerTask, checkpoint_store, train_worker
from tests.exactness.cases import STREAMED, case, prepared_case
from tests.exactness.compare import differences, final_state
from tests.exactness.damage import DAMAGES

QUICK = {"a bit flipped in the middle", "cut in half", "missing", "half an upload"}
"""Those that `make test` has time for."""

SPEC = case(
    STREAMED,
    train={"max_epochs": 2, "max_steps": 11},
    checkpoint={"num_to_keep": 3},
    data={"iterate": {"kind": "mapped"}},
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def train(run: RunFolder, prepared_uri: str) -> str:
    """One attempt, in this process; its log."""
    link = WorkerLink()
    assert train_worker(WorkerTask(SPEC, run, prepared_uri, []), link, keep_prints=False) == "completed"
    log: str = (run.local / "logs" / f"attempt-{link.attempt}" / "rank-0.log").read_text()
    return log


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunFolder, str]:
    """A run that nobody disturbed, and its data. Its last checkpoint is the one to be damaged."""
    storage = tmp_path_factory.mktemp("damage")
    prepared_uri = str(prepared_case(SPEC, storage).folder)
    run = RunFolder(Folder.at(storage), SPEC.name, 1)
    train(run, prepared_uri)
    return run, prepared_uri


@pytest.mark.parametrize(
    "damage", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in DAMAGES]
)
@pytest.mark.parametrize("name", [STATE, MANIFEST])
def test_a_damaged_checkpoint_costs_no_bit(
    done: tuple[RunFolder, str], tmp_path: Path, name: str, damage: str
) -> None:
    undisturbed, prepared_uri = done
    run = RunFolder(Folder.at(tmp_path), SPEC.name, 1)
    shutil.copytree(undisturbed.folder.local_path(), run.folder.local_path())
    older, newest = checkpoint_store(SPEC, run).manifests()[-2:]
    place = run.checkpoints.local_path() / newest.name
    DAMAGES[damage](place / name)

    log = train(run, prepared_uri)
    told = [
        line
        for line in log.splitlines()
        if newest.name in line and (" ERROR " in line or " WARNING " in line)
    ]
    assert told, log
    assert f"resumed from checkpoint {older.name}" in log
    assert differences(final_state(SPEC, undisturbed), final_state(SPEC, run)) == []
    assert not list(run.folder.local_path().rglob(".*"))


def test_all_files_of_a_checkpoint_are_in_the_matrix(done: tuple[RunFolder, str]) -> None:
    store = checkpoint_store(SPEC, done[0])
    for manifest in store.manifests():
        assert {path.name for path in (store.folder / manifest.name).local_path().iterdir()} == {
            STATE,
            MANIFEST,
        }
