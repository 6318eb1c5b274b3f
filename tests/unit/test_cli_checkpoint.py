"""The verbs of `orchestrator checkpoint`: what they print, as text and as JSON, and their exit codes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from orchestrator.checkpoints.manifest import STATE
from orchestrator.checkpoints.saver import Part, Saver
from orchestrator.checkpoints.tensors import dump_state
from orchestrator.cli.app import run_app
from orchestrator.runs.folder import RunFolder, RunRecord, create_run
from orchestrator.spec import to_plain
from orchestrator.storage import Folder
from orchestrator.worker import checkpoint_store
from tests.test_layering import loaded_after
from tests.unit.engine_case import case_spec


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run with checkpoints of steps 1 to 4; that of step 2 is the best."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("ORCHESTRATOR_STORAGE", str(tmp_path))
    spec = case_spec(checkpoint={"num_to_keep": 9})
    run = create_run(Folder.at(tmp_path), "digits")
    run.write_record(RunRecord("digits", run.number))
    run.write_spec(json.dumps(to_plain(spec)))
    saver = Saver(checkpoint_store(spec, run), asynchronous=False)
    for step, loss in [(1, 0.5), (2, 0.1), (3, 0.3), (4, 0.2)]:
        state = {
            "model": {"weight": torch.full((3,), float(step)), "bias": torch.zeros(2)},
            "ema": {"num_updates": 1, "averages": {"weight": torch.full((3,), step / 2)}},
        }
        saver.save([Part(STATE, state, dump_state)], step=step, epoch=step, metrics={"val/loss": loss})
    return run


class Call:
    """A command line, run: its exit code and what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        capsys.readouterr()
        self.code = run_app(["checkpoint", *arguments])
        self.out, self.err = capsys.readouterr()

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def _steps(run: RunFolder) -> list[int]:
    return sorted(
        int(path.name.removeprefix("step-")) for path in run.checkpoints.local_path().glob("step-*")
    )


def test_list(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    listed = Call(capsys, "list", "digits")
    assert listed.code == 0
    lines = listed.out.splitlines()
    assert re.fullmatch(r"step\s+epoch\s+attempt\s+saved\s+size\s+files\s+metrics\s*", lines[0])
    assert re.search(r"^2\s.*val/loss 0\.1\s+best$", lines[2].rstrip())
    assert lines[4].rstrip().endswith("newest")
    entries = Call(capsys, "list", run.label, "-o", "json").json
    assert [entry["step"] for entry in entries] == [1, 2, 3, 4]
    assert entries[1]["is"] == ["best"]
    assert entries[1]["metrics"] == {"val/loss": 0.1}
    assert entries[1]["bytes"] == (run.checkpoints / "step-000000002").size_bytes(STATE)


def test_verify(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Call(capsys, "verify", "digits")
    assert whole.code == 0
    assert whole.out.splitlines() == [f"step-00000000{step}: whole" for step in (1, 2, 3, 4)]
    place = run.checkpoints.local_path()
    state = place / "step-000000002" / STATE
    data = state.read_bytes()
    state.write_bytes(data[:-1])
    (place / "step-000000003" / "manifest.json").unlink()
    damaged = Call(capsys, "verify", "digits")
    assert damaged.code == 1
    assert f"state.pt: it has {len(data) - 1} bytes, and its manifest says {len(data)}" in damaged.out
    assert "manifest.json: it is missing" in damaged.out
    assert "newest checkpoint that is whole" in damaged.err
    assert Call(capsys, "verify", "digits", "2").code == 1
    assert Call(capsys, "verify", "digits", "4").code == 0
    report = Call(capsys, "verify", "digits", "-o", "json").json
    assert [bool(entry["damage"]) for entry in report] == [False, True, True, False]
    missing = Call(capsys, "verify", "digits", "7")
    assert missing.code == 2
    assert "holds no checkpoint of step 7. there are: 1, 2, 4" in missing.err


def test_prune(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing to remove" in Call(capsys, "prune", "digits").out  # the spec keeps nine
    tried = Call(capsys, "prune", "digits", "--last", "1", "--dry-run")
    assert [line.split()[:3] for line in tried.out.splitlines()[:2]] == [
        ["would", "remove", "step-000000001"],
        ["would", "remove", "step-000000003"],
    ]
    assert _steps(run) == [1, 2, 3, 4]
    assert Call(capsys, "prune", "digits", "--last", "1").code == 0
    assert _steps(run) == [2, 4]
    (run.checkpoints.local_path() / "step-000000004" / STATE).write_bytes(b"")
    removed = Call(capsys, "prune", "digits", "--last", "0", "--best", "0", "-o", "json").json
    assert [entry["step"] for entry in removed] == [4]  # the newest that is whole stays
    assert _steps(run) == [2]


def test_export(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best, latest = tmp_path / "best", tmp_path / "latest"
    assert Call(capsys, "export", "digits", "--to", str(best)).code == 0
    weights = safetensors.torch.load_file(best / "model.safetensors")
    assert weights.keys() == {"weight", "bias"}
    assert weights["weight"].tolist() == [2.0, 2.0, 2.0]
    averages = safetensors.torch.load_file(best / "ema.safetensors")
    assert averages["weight"].tolist() == [1.0, 1.0, 1.0]
    assert averages.keys() == weights.keys()
    facts = json.loads((best / "checkpoint.json").read_text())
    assert (facts["step"], facts["metrics"]) == (2, {"val/loss": 0.1})
    exported = Call(capsys, "export", "digits", "latest", "--to", str(latest), "-o", "json").json
    assert exported["step"] == 4
    assert exported["exported"][0] == str(latest / "model.safetensors")
    assert Call(capsys, "export", "digits", "3", "--to", str(latest)).code == 0
    wrong = Call(capsys, "export", "digits", "newest", "--to", str(latest))
    assert wrong.code == 2
    assert "give a step's number, best or latest" in wrong.err
    (run.checkpoints.local_path() / "step-000000002" / STATE).unlink()
    damaged = Call(capsys, "export", "digits", "--to", str(best))
    assert damaged.code == 1
    assert "is damaged: state.pt: it is missing" in damaged.err


def test_a_run_without_checkpoints(
    tmp_path: Path, run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    empty = create_run(Folder.at(tmp_path), "digits")
    empty.write_record(RunRecord("digits", empty.number))
    assert "holds no checkpoints" in Call(capsys, "list", "digits").out
    assert "holds no checkpoints" in Call(capsys, "verify", "digits").out
    assert Call(capsys, "export", "digits").code == 2
    assert Call(capsys, "list", "nobody").code == 2


def test_looking_loads_no_torch(run: RunFolder) -> None:
    for verb in ("list", "verify", "prune"):
        code = f"""
            from orchestrator.cli.app import run_app
            import contextlib, io
            with contextlib.redirect_stdout(io.StringIO()):
                assert run_app(["checkpoint", {verb!r}, "digits"]) == 0
        """
        assert loaded_after(code, ["torch", "ray", "mlflow", "pandas"]) == []
