"""The plan's arithmetic against figures worked out here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.engine.device.memory import estimate_memory
from orchestrator.errors import Infeasible
from orchestrator.runners.planning import make_plan, share_sizes
from orchestrator.runners.ray_workers.start import check_fits
from orchestrator.spec.model import ModelSection
from orchestrator.worker import build_recipe
from tests.unit.engine_case import SPEC, case_data, case_spec


def test_digits_as_a_table(tmp_path: Path) -> None:
    """64·16+16 weights into the hidden layer and 16·10+10 out of it, as 4-byte floats."""
    from orchestrator.spec import load_spec

    spec = load_spec(
        SPEC,
        overrides_dict={
            "storage": str(tmp_path),
            "resources": {"num_workers": 3},
            "train.microbatch_size": 10,
        },
    )
    plan = make_plan(spec)
    parameters = 64 * 16 + 16 + 16 * 10 + 10
    assert plan.memory.num_parameters == plan.memory.num_trained == parameters
    assert plan.memory.weights_bytes == plan.memory.gradients_bytes == 4 * parameters
    assert plan.memory.optimizer_bytes == 2 * 4 * parameters
    assert plan.worker_batch_sizes == (17, 17, 16)
    assert (plan.microbatch_size, plan.accumulation) == (10, 2)
    assert sum(plan.rows.values()) == 1797
    steps = -(-plan.rows["train"] // 50)
    assert (plan.steps_per_epoch, plan.total_steps, plan.epochs) == (steps, 3 * steps, 3)
    assert plan.last_batch_size == plan.rows["train"] % 50
    assert plan.total_memory_bytes == 3 * plan.memory.total_bytes


def test_activations_are_what_autograd_keeps(tmp_path: Path) -> None:
    """Of a linear layer on 64 floats a sample: its input, the outputs' log-probabilities and the target."""
    spec = case_spec()
    spec = spec.model_copy(update={"model": ModelSection(name="linear")})
    recipe = build_recipe(spec, case_data(spec, tmp_path))
    small, large = estimate_memory(recipe, 10), estimate_memory(recipe, 100)
    assert large.activations_bytes == pytest.approx(10 * small.activations_bytes, rel=0.01)
    least = 10 * 4 * (64 + 10)
    assert least <= small.activations_bytes <= 2 * least


@pytest.mark.parametrize(
    ("batch", "workers", "sizes"), [(64, 2, (32, 32)), (7, 3, (3, 2, 2)), (1, 2, (1, 0))]
)
def test_shares(batch: int, workers: int, sizes: tuple[int, ...]) -> None:
    assert share_sizes(batch, workers) == sizes


def test_what_does_not_fit_says_so() -> None:
    spec = case_spec(resources={"num_workers": 4, "resources_per_worker": {"CPU": 2}})
    check_fits(spec, {"CPU": 8.0})
    with pytest.raises(Infeasible, match=r"4 workers of 2 CPU need 8 CPU, but the cluster has 7"):
        check_fits(spec, {"CPU": 7.0})
    growing = case_spec(resources={"num_workers": 4, "resources_per_worker": {"CPU": 2}, "autoscaling": True})
    check_fits(growing, {"CPU": 7.0})
    gpus = case_spec(resources={"num_workers": 1, "use_gpu": True})
    with pytest.raises(Infeasible, match="1 GPU"):
        check_fits(gpus, {"CPU": 64.0})


def test_the_verb_plans_for_a_live_cluster(ray_cluster: str, tmp_path: Path) -> None:
    spec = str(Path(__file__).parents[2] / "jobs" / "digits.yaml")
    command = ["plan", spec, f"storage={tmp_path}", "--address", ray_cluster]
    done = CliRunner().invoke(app, [*command, "-o", "json"])
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert plan["resources"]["CPU"] == 4
    assert plan["memory"]["num_parameters"] == 53_002
    refused = CliRunner().invoke(app, [*command, "resources.num_workers=9"])
    assert isinstance(refused.exception, Infeasible)
    assert refused.exception.exit_code == 2
    text = CliRunner().invoke(app, command)
    assert "64 = 2 worker(s) × 32 sample(s)" in text.output


def test_a_plan_has_the_secrets_and_leaves_no_data_that_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.spec import load_spec

    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret_reader.py").write_text(
        "import os\n\ndef read():\n    rows = list(range(len(os.environ['HUSH'])))\n    return {'x': rows, 'y': rows}\n"
    )
    data = {"source": {"kind": "python", "function": "secret_reader:read"}, "target": "y", "cache": False}
    spec = {
        "name": "hushed",
        "storage": str(tmp_path / "runs"),
        "secrets": {"HUSH": "x" * 100},
        "data": data,
        "model": {"name": "linear"},
        "train": {"max_epochs": 1, "global_batch_size": 10, "optimizer": {"kind": "sgd", "lr": 0.1}},
    }
    assert sum(make_plan(load_spec(spec)).rows.values()) == 100
    assert not [path for path in (tmp_path / "runs" / "prepared").iterdir() if path.is_dir()]
