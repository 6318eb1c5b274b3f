from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
import yaml
from typer.testing import CliRunner

from orchestrator.cli.app import run_app
from orchestrator.cli.render import render
from orchestrator.cli.schema import schema
from orchestrator.cli.validate import validate
from orchestrator.errors import SpecError
from orchestrator.spec import json_schema
from tests.unit.spec_helpers import FULL_YAML

app = typer.Typer()
app.command()(validate)
app.command()(render)
app.command()(schema)
runner = CliRunner()


@pytest.fixture
def good(tmp_path: Path) -> str:
    path = tmp_path / "good.yaml"
    path.write_text(FULL_YAML)
    return str(path)


@pytest.fixture
def bad(tmp_path: Path) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text("name: x\nseed: y\nmodle: {}\n")
    return str(path)


def test_validate_says_which_specs_are_valid(good: str) -> None:
    done = runner.invoke(app, ["validate", good])
    assert (done.exit_code, done.stdout) == (0, f"{good}: valid\n")


def test_validate_shows_every_fault_of_every_spec(good: str, bad: str) -> None:
    done = runner.invoke(app, ["validate", bad, good, "nowhere.yaml"])
    assert done.exit_code == 2
    assert done.stdout == f"{good}: valid\n"
    lines = done.stderr.splitlines()
    assert f'{bad}:2: seed: must be a whole number, not "y"' in lines
    assert f"{bad}:3: modle: is not a known key. Did you mean 'model'?" in lines
    assert lines[-1].startswith("nowhere.yaml: there is no such file")
    assert len(lines) == 5


def test_validate_as_json(good: str, bad: str) -> None:
    done = runner.invoke(app, ["validate", good, bad, "-o", "json"])
    assert done.exit_code == 2
    first, second = json.loads(done.stdout)
    assert first == {"spec": good, "valid": True, "faults": []}
    assert not second["valid"]
    assert {(fault["field"], fault["line"]) for fault in second["faults"]} == {
        ("seed", 2),
        ("modle", 3),
        ("data", 1),
        ("model", 1),
    }


def test_render_fills_in_defaults_and_masks_secrets(good: str) -> None:
    done = runner.invoke(app, ["render", good, "train.max_epochs=9"])
    assert done.exit_code == 0
    rendered = yaml.safe_load(done.stdout)
    assert rendered["train"]["max_epochs"] == 9
    assert rendered["resources"]["placement_strategy"] == "PACK"
    assert rendered["secrets"] == {"TOKEN": "***"}
    assert "correct horse" not in done.stdout
    as_json = runner.invoke(app, ["render", good, "train.max_epochs=9", "-o", "json"])
    assert json.loads(as_json.stdout) == rendered


def test_render_refuses_a_bad_spec(bad: str) -> None:
    done = runner.invoke(app, ["render", bad])
    assert isinstance(done.exception, SpecError)
    assert done.stdout == ""


def test_schema_prints_the_schema() -> None:
    done = runner.invoke(app, ["schema"])
    assert json.loads(done.stdout) == json_schema()


def test_a_bad_spec_leaves_any_verb_with_its_faults_and_exit_code_2(
    bad: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app(["render", bad]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 4
    assert all(line.startswith(f"{bad}:") for line in printed.err.splitlines())
