"""The first training losses of the ready jobs are those in `losses.json`: no change of the numbers goes unnoticed.

A change that is meant renews the file by `PYTHONPATH=. python tests/golden/losses.py --write`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.golden.losses import NAMES, first_losses, kept, steps, tolerance
from tests.golden.made import LARGE, made_data


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return made_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in NAMES]
)
def test_the_first_losses_are_as_before(name: str, tmp_path: Path, own_data: dict[str, Path]) -> None:
    try:
        losses = first_losses(name, tmp_path, own_data)
    finally:
        sys.modules.pop("custom_model", None)
    assert losses == pytest.approx(kept()[name], rel=tolerance(name))


def test_every_job_is_kept() -> None:
    assert set(NAMES) == set(kept())
    assert {name: len(losses) for name, losses in kept().items()} == {name: steps(name) for name in NAMES}
