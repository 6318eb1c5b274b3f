"""Whole searches on a real local Ray: what a trial comes to depends on its spec alone, whatever befell the others."""

from __future__ import annotations

import contextlib
import json
import math
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.runners.result import Result
from orchestrator.runs.folder import RunFolder, find_run, list_runs
from orchestrator.storage import Folder
from tests.cluster.test_recovery import nothing_left_behind  # noqa: F401
from tests.cluster.tune_case import (
    EPOCH_STEPS,
    EPOCHS,
    LR,
    NETS,
    SPEC,
    TUNE,
    UNITS,
    Search,
    children,
    curve,
    found_by,
    found_in_processes,
    made_by,
    net,
    run,
    saved,
    search,
)
from tests.exactness.compare import differences


@pytest.fixture
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the networks write; their module `trial_nets` is importable here and in the workers."""
    for name in ("code", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "code" / "trial_nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path / "code")
    yield tmp_path / "notes"
    sys.modules.pop("trial_nets", None)


def test_a_search_finds_the_best_trains_it_and_records_all(ray_cluster: str, tmp_path: Path) -> None:
    space = {LR: {"loguniform": [1e-4, 1e-1]}}
    done = search(tmp_path, {"name": "mlp"}, space, num_samples=4, max_concurrent_trials=2, then="retrain")
    assert (done.result.status, done.result.exit_code) == ("SUCCEEDED", 0), done.result.verdict
    assert done.states == ["COMPLETED"] * 4
    names = ["trial-001", "trial-002", "trial-003", "trial-004"]
    assert list(done.trials) == names
    assert all(trial["epoch"] == EPOCHS for trial in done.trials.values())
    assert len({trial["params"][LR] for trial in done.trials.values()}) == 4
    assert done.summary["best"] == min(names, key=lambda name: done.trials[name]["score"])
    assert done.summary["state"] == "ENDED"
    assert {trial["group"] for trial in done.trials.values()} == {1, 2}  # warm ones took the others
    winner = done.trials[done.summary["best"]]
    both_parts = math.ceil((1258 + 270) / 100)  # steps of an epoch
    assert done.result.metrics["best/step"] == both_parts * winner["best_epoch"]
    assert done.result.metrics["test/accuracy"] > 0.75
    assert done.run.model.exists("model.safetensors")

    client = MlflowClient(done.result.tracking_uri)
    parent = client.get_run(done.result.mlflow_run_id)
    assert (parent.info.run_name, parent.info.status) == ("small-1", "FINISHED")
    assert parent.data.metrics["test/accuracy"] == done.result.metrics["test/accuracy"]
    recorded = children(done)
    assert sorted(recorded) == names
    for name, child in recorded.items():
        trial = done.trials[name]
        assert child.info.status == "FINISHED"
        assert trial["mlflow_run_id"] == child.info.run_id
        assert float(child.data.params[LR]) == pytest.approx(trial["params"][LR])
        losses = curve(done, child.info.run_id, "val/loss")
        assert [step for step, _ in losses] == [EPOCH_STEPS, 2 * EPOCH_STEPS]
        assert min(value for _, value in losses) == trial["score"]
        assert len(curve(done, child.info.run_id, "train/loss")) == 2 * EPOCH_STEPS
    marked = {name for name, child in recorded.items() if child.data.tags.get("orchestrator.best") == "true"}
    assert marked == {done.summary["best"]}


def test_a_warm_trial_has_the_bits_of_a_fresh_process(ray_cluster: str, tmp_path: Path, notes: Path) -> None:
    """Also where the one before it left behind all that it could."""
    how = {"model.args.how": {"grid_search": ["spoil", ""]}}
    done = search(tmp_path, net(notes), how)
    assert done.states == ["COMPLETED", "COMPLETED"], done.trials
    assert (notes / "spoiled").exists()
    spoiled, warm = (found_in_processes(notes, how) for how in ("spoil", ""))
    assert set().union(*warm.values()) == set().union(*spoiled.values())  # or it proves nothing

    single = run(tmp_path / "single", {"model": net(notes)}, fresh=True)
    assert single.status == "SUCCEEDED"
    fresh = found_in_processes(notes, "")
    assert set(warm) == set(fresh)
    folder = find_run(Folder.at(tmp_path / "single" / "runs"), single.run)
    assert differences(saved(folder), done.saved("trial-002")) == []
    assert done.trials["trial-002"]["epoch"] == EPOCHS
    child = children(done)["trial-002"].info.run_id
    alone = Search(single, folder, {})
    for key in ("train/loss", "val/loss", "val/accuracy"):
        assert curve(done, child, key) == curve(alone, str(single.mlflow_run_id), key), key


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_nothing_is_different(
    ray_cluster: str, tmp_path: Path, notes: Path
) -> None:
    space = {UNITS: {"grid_search": [8, 12, 16]}}
    spec = {"checkpoint": {"every_n_epochs": 1}}  # it goes on in its second epoch
    killed = search(tmp_path, net(notes, "kill", 12), space, spec=spec)
    assert (notes / "killed").exists()
    assert killed.result.status == "SUCCEEDED"
    assert len(made_by(notes)[12]) == 2
    assert [trial["attempts"] for trial in killed.trials.values()] == [1, 2, 1]
    undisturbed = search(tmp_path / "undisturbed", net(notes, "kill", 12), space, spec=spec)
    assert killed.table == undisturbed.table
    for name in killed.trials:
        assert differences(killed.saved(name), undisturbed.saved(name)) == []
    steps = [step for step, _ in curve(killed, children(killed)["trial-002"].info.run_id, "train/loss")]
    assert steps == list(range(1, EPOCHS * EPOCH_STEPS + 1))


def test_an_error_of_some_trials_does_not_sink_the_search(
    ray_cluster: str, tmp_path: Path, notes: Path
) -> None:
    space = {UNITS: {"grid_search": [8, 12, 16, 20]}}
    done = search(tmp_path, net(notes, "raise", 8, 16), space, max_concurrent_trials=2)
    assert (done.result.status, done.result.exit_code) == ("SUCCEEDED", 0), done.result.verdict
    assert done.states == ["FAILED", "COMPLETED", "FAILED", "COMPLETED"]
    failed = [trial for trial in done.trials.values() if trial["state"] == "FAILED"]
    assert all("no luck" in trial["error"] and trial["attempts"] == 1 for trial in failed)
    assert done.summary["best"] in ("trial-002", "trial-004")
    statuses = [child.info.status for _, child in sorted(children(done).items())]
    assert statuses == ["FAILED", "FINISHED", "FAILED", "FINISHED"]


@pytest.mark.slow
def test_ten_equal_failures_end_the_search_with_one_verdict(
    ray_cluster: str, tmp_path: Path, notes: Path
) -> None:
    space = {LR: {"loguniform": [1e-4, 1e-1]}}
    done = search(tmp_path, net(notes, "raise"), space, num_samples=30, max_concurrent_trials=2)
    assert (done.result.status, done.result.exit_code) == ("FAILED", 1)
    assert done.result.verdict.cause == "user error"
    assert "no luck" in done.result.verdict.reason
    assert "10" in done.result.verdict.reason
    assert done.states.count("FAILED") in (10, 11)  # another one may have been on its way
    assert len(done.states) <= 12
    assert MlflowClient(done.result.tracking_uri).get_run(done.result.mlflow_run_id).info.status == "FAILED"


@pytest.mark.slow
def test_bad_trials_are_pruned_and_marked_so(ray_cluster: str, tmp_path: Path) -> None:
    done = search(
        tmp_path,
        {"name": "mlp"},
        {LR: {"loguniform": [1e-7, 1e-1]}},
        spec={"train": SPEC["train"] | {"max_epochs": 4}},
        num_samples=3,
        points_to_evaluate=[{LR: 1e-2}, {LR: 1e-6}, {LR: 1e-7}],
        scheduler={"kind": "asha", "grace_period": 1, "reduction_factor": 2},
    )
    assert done.states == ["COMPLETED", "PRUNED", "PRUNED"]
    assert [trial["epoch"] for trial in done.trials.values()] == [4, 1, 1]
    assert [trial["params"][LR] for trial in done.trials.values()] == [1e-2, 1e-6, 1e-7]
    recorded = [child for _, child in sorted(children(done).items())]
    assert [child.info.status for child in recorded] == ["FINISHED"] * 3
    assert [child.data.tags["orchestrator.trial_state"] for child in recorded[1:]] == ["PRUNED", "PRUNED"]


@pytest.mark.slow
def test_population_based_training_hands_over_by_hash_and_mends_the_hopeless(
    ray_cluster: str, tmp_path: Path, notes: Path
) -> None:
    """Two of four begin with a rate that learns nothing, and end well: with the weights of the others."""
    with states_seen(tmp_path / "runs") as holders:
        done = search(
            tmp_path,
            net(notes, "slow"),
            {LR: {"loguniform": [1e-6, 1e-1]}},
            spec={"train": SPEC["train"] | {"max_epochs": 6}},
            num_samples=4,
            max_concurrent_trials=4,
            points_to_evaluate=[{LR: 1e-6}, {LR: 1e-6}, {LR: 1e-2}, {LR: 1e-2}],
            scheduler={"kind": "pbt", "perturbation_interval": 1, "quantile_fraction": 0.5},
        )
    assert done.result.status == "SUCCEEDED", done.result.verdict
    assert done.states == ["COMPLETED"] * 4
    assert all(trial["epoch"] == 6 for trial in done.trials.values())
    assert all(trial["score"] < 1.0 for trial in done.trials.values()), done.table
    # A checkpoint holds times and random states: two trials can only have the same one where it was handed over.
    shared = [names for names in holders.values() if len(names) > 1]
    for hopeless in ("trial-001", "trial-002"):
        assert any(hopeless in names for names in shared), holders


@contextlib.contextmanager
def states_seen(storage: Path) -> Iterator[dict[str, set[str]]]:
    """The trials that were ever seen with a checkpoint's state, by its hash; older checkpoints are removed as a search
    goes on."""
    holders: dict[str, set[str]] = defaultdict(set)
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.05):
            for file in storage.glob("*/trials/*/checkpoints/*/manifest.json"):
                with contextlib.suppress(OSError):
                    files = json.loads(file.read_text())["files"]
                    holders[files["state.pt"]["sha256"]].add(file.parts[-4])

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield holders
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
def test_trials_of_two_workers(ray_cluster: str, tmp_path: Path, notes: Path) -> None:
    space = {UNITS: {"grid_search": [8, 16, 32]}}
    two = search(tmp_path, net(notes), space, spec={"resources": {"num_workers": 2}}, max_concurrent_trials=2)
    assert two.states == ["COMPLETED"] * 3
    assert two.summary["width"] == 2
    assert sorted(len(pids) for pids in made_by(notes).values()) == [2, 2, 2]
    one = search(tmp_path / "one", net(notes), space)
    for trial, other in zip(two.table, one.table, strict=True):
        assert trial["params"] == other["params"]
        assert trial["score"] == pytest.approx(other["score"], rel=1e-3)


@pytest.mark.slow
def test_the_number_of_workers_can_be_searched_too(ray_cluster: str, tmp_path: Path, notes: Path) -> None:
    space = {"resources.num_workers": {"grid_search": [1, 2]}, UNITS: {"grid_search": [8, 16]}}
    done = search(tmp_path, net(notes), space, max_concurrent_trials=2)
    assert done.states == ["COMPLETED"] * 4
    tried = sorted((trial["params"]["resources.num_workers"], trial["params"][UNITS]) for trial in done.table)
    assert tried == [(1, 8), (1, 16), (2, 8), (2, 16)]
    for units in (8, 16):
        of_one, of_two = (
            next(
                trial["score"]
                for trial in done.table
                if trial["params"] == {"resources.num_workers": workers, UNITS: units}
            )
            for workers in (1, 2)
        )
        assert of_two == pytest.approx(of_one, rel=1e-3)


@pytest.mark.slow
def test_how_many_run_at_once_changes_no_trial(ray_cluster: str, tmp_path: Path) -> None:
    space = {LR: {"loguniform": [1e-4, 1e-1]}, "train.global_batch_size": {"choice": [50, 100, 200]}}
    one, two = (
        search(
            tmp_path / str(count), {"name": "mlp"}, space, num_samples=5, max_concurrent_trials=count, seed=3
        )
        for count in (1, 2)
    )
    assert one.table == two.table
    for name in one.trials:
        assert differences(one.saved(name), two.saved(name)) == []


@pytest.mark.slow
def test_a_stopped_search_goes_on_and_repeats_no_finished_trial(
    ray_cluster: str, tmp_path: Path, notes: Path
) -> None:
    tune = {**TUNE, "param_space": {UNITS: {"grid_search": [8, 10, 12, 14, 16]}}}
    spec = {"model": net(notes, "slow"), "tune": tune}
    results: list[Result] = []
    thread = threading.Thread(target=lambda: results.append(run(tmp_path, spec)))
    thread.start()
    wait_for_trials(tmp_path / "runs", 2, timeout_s=120).request_stop()
    thread.join(100)
    assert [(result.status, result.exit_code) for result in results] == [("STOPPED", 143)]
    stopped = found_by(tmp_path, results[0])
    client = MlflowClient(stopped.result.tracking_uri)
    assert client.get_run(stopped.result.mlflow_run_id).info.status == "KILLED"
    assert "RUNNING" not in {child.info.status for child in children(stopped).values()}
    finished = {name: trial for name, trial in stopped.trials.items() if trial["state"] == "COMPLETED"}
    assert 2 <= len(finished) < 5

    (notes / "hurry").touch()
    resumed = found_by(tmp_path, run(tmp_path, spec))
    assert (resumed.result.run, resumed.result.resumed, resumed.result.status) == (
        "small-1",
        True,
        "SUCCEEDED",
    )
    assert resumed.states == ["COMPLETED"] * 5
    for name, trial in finished.items():
        assert resumed.trials[name] == trial
    assert sorted(children(resumed)) == sorted(resumed.trials)
    assert {child.info.status for child in children(resumed).values()} == {"FINISHED"}
    for child in children(resumed).values():
        steps = [step for step, _ in curve(resumed, child.info.run_id, "train/loss")]
        assert steps == list(range(1, EPOCHS * EPOCH_STEPS + 1))
    straight = found_by(tmp_path / "straight", run(tmp_path / "straight", spec))
    assert resumed.table == straight.table
    for name in straight.trials:
        assert differences(straight.saved(name), resumed.saved(name)) == []


def wait_for_trials(storage: Path, count: int, timeout_s: float) -> RunFolder:
    """The run once so many of its trials are completed."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        for found in list_runs(Folder.at(storage)):
            trials = (found.read_search() or {}).get("trials", [])
            if sum(trial["state"] == "COMPLETED" for trial in trials) >= count:
                return found
        time.sleep(0.1)
    raise AssertionError(f"not {count} trials were completed in {timeout_s} s")


@pytest.mark.slow
def test_a_worker_that_leaks_is_replaced(ray_cluster: str, tmp_path: Path, notes: Path) -> None:
    """Each trial leaves 120 MB or more behind."""
    space = {UNITS: {"grid_search": [8, 10, 12, 14, 16, 18]}}
    done = search(tmp_path, net(notes, "leak"), space, recycle_worker_at="200MB")
    assert done.states == ["COMPLETED"] * 6
    pids = made_by(notes)
    assert all(len(of_trial) == 1 for of_trial in pids.values())
    assert 2 <= len(set().union(*pids.values())) < 6
