"""Workers are killed at random moments, and the run ends with the very bits of one that nobody disturbed."""

from __future__ import annotations

import itertools
import random
from pathlib import Path
from typing import Any

import pytest

from orchestrator.runs.folder import RunFolder
from orchestrator.storage import Folder
from tests.exactness.cases import IMAGES, STREAMED, case, prepared_case
from tests.exactness.compare import differences, remains
from tests.exactness.course import Course
from tests.exactness.group import warm_up


@pytest.mark.parametrize(
    ("sections", "world_size", "kills"), [(IMAGES, 1, 2), (STREAMED, 2, 4), (IMAGES, 3, 2), (IMAGES, 4, 2)]
)
def test_killed_workers_change_no_bit(
    tmp_path: Path, sections: dict[str, Any], world_size: int, kills: int
) -> None:
    warm_up()
    spec = case(sections)
    prepared = prepared_case(spec, tmp_path)
    draw, sizes = random.Random(world_size), itertools.repeat(world_size)
    undisturbed, killed = (
        Course(spec, RunFolder(Folder.at(tmp_path), spec.name, number), prepared) for number in (1, 2)
    )
    undisturbed.go(sizes, draw)
    killed.go(sizes, draw, kills=kills, typical_s=undisturbed.seconds)
    assert killed.kills
    assert differences(remains(undisturbed), remains(killed)) == [], killed.kills


def test_workers_that_come_back_spoil_nothing(tmp_path: Path) -> None:
    """All workers of an attempt are cut off, and go on while the next attempt has long taken their place."""
    warm_up()
    spec = case(STREAMED)
    prepared = prepared_case(spec, tmp_path)
    draw, sizes = random.Random(2), itertools.repeat(2)
    undisturbed, cut_off = (
        Course(spec, RunFolder(Folder.at(tmp_path), spec.name, number), prepared) for number in (1, 2)
    )
    undisturbed.go(sizes, draw)
    cut_off.go(sizes, draw, kills=1, how=("cut off",), typical_s=undisturbed.seconds)
    assert differences(remains(undisturbed), remains(cut_off)) == [], cut_off.kills
