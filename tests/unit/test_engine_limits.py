"""What ends, changes or records a training besides its epochs: time, compiling, precision, a trace."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.engine.attempt import Attempt
from orchestrator.engine.loop import train
from orchestrator.errors import UsageError
from orchestrator.runs.folder import RunFolder
from orchestrator.storage import Folder
from orchestrator.worker import WorkerTask, train_worker
from tests.unit.engine_case import case_attempt, case_data, case_spec
from tests.unit.test_engine_trouble import Keeping

CNN = {"name": "cnn", "args": {"channels": [4], "hidden": 8}}


def trained(tmp_path: Path, run: str, link: Keeping | None = None, **sections: Any) -> Attempt:
    attempt = case_attempt(case_spec(**sections), tmp_path, link, run)
    train(attempt)
    return attempt


def test_the_time_is_a_limit_and_the_model_is_validated(tmp_path: Path) -> None:
    attempt = trained(tmp_path, "short-1", train={"max_epochs": 100_000, "max_time": 0.5})
    assert attempt.out_of_time
    assert 0 < attempt.position.step < attempt.recipe.total_steps
    assert "val/loss" in attempt.metrics
    assert attempt.store.manifests()[-1].step == attempt.position.step


def test_the_time_of_earlier_attempts_counts(tmp_path: Path) -> None:
    first = trained(tmp_path, "long-1", train={"max_epochs": 1})
    first.position.seconds = 1e6
    first.save()
    first.saver.finish()
    second = trained(tmp_path, "long-1", train={"max_epochs": 100_000, "max_time": "1h"})
    assert second.out_of_time
    assert second.position.step <= first.position.step + 3


COMPILED = """
import json, sys
from pathlib import Path
from tests.unit.test_engine_limits import Keeping, trained

link = Keeping()
attempt = trained(Path(sys.argv[1]), "compiled-1", link, train={"compile": True, "max_epochs": 1})
losses = [point.value for point in link.points if point.key == "train/loss"]
print(json.dumps({"notices": link.notices, "losses": losses, "names": list(attempt.model.state_dict())}))
"""
"""In a process of its own: the compiler leaves threads, variables and what it found of the machine behind."""


def compiled(tmp_path: Path, **variables: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **variables}
    environment["TORCHINDUCTOR_CACHE_DIR"] = str(tmp_path / "inductor")
    process = subprocess.run(
        [sys.executable, "-c", COMPILED, str(tmp_path)], env=environment, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    facts: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return facts


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++")
def test_a_compiled_model_trains_as_the_plain_one_and_keeps_its_names(tmp_path: Path) -> None:
    facts, plain = compiled(tmp_path), Keeping()
    reference = trained(tmp_path, "plain-1", plain, train={"max_epochs": 1})
    assert facts["notices"] == []
    assert facts["names"] == list(reference.model.state_dict())
    losses = [point.value for point in plain.points if point.key == "train/loss"]
    assert facts["losses"] == pytest.approx(losses, rel=1e-4)
    assert (tmp_path / "inductor").is_dir(), "nothing was compiled"


@pytest.mark.slow
def test_what_cannot_be_compiled_runs_as_it_is_and_says_why(tmp_path: Path) -> None:
    facts, plain = compiled(tmp_path, PATH="/no/such/folder"), Keeping()
    trained(tmp_path, "plain-1", plain, train={"max_epochs": 1})
    assert any("could not be compiled and runs as it is" in text for text in facts["notices"])
    assert facts["losses"] == [point.value for point in plain.points if point.key == "train/loss"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_stays_near_fp32_and_survives_a_resume(tmp_path: Path, precision: str) -> None:
    exact, rounded = Keeping(), Keeping()
    trained(tmp_path, "exact-1", exact, model=CNN)
    attempt = trained(tmp_path, "rounded-1", rounded, model=CNN, train={"precision": precision})
    assert attempt.precision.name == precision
    assert all(parameter.dtype == torch.float32 for parameter in attempt.model.parameters())
    pairs = zip(exact.points, rounded.points, strict=False)
    losses = [(one.value, other.value) for one, other in pairs if one.key == other.key == "train/loss"]
    assert losses[-1][1] == pytest.approx(losses[-1][0], rel=0.1)
    again = case_attempt(case_spec(model=CNN, train={"precision": precision}), tmp_path, run="rounded-1")
    assert again.resumed_from is not None
    assert (again.scaler is not None) == (precision == "fp16")
    if again.scaler is not None and attempt.scaler is not None:
        assert again.scaler.state_dict() == attempt.scaler.state_dict()


def test_tf32_is_refused_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"train\.precision: tf32 is a format of NVIDIA GPUs"):
        case_attempt(case_spec(train={"precision": "tf32"}), tmp_path)


def test_a_trace_of_the_steps_asked_for(tmp_path: Path) -> None:
    spec = case_spec(train={"max_epochs": 1, "profile": {"start_step": 3, "steps": 2}})
    run = RunFolder(Folder.at(tmp_path), "case", 1)
    task = WorkerTask(spec, run, Folder.at(case_data(spec, tmp_path).folder).uri, [])
    assert train_worker(task, Keeping(), keep_prints=False) == "completed"
    (file,) = run.profile.names()
    trace = json.loads(gzip.decompress(run.profile.read_bytes(file)))
    steps = [event for event in trace["traceEvents"] if "Optimizer.step#" in str(event.get("name"))]
    assert len(steps) == 2


def test_the_same_bits_twice(tmp_path: Path) -> None:
    one, other = (trained(tmp_path, f"{n}-1", model=CNN, train={"deterministic": True}) for n in "ab")
    assert torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)
    for first, second in zip(one.model.parameters(), other.model.parameters(), strict=True):
        assert torch.equal(first, second)


def test_parameters_that_nothing_trains_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "idle_nets.py").write_text(
        "import torch\n"
        "class Idle(torch.nn.Module):\n"
        "    def __init__(self, num_outputs):\n"
        "        super().__init__()\n"
        "        self.used, self.idle = torch.nn.Linear(64, num_outputs), torch.nn.Linear(3, 3)\n"
        "    def forward(self, images):\n"
        "        return self.used(images.flatten(1))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("idle_nets", None)
    link = Keeping()
    case_attempt(case_spec(model={"name": "idle_nets:Idle"}), tmp_path, link)
    assert link.notices == ["no gradient reaches 2 of the trained parameters: idle.weight, idle.bias"]


def test_where_the_time_goes_is_logged(tmp_path: Path) -> None:
    link = Keeping()
    trained(tmp_path, "perf-1", link, model=CNN)
    values = {point.key: point.value for point in link.points if point.key.startswith("perf/")}
    perf = {key: value for key, value in values.items() if not key.startswith("perf/checkpoint_")}
    phases = {f"perf/{name}_ms" for name in ("data", "forward", "backward", "optimizer")}
    assert phases | {"perf/samples_per_s", "perf/peak_memory_bytes"} == {
        name for name in perf if "checkpoint" not in name
    }
    assert perf["perf/peak_memory_bytes"] > 50e6
    # Every step is 50 samples; its phases are nearly all of its time.
    step_ms = 1000 * 50 / perf["perf/samples_per_s"]
    assert sum(perf[name] for name in phases) <= step_ms * 1.05
