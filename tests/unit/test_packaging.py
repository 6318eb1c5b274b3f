"""What is shipped: the wheel, the pins, a submitted working directory, and what the Makefile says first."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import orchestrator

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {name: Version(version) for name, _, version in (line.partition("==") for line in lines)}


def test_the_version_is_told_once() -> None:
    assert orchestrator.__version__ == PROJECT["version"]


def test_the_wheel_holds_the_whole_package(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)], cwd=ROOT, check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = f"ray_orchestrator-{PROJECT['version']}.dist-info"
        metadata = archive.read(f"{info}/METADATA").decode()
        entry_points = archive.read(f"{info}/entry_points.txt").decode()
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "orchestrator").rglob("*.py")}
    assert {name for name in names if not name.startswith(info)} == sources | {"orchestrator/py.typed"}
    assert f"{info}/licenses/LICENSE" in names
    assert f"\nVersion: {orchestrator.__version__}\n" in metadata
    assert "orchestrator = orchestrator.__main__:main" in entry_points


def test_every_dependency_is_pinned_within_its_range() -> None:
    wanted = [
        *PROJECT["dependencies"],
        *(line for lines in PROJECT["optional-dependencies"].values() for line in lines),
    ]
    pinned = pins()
    for requirement in map(Requirement, wanted):
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"{name} is not in constraints.txt"
        assert requirement.specifier.contains(pinned[name]), f"{requirement} excludes {pinned[name]}"


def test_pins_fit_machines_with_and_without_a_gpu() -> None:
    assert [name for name, version in pins().items() if version.local] == []
    assert [name for name in pins() if name.startswith(("nvidia-c", "cuda-", "triton"))] == []


def test_pins_are_sorted_and_unique() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    names = [line.partition("==")[0] for line in lines]
    assert names == sorted({canonicalize_name(name) for name in names})


CARRIED = {"job.yaml", "my_model.py", "orchestrator/runs/folder.py", "docs/guide.md", "data/runs.csv"}
LEFT_AT_HOME = {
    ".git/config",
    ".venv/lib/torch.so",
    "runs/digits-1/model/model.safetensors",
    "mlflow.db",
    "mlflow.db-wal",
    "mlartifacts/1/picture.png",
    "mlruns/0/meta.yaml",
    "dist/x.whl",
    "docs/images/ui.png",
    "orchestrator/__pycache__/errors.pyc",
    "tests/unit/__pycache__/x.pyc",
    ".pytest_cache/x",
    ".mypy_cache/x",
    ".ruff_cache/x",
    ".hypothesis/x",
}


@pytest.mark.parametrize("with_gitignore", [False, True])
def test_a_submitted_folder_leaves_results_and_caches_at_home(tmp_path: Path, with_gitignore: bool) -> None:
    from ray._private.runtime_env.packaging import create_package

    folder, package = tmp_path / "folder", tmp_path / "package.zip"
    for name in CARRIED | LEFT_AT_HOME:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("something")
    for name in (".rayignore", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    create_package(str(folder), package, include_gitignore=with_gitignore)
    with zipfile.ZipFile(package) as archive:
        files = {name for name in archive.namelist() if not name.endswith("/")}
    assert files == CARRIED | {".rayignore", ".gitignore"}


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    return subprocess.run(["make", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=60)


def test_make_alone_lists_what_it_can_do(tmp_path: Path) -> None:
    done = make(tmp_path)
    assert done.returncode == 0
    assert "make run" in done.stdout
    assert "make test" in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_make_refuses_an_old_python_and_says_what_to_do(tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    pretend = "import sys; sys.version_info = (3, 9, 2, 'final', 0); exec(sys.argv[1])"
    old.write_text(f'#!/bin/sh\nexec "{sys.executable}" -c "{pretend}" "$2"\n')
    old.chmod(0o755)
    done = make(tmp_path, "test", f"PYTHON={old}")
    assert done.returncode != 0
    assert "is Python 3.9.2, but 3.11 or newer is needed" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_make_without_any_python_says_so(tmp_path: Path) -> None:
    done = make(tmp_path, "run", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "no no-such-python here" in done.stderr
