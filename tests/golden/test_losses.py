"""The first training losses of the ready jobs are those in `losses.json`: no change of the numbers goes unnoticed.

A change that is meant renews the file by `python tests/golden/losses.py --write`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.golden.losses import JOBS, NAMES, STEPS, TOLERANCE, first_losses, kept


@pytest.mark.parametrize("name", NAMES)
def test_the_first_losses_are_as_before(name: str, tmp_path: Path) -> None:
    try:
        losses = first_losses(name, tmp_path)
    finally:
        sys.modules.pop("custom_model", None)
    assert losses == pytest.approx(kept()[name], rel=TOLERANCE)


def test_every_job_without_data_of_the_users_own_is_kept() -> None:
    without = {path.stem for path in JOBS.glob("*.yaml") if ":?" not in path.read_text()}
    assert set(NAMES) == set(kept()) == without
    assert all(len(losses) == STEPS for losses in kept().values())
