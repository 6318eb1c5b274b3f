"""What is shipped with a submitted job, and what never is in the open."""

from __future__ import annotations

import json
import os
import shlex
import stat
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.errors import UsageError
from orchestrator.runners.submission.package import JobPackage, load_job_secrets, package_job, secrets_module
from orchestrator.spec import load_spec

SPEC = """
name: digits
data: {source: {kind: sklearn, name: digits}, target: target}
model: {name: cnn}
"""

Package = Callable[..., JobPackage]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    """Packages `jobs/digits.yaml`, with more lines at its end, from the folder above."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()

    def package(more: str = "", *overrides: str, argument: str = "jobs/digits.yaml") -> JobPackage:
        (tmp_path / "jobs" / "digits.yaml").write_text(SPEC + more)
        loaded = load_spec("jobs/digits.yaml", overrides)
        return package_job(loaded, spec_argument=argument, overrides=overrides)

    return package


def test_the_command_survives_the_shell(package: Package) -> None:
    hard = 'description=it\'s $HOME; rm -rf "x" `y`'
    made = package("", "train.max_epochs=3", hard)
    assert shlex.split(made.entrypoint) == [
        *("python", "-m", "orchestrator", "run", "jobs/digits.yaml", "train.max_epochs=3"),
        hard,
    ]


def test_the_environment_is_as_the_spec_says(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM", "vision")
    monkeypatch.setenv("UNUSED", "stays here")
    monkeypatch.setenv("ORCHESTRATOR_STORAGE", "runs")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    made = package(
        """
tags: {team: "${env:TEAM}"}
failure: {stop_grace: 20.5s}
runtime_env: {pip: [einops], excludes: [data], env_vars: {LEVEL: "3"}}
"""
    )
    assert dict(made.runtime_env) == {
        "working_dir": str(tmp_path),
        "excludes": ["data"],
        "pip": ["einops"],
        "env_vars": {
            "RAY_JOB_STOP_WAIT_TIME_S": "36",
            "TEAM": "vision",
            "ORCHESTRATOR_STORAGE": str(tmp_path / "runs"),
            "MLFLOW_TRACKING_URI": "http://mlflow:5000",
            "LEVEL": "3",
        },
    }
    assert made.metadata["orchestrator.job"] == "digits"
    assert made.metadata["orchestrator.spec"] == "jobs/digits.yaml"
    assert all(isinstance(value, str) and value for value in made.metadata.values())
    assert not made.secrets


def test_secrets_travel_apart(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUB", "hub-value-1")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://me:pass-word@mlflow")
    made = package('secrets: {TOKEN: "${env:HUB}", FIXED: fixed-value-2}\n', "secrets.MORE=more-value-3")
    assert made.secrets == {
        "TOKEN": "hub-value-1",
        "HUB": "hub-value-1",
        "FIXED": "fixed-value-2",
        "MORE": "more-value-3",
        "MLFLOW_TRACKING_URI": "https://me:pass-word@mlflow",
    }
    in_the_open = repr(made) + json.dumps([made.entrypoint, made.runtime_env, dict(made.metadata)])
    for value in ("hub-value-1", "fixed-value-2", "more-value-3", "pass-word"):
        assert value not in in_the_open


def test_a_variable_of_both_kinds_is_a_secret(package: Package, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOTH", "value-of-both")
    monkeypatch.setenv("EMPTY_IS_NO_SECRET", "x")
    made = package(
        'secrets: {TOKEN: "${env:BOTH}"}\ntags: {a: "${env:BOTH}", b: "${env:EMPTY_IS_NO_SECRET}"}\n'
    )
    assert made.secrets["BOTH"] == "value-of-both"
    assert set(made.runtime_env["env_vars"]) == {"RAY_JOB_STOP_WAIT_TIME_S", "EMPTY_IS_NO_SECRET"}


@pytest.mark.parametrize(
    ("more", "place"),
    [
        ("runtime_env: {env_vars: {COPY: leaky-value}}", "runtime_env.env_vars.COPY"),
        ('runtime_env: {pip: ["--index-url=https://leaky-value@host"]}', "runtime_env.pip"),
    ],
)
def test_a_secret_in_the_open_is_refused(package: Package, more: str, place: str) -> None:
    with pytest.raises(UsageError, match=place) as refused:
        package(f"secrets: {{TOKEN: leaky-value}}\n{more}\n")
    assert "leaky-value" not in str(refused.value)
    with pytest.raises(UsageError, match="the overrides"):
        package("secrets: {TOKEN: leaky-value}\n", "description=leaky-value")


def test_what_cannot_be_shipped_is_refused(package: Package, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="outside of the working directory"):
        package("runtime_env: {working_dir: .}\n", argument="../elsewhere.yaml")
    with pytest.raises(UsageError, match="is no folder"):
        package("runtime_env: {working_dir: nowhere}\n")
    with pytest.raises(UsageError, match="standard input"):
        package(argument="-")


def test_the_module_of_secrets_is_read_and_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"JOB_TOKEN": "ä'\"\n", "JOB_OTHER": "1"}
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with secrets_module(values) as folder:
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder.parent, *folder.iterdir())}
        monkeypatch.syspath_prepend(str(folder.parent))
        names = load_job_secrets()
        seen = {name: os.environ.pop(name) for name in names}
    assert seen == values
    assert modes[folder.parent.name] == 0o700
    assert modes["values.json"] == 0o600
    assert not folder.parent.exists()


def test_outside_of_a_job_there_are_no_secrets() -> None:
    assert load_job_secrets() == ()


def test_the_same_secrets_never_make_the_same_package() -> None:
    """Ray names a package by a hash of its content, and shows the name."""
    contents = set()
    for _ in range(2):
        with secrets_module({"PIN": "1234"}) as folder:
            contents.add((folder / "values.json").read_bytes())
    assert len(contents) == 2
