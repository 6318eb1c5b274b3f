"""The same for the files that each rank writes for itself: the shards of a sharded model."""

from __future__ import annotations

import itertools
import random
import shutil
from pathlib import Path

import pytest

from orchestrator.checkpoints.manifest import Manifest
from orchestrator.runs.folder import RunFolder
from orchestrator.storage import Folder
from orchestrator.worker import checkpoint_store
from tests.exactness.cases import STREAMED, case, prepared_case
from tests.exactness.compare import differences, final_state
from tests.exactness.course import Course
from tests.exactness.damage import DAMAGES
from tests.exactness.group import warm_up

SPEC = case(
    STREAMED,
    train={"max_epochs": 2, "max_steps": 11, "parallel": {"strategy": "fsdp"}},
    checkpoint={"num_to_keep": 3},
    data={"iterate": {"kind": "mapped"}},
)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """A run of two workers that nobody disturbed."""
    warm_up()
    storage = tmp_path_factory.mktemp("shards")
    run = RunFolder(Folder.at(storage), SPEC.name, 1)
    return Course(SPEC, run, prepared_case(SPEC, storage)).go(itertools.repeat(2), random.Random(0))


def newest_of(run: RunFolder) -> list[Manifest]:
    return checkpoint_store(SPEC, run).manifests()[-2:]


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_shard_costs_no_bit(done: Course, tmp_path: Path, damage: str) -> None:
    """Each file of a rank in turn, each time in a fresh copy of the run."""
    older, newest = newest_of(done.run)
    shards = sorted(name for name in newest.files if name.startswith("rank-"))
    assert len(shards) == 2
    for number, name in enumerate(shards, start=1):
        run = RunFolder(Folder.at(tmp_path), SPEC.name, number)
        shutil.copytree(done.folder, run.folder.local_path())
        DAMAGES[damage](run.checkpoints.local_path() / newest.name / name)
        Course(SPEC, run, done.prepared, world_sizes=[2]).go(itertools.repeat(2), random.Random(0))
        log = (run.local / "logs" / "attempt-2" / "rank-0.log").read_text()
        told = [line for line in log.splitlines() if newest.name in line and " INFO " not in line]
        assert told, log
        assert f"resumed from checkpoint {older.name}" in log
        assert differences(final_state(SPEC, done.run), final_state(SPEC, run)) == []
