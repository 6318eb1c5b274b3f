"""The figures of a search against those worked out here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from orchestrator.cli.app import app
from orchestrator.errors import Infeasible, MissingPackage
from orchestrator.recovery.sizing import NodeFacts
from orchestrator.runners import planning
from orchestrator.runners.search_plan import check_searcher, gate_epochs, plan_search, widest_trial
from orchestrator.spec import LoadedSpec, load_spec
from orchestrator.spec.tune import TuneSection
from tests.unit.engine_case import SPEC

SPACE: dict[str, Any] = {
    "train.optimizer.lr": {"loguniform": [1e-4, 1e-1]},
    "train.global_batch_size": {"choice": [25, 50]},
}
RANDOM = {"search_alg": {"kind": "random"}}


def nodes(*cpus: float) -> list[NodeFacts]:
    return [NodeFacts(f"n{number}", {"CPU": cpu}, {"CPU": cpu}) for number, cpu in enumerate(cpus)]


def job(
    space: dict[str, Any] | None = None, sections: dict[str, Any] | None = None, **tune: Any
) -> LoadedSpec:
    section = {"param_space": SPACE | (space or {}), **RANDOM, **tune}
    return load_spec(SPEC, overrides_dict=(sections or {}) | {"tune": section})


def planned(found: LoadedSpec, *cpus: float) -> Any:
    _, params = widest_trial(found, nodes(*cpus))
    return plan_search(found, params, nodes(*cpus), 539)


def test_trials_epochs_and_steps() -> None:
    plan = planned(job(num_samples=12), 5.0)
    assert (plan.num_trials, plan.grid_points, plan.side_by_side, plan.epochs) == (12, 1, 5, 3)
    assert plan.workers_per_trial == (1, 1)
    assert (plan.most_epochs, plan.most_steps) == (36, 36 * -(-539 // 25))
    assert (plan.most_worker_hours, plan.most_energy_joules, plan.limited_by) == (None, None, "")
    assert plan.retrain_epochs == 3
    assert planned(job(num_samples=3), 5.0).side_by_side == 3
    assert planned(job(num_samples=9, max_concurrent_trials=2), 5.0).side_by_side == 2
    assert planned(job(num_samples=9, then="checkpoint"), 5.0).retrain_epochs == 0
    assert planned(job({"train.max_epochs": {"randint": [2, 8]}}, num_samples=2), 5.0).most_epochs == 14
    short = planned(job(sections={"train": {"max_steps": 30}}, num_samples=2), 5.0)
    assert (short.epochs, short.most_steps) == (3, 2 * 30)  # of 11 or 22 steps an epoch


def test_a_grid_is_walked_by_each_sample() -> None:
    grid = {"seed": {"grid_search": [1, 2, 3]}, "train.loss.gamma": {"grid_search": [1.0, 2.0]}}
    plan = planned(job(grid, num_samples=4), 5.0)
    assert (plan.num_trials, plan.grid_points) == (24, 6)


def test_the_least_limit_of_time_gives_hours_and_energy() -> None:
    resources = {"num_workers": 2, "resources_per_worker": {"CPU": 2}}
    plan = planned(job(sections={"resources": resources}, num_samples=6, stop={"trial_time": "10m"}), 8.0)
    assert plan.side_by_side == 2
    assert plan.most_worker_hours == pytest.approx(6 * 2 / 6)
    assert plan.most_energy_joules == pytest.approx(2 * 3600 * 2 * 5)
    assert plan.limited_by == "tune.stop.trial_time"
    short = planned(
        job(sections={"resources": resources}, stop={"trial_time": "10m"}, time_budget="15m"), 8.0
    )
    assert (short.most_worker_hours, short.limited_by) == (pytest.approx(0.25 * 2 * 2), "tune.time_budget")
    gpus = [NodeFacts("n0", {"CPU": 8.0, "GPU": 2.0}, {"CPU": 8.0, "GPU": 2.0})]
    gpu_job = job(sections={"resources": {"use_gpu": True}}, time_budget="1h")
    _, params = widest_trial(gpu_job, gpus)
    assert plan_search(gpu_job, params, gpus, 539).most_energy_joules == pytest.approx(2 * 3600 * 405)


def test_the_widest_trial_must_fit() -> None:
    wide = job({
        "resources.num_workers": {"choice": [1, 4, 2]},
        "resources.resources_per_worker.CPU": {"choice": [1.0, 2.0]},
    })  # fmt: skip
    trial, params = widest_trial(wide, nodes(8.0))
    assert (params["resources.num_workers"], params["resources.resources_per_worker.CPU"]) == (4, 2.0)
    assert trial.spec.resources.num_workers == 4
    plan = plan_search(wide, params, nodes(8.0), 539)
    assert (plan.workers_per_trial, plan.side_by_side) == ((1, 4), 1)
    with pytest.raises(
        Infeasible, match=r"4 workers of 2 CPU need 8 CPU, but the cluster has 7 \(in a trial with "
    ):
        widest_trial(wide, nodes(7.0))
    with pytest.raises(Infeasible, match=r"1 worker needs 1 CPU, but the cluster has 0\. lower"):
        widest_trial(job(), nodes(0.0))
    assert widest_trial(wide, None)[1] == params


def test_trials_that_must_spread_or_must_not_share_out_the_nodes() -> None:
    def side_by_side(strategy: str, *cpus: float) -> int:
        found: int = planned(
            job(sections={"resources": {"num_workers": 2, "placement_strategy": strategy}}), *cpus
        ).side_by_side
        return found

    assert side_by_side("PACK", 3.0, 3.0, 1.0) == 3
    assert side_by_side("STRICT_PACK", 3.0, 3.0, 2.0) == 3
    assert side_by_side("STRICT_SPREAD", 9.0, 2.0, 1.0) == 3
    assert side_by_side("STRICT_SPREAD", 9.0, 2.0) == 2


@pytest.mark.parametrize(
    ("scheduler", "epochs", "gates"),
    [
        ({"kind": "fifo"}, 20, ()),
        ({"kind": "asha"}, 20, (1, 4, 16)),
        ({"kind": "asha"}, 16, (1, 4)),
        ({"kind": "asha", "grace_period": 2, "reduction_factor": 3, "brackets": 2}, 20, (2, 6, 18)),
        ({"kind": "median_stopping", "grace_period": 3}, 6, (3, 4, 5)),
        ({"kind": "pbt", "perturbation_interval": 3}, 10, (3, 6, 9)),
        ({"kind": "pb2", "perturbation_interval": 4}, 8, (4,)),
        ({"kind": "hyperband"}, 9, (1, 3)),
        ({"kind": "hyperband"}, 81, (1, 3, 9, 27)),
        ({"kind": "hyperband"}, 20, (2, 6)),
        ({"kind": "hyperband", "reduction_factor": 2}, 17, (1, 2, 4, 8)),
        ({"kind": "hyperband"}, 2, ()),
    ],
)
def test_gates(scheduler: dict[str, Any], epochs: int, gates: tuple[int, ...]) -> None:
    tune = TuneSection.model_validate(
        {"param_space": {"seed": {"choice": [1]}}, "scheduler": scheduler, **RANDOM}
    )
    assert gate_epochs(tune, epochs) == gates


def test_stoppers_decide_after_every_epoch() -> None:
    for stop, gates in (
        ({"metric": {"val/accuracy": 0.9}}, (1, 2, 3, 4)),
        ({"trial_time": 60}, (1, 2, 3, 4)),
        ({"plateau": {"num_results": 3, "grace_period": 2}}, (3, 4)),
    ):
        tune = TuneSection.model_validate(
            {"param_space": {"seed": {"choice": [1]}}, "scheduler": {"kind": "fifo"}, "stop": stop, **RANDOM}
        )
        assert gate_epochs(tune, 5) == gates


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    tune = job(search_alg={"kind": "hyperopt"}).spec.tune
    assert tune
    monkeypatch.setitem(sys.modules, "hyperopt", None)
    with pytest.raises(MissingPackage, match=r"tune.search_alg hyperopt needs the package .*\[hyperopt\]"):
        check_searcher(tune)


def test_the_verb_shows_the_search_and_one_trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    import yaml

    monkeypatch.setattr(planning, "connected_nodes", lambda address: ("somewhere", nodes(4.0)))
    file = tmp_path / "job.yaml"
    space = SPACE | {"resources.num_workers": {"choice": [1, 2]}}
    tune = {"param_space": space, **RANDOM, "num_samples": 6, "time_budget": "30m"}
    file.write_text(yaml.safe_dump({**SPEC, "tune": tune}))
    command = ["plan", str(file), f"storage={tmp_path}", "--address", "somewhere"]
    done = CliRunner().invoke(app, [*command, "-o", "json"])
    assert done.exit_code == 0, done.output
    plan = json.loads(done.stdout)
    assert (plan["num_workers"], plan["global_batch_size"]) == (2, 25)
    assert plan["search"]["num_trials"] == 6
    assert plan["search"]["side_by_side"] == 2
    text = CliRunner().invoke(app, command).output
    assert "6 by random, scheduler asha" in text
    assert "2 × 1 to 2 worker(s)" in text
    assert "at most 3 each; may be ended after epoch 1" in text
    assert "2.00 worker-hours by tune.time_budget" in text
    refused = CliRunner().invoke(app, [*command, "tune.param_space.resources.num_workers={choice: [1, 8]}"])
    assert isinstance(refused.exception, Infeasible)
    assert "(in a trial with resources.num_workers = 8)" in str(refused.exception)


def test_the_plan_of_a_job_without_a_search_has_none(tmp_path: Path) -> None:
    assert planning.make_plan(load_spec(SPEC, overrides_dict={"storage": str(tmp_path)})).search is None
