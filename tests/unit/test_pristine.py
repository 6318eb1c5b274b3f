"""A process that was poisoned by a piece of work is as new afterwards, again and again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """How the process was: at first, then twice poisoned and restored."""
    folder = tmp_path_factory.mktemp("code")
    for name in ("own_net", "space/part", "env/lib/site-packages/installed_net"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.py").write_text("SEEN = []\n")
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.poison", str(folder)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, list[dict[str, Any]]] = json.loads(done.stdout)
    return answers


@pytest.mark.parametrize("time", [1, 3])
def test_the_poison_is_poison(told: dict[str, list[dict[str, Any]]], time: int) -> None:
    """Each of the facts that are compared below does change."""
    before, poisoned = told["facts"][0], told["facts"][time]
    assert [name for name in before if poisoned[name] == before[name]] == []


@pytest.mark.parametrize("time", [2, 4])
def test_a_poisoned_process_is_as_before(told: dict[str, list[dict[str, Any]]], time: int) -> None:
    before, after = told["facts"][0], told["facts"][time]
    assert {name: after[name] for name in before if after[name] != before[name]} == {}


def test_only_the_users_own_modules_are_loaded_anew(told: dict[str, list[dict[str, Any]]]) -> None:
    """Not what is installed below their folder, not the orchestrator nor Python's own below theirs."""
    first, *others = told["kept"]
    assert others == [first, first]
