"""The number of workers changes at random moments, and every sample is used as if it never had."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest

from orchestrator.runs.folder import RunFolder
from orchestrator.storage import Folder
from tests.exactness.cases import ELASTIC, case, prepared_case
from tests.exactness.compare import deviations
from tests.exactness.course import Course
from tests.exactness.group import warm_up


@pytest.mark.slow
def test_other_numbers_of_workers_use_the_same_samples_in_the_same_steps(tmp_path: Path) -> None:
    warm_up()
    spec = case(ELASTIC)
    prepared = prepared_case(spec, tmp_path)
    undisturbed, elastic = (
        Course(spec, RunFolder(Folder.at(tmp_path), spec.name, number), prepared) for number in (1, 2)
    )
    undisturbed.go(itertools.repeat(1), random.Random(0))
    elastic.go(
        iter([2, 4, 3]), random.Random(1), kills=2, how=("killed", "stopped"), typical_s=undisturbed.seconds
    )
    assert elastic.kills[0].how == "killed"
    assert len(elastic.world_sizes) > 1
    assert deviations(undisturbed, elastic, rows=328) == [], elastic.kills
