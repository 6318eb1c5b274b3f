"""The plan's arithmetic against figures worked out here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.engine.device.memory import estimate_memory
from orchestrator.errors import Infeasible
from orchestrator.recovery.sizing import NodeFacts
from orchestrator.runners.planning import make_plan, share_sizes
from orchestrator.runners.ray_workers import start
from orchestrator.runners.ray_workers.start import check_fits
from orchestrator.spec import JobSpec
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


def nodes(*cpus: float, **fields: Any) -> list[NodeFacts]:
    return [NodeFacts(f"n{number}", {"CPU": cpu}, {"CPU": cpu}, **fields) for number, cpu in enumerate(cpus)]


def asking(**resources: Any) -> JobSpec:
    return case_spec(resources={"num_workers": 4, "resources_per_worker": {"CPU": 2}} | resources)


def test_what_does_not_fit_says_so() -> None:
    check_fits(asking(), nodes(8.0))
    check_fits(asking(), nodes(4.0, 2.0, 2.0))
    with pytest.raises(Infeasible, match=r"4 workers of 2 CPU need 8 CPU, but the cluster has 7"):
        check_fits(asking(), nodes(7.0))
    with pytest.raises(
        Infeasible, match=r"not even when these are empty: needs 4 × \{CPU: 2\}; room for 3; free: "
    ):
        check_fits(asking(), nodes(3.0, 3.0, 3.0))
    with pytest.raises(Infeasible, match=r"needs 4 × \{CPU: 2\} on 4 nodes; room for 2"):
        check_fits(asking(placement_strategy="STRICT_SPREAD"), nodes(8.0, 8.0))
    check_fits(asking(autoscaling=True), nodes(7.0))
    with pytest.raises(Infeasible, match="1 worker needs 1 GPU, but the cluster has 0"):
        check_fits(asking(num_workers=1, use_gpu=True), nodes(64.0))


def test_a_cluster_that_is_too_small_yet_is_given_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = [nodes(), nodes(4.0), nodes(4.0, 4.0)]
    monkeypatch.setattr(start, "_nodes_there", lambda: seen.pop(0))
    said: list[str] = []
    start.wait_until_fits(asking(), 60.0, said.append)
    assert said == [
        "resources: 4 workers of 2 CPU need 8 CPU, but the cluster has 0: waiting up to 60 s for more nodes"
    ]
    assert not seen
    monkeypatch.setattr(start, "_nodes_there", lambda: nodes(4.0))
    with pytest.raises(Infeasible, match="but the cluster has 4"):
        start.wait_until_fits(asking(), 0.0, pytest.fail)


def test_the_fewest_workers_must_fit_an_empty_cluster_and_no_more() -> None:
    check_fits(asking(num_workers=[1, 9]), nodes(2.0))
    taken = [replace(node, free={"CPU": 0.0}, draining=True) for node in nodes(4.0, 4.0)]
    check_fits(asking(num_workers=[4, 9]), taken)
    with pytest.raises(Infeasible, match="4 workers of 2 CPU need 8 CPU"):
        check_fits(asking(num_workers=[4, 9]), nodes(7.0))


def test_an_elastic_plan_says_what_fits_and_what_it_would_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.runners import planning
    from orchestrator.spec import load_spec

    def planned(workers: object, there: list[NodeFacts]) -> planning.Plan:
        monkeypatch.setattr(planning, "connected_nodes", lambda address: ("somewhere", there))
        resources = {"num_workers": workers, "resources_per_worker": {"CPU": 2}}
        return make_plan(
            load_spec(SPEC, overrides_dict={"storage": str(tmp_path), "resources": resources}), "somewhere"
        )

    half_taken = [replace(node, free={"CPU": 2.0}) for node in nodes(4.0, 4.0)]
    assert planned([1, 4], nodes(4.0, 4.0)).notes == ()
    busy = planned([1, 4], half_taken)
    assert (busy.num_workers, busy.limits, busy.worker_batch_sizes) == (2, (1, 4), (25, 25))
    assert busy.available == {"CPU": 4.0}
    assert "2 of 4 workers fit now: the run would wait 30 s for more" in busy.notes[0]
    [small] = planned([1, 4], nodes(2.0)).notes
    assert "1 of 4 workers fit on this cluster" in small
    waiting = planned(4, half_taken)
    assert (waiting.num_workers, waiting.limits) == (4, (4, 4))
    assert waiting.notes == (
        "the run would wait, at most 600 s: needs 4 × {CPU: 2}; room for 2; "
        "free: node n0 2 of 4 CPU; node n1 2 of 4 CPU",
    )
    [many] = planned([1, 60], nodes(120.0)).notes
    assert many.startswith("with more than 50 workers some get no samples")


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
    elastic = CliRunner().invoke(app, [*command, "resources.num_workers=[1,3]"])
    assert "1 to 3 × (1 CPU); now 3" in elastic.output


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
