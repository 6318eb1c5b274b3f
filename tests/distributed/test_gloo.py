"""Real processes over gloo, without Ray: the numbers do not depend on how many workers share a batch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing

from orchestrator.engine.link import WorkerLink
from orchestrator.engine.loop import train
from orchestrator.engine.parallel.state import model_state
from orchestrator.records import Point
from tests.unit.engine_case import case_attempt, case_spec


class Keeping(WorkerLink):
    """Keeps what is logged, and asks to stop after some steps."""

    def __init__(self, rank: int, world_size: int, stop_after: int | None) -> None:
        super().__init__(rank=rank, world_size=world_size)
        self.points: list[Point] = []
        self._stop_after = stop_after

    def log_points(self, points: list[Point]) -> None:
        self.points += points

    def stop_requested(self) -> bool:
        reached = max((point.step for point in self.points), default=0)
        return self._stop_after is not None and reached + 1 >= self._stop_after


DROPOUT = {"model": {"name": "mlp", "args": {"hidden": [16], "dropout": 0.2}}}
TINY = {"train": {"global_batch_size": 2, "max_steps": 12, "max_epochs": 1}}

AVERAGED = {"train": {"ema": {"decay": 0.9}, "microbatch_size": 8, "clip_grad_norm": 0.5}}
SHARDED = {"train": {**AVERAGED["train"], "parallel": {"strategy": "fsdp"}}}
WEIGHTED = {"train": {"loss": {"name": "cross_entropy", "class_weights": "balanced", "label_smoothing": 0.1}}}
HALVED = {"train": {"parallel": {"gradient_compression": "fp16"}}}

Result = tuple[dict[str, Any], dict[str, torch.Tensor]]


def one_run(
    folder: Path, rank: int, world_size: int, run: str, stop: int | None, sections: dict[str, Any]
) -> None:
    """Train as this rank; rank 0 writes the losses by step, the validation and the weights."""
    link = Keeping(rank, world_size, stop)
    attempt = case_attempt(case_spec(**sections), folder, link, run)
    outcome = train(attempt)
    weights = model_state(attempt.parallel)
    if rank == 0:
        losses = {str(point.step): point.value for point in link.points if point.key == "train/loss"}
        sent = [point.value for point in link.points if point.key == "perf/sent_bytes_per_step"]
        facts = {"losses": losses, "metrics": attempt.metrics, "status": outcome.status, "sent": sent}
        (folder / f"{run}-{stop}.json").write_text(json.dumps(facts))
        torch.save(weights, folder / f"{run}-{stop}.pt")


def result_of(folder: Path, run: str, stop: int | None = None) -> Result:
    facts = json.loads((folder / f"{run}-{stop}.json").read_text())
    return facts, torch.load(folder / f"{run}-{stop}.pt", weights_only=True)


def alone(folder: Path, run: str, stop: int | None = None, **sections: Any) -> Result:
    one_run(folder, 0, 1, run, stop, sections)
    return result_of(folder, run, stop)


def worker(rank: int, world_size: int, folder: Path) -> None:
    """One of three processes, which do all runs of this file one after the other: starting them is dear."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    for run, stop, sections in (
        ("plain-3", None, {}),
        ("tiny-3", None, TINY),
        ("straight-3", None, DROPOUT),
        ("broken-3", 7, DROPOUT),
        ("broken-3", None, DROPOUT),
        ("grown-1", None, {}),
        ("averaged-3", None, AVERAGED),
        ("sharded-3", None, SHARDED),
        ("reshard-3", 7, SHARDED),
        ("reshard-3", None, SHARDED),
        ("weighted-3", None, WEIGHTED),
        ("halved-3", None, HALVED),
    ):
        one_run(folder, rank, world_size, run, stop, sections)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the three processes have done their runs; `grown-1` was begun by one worker before."""
    folder = tmp_path_factory.mktemp("gloo")
    torch.set_num_threads(1)
    alone(folder, "grown-1", stop=7)
    torch.multiprocessing.start_processes(worker, (3, folder), nprocs=3, start_method="spawn")
    return folder


def test_losses_and_weights_do_not_change_with_the_world_size(storage: Path) -> None:
    """539 rows in batches of 50: the shares of three ranks are uneven, and the last batch is short."""
    reference, weights = alone(storage, "plain-1")
    facts, others = result_of(storage, "plain-3")
    assert facts["losses"].keys() == reference["losses"].keys()
    for step, loss in reference["losses"].items():
        assert facts["losses"][step] == pytest.approx(loss, rel=1e-4), step
    assert facts["metrics"]["val/loss"] == pytest.approx(reference["metrics"]["val/loss"], rel=1e-4)
    assert facts["metrics"]["val/accuracy"] == reference["metrics"]["val/accuracy"]
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_rank_without_samples_takes_part_with_weight_zero(storage: Path) -> None:
    """Batches of 2 over 3 ranks: one of them has nothing to do in every step."""
    reference, weights = alone(storage, "tiny-1", **TINY)
    facts, others = result_of(storage, "tiny-3")
    for step, loss in reference["losses"].items():
        assert facts["losses"][step] == pytest.approx(loss, rel=1e-4), step
    for name, tensor in weights.items():
        torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_resumed_group_of_three_repeats_the_bits_of_an_unhurt_one(storage: Path) -> None:
    """DDP settles its buckets after the first step; without the warm-up a resume reduces in another order."""
    straight, weights = result_of(storage, "straight-3")
    stopped, _ = result_of(storage, "broken-3", stop=7)
    assert stopped["status"] == "stopped"
    resumed, others = result_of(storage, "broken-3")
    assert resumed["status"] == "completed"
    assert {**stopped["losses"], **resumed["losses"]} == straight["losses"]
    for name, tensor in weights.items():
        assert torch.equal(others[name], tensor), name


def test_another_number_of_workers_goes_on_with_the_same_batches(storage: Path) -> None:
    straight, _ = alone(storage, "straight-1")
    grown, _ = result_of(storage, "grown-1")
    assert min(int(step) for step in grown["losses"]) > 6
    for step, loss in grown["losses"].items():
        assert straight["losses"][step] == pytest.approx(loss, rel=1e-4), step


def assert_same_course(one: Result, other: Result) -> None:
    assert one[0]["losses"].keys() == other[0]["losses"].keys()
    for step, loss in one[0]["losses"].items():
        assert other[0]["losses"][step] == pytest.approx(loss, rel=1e-4), step
    assert other[0]["metrics"]["val/loss"] == pytest.approx(one[0]["metrics"]["val/loss"], rel=1e-4)
    for name, tensor in one[1].items():
        torch.testing.assert_close(other[1][name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("run", ["averaged-3", "sharded-3"])
def test_averaged_weights_accumulation_and_clipping_in_either_strategy(storage: Path, run: str) -> None:
    """The validation is that of the averaged weights."""
    assert_same_course(alone(storage, f"{run}-alone-1", **AVERAGED), result_of(storage, run))


def test_a_sharded_run_goes_on_where_it_was_stopped(storage: Path) -> None:
    straight, weights = result_of(storage, "sharded-3")
    stopped, _ = result_of(storage, "reshard-3", stop=7)
    resumed, others = result_of(storage, "reshard-3")
    assert (stopped["status"], resumed["status"]) == ("stopped", "completed")
    assert {**stopped["losses"], **resumed["losses"]} == straight["losses"]
    assert resumed["metrics"] == straight["metrics"]
    for name, tensor in weights.items():
        assert torch.equal(others[name], tensor), name


def test_weighted_losses_do_not_change_with_the_world_size(storage: Path) -> None:
    assert_same_course(alone(storage, "weighted-1", **WEIGHTED), result_of(storage, "weighted-3"))


def test_compressed_gradients_are_half_the_bytes_and_nearly_the_course(storage: Path) -> None:
    whole, _ = result_of(storage, "plain-3")
    halved, _ = result_of(storage, "halved-3")
    parameters = 64 * 16 + 16 + 16 * 10 + 10
    assert set(whole["sent"]) == {4.0 * parameters}
    assert set(halved["sent"]) == {2.0 * parameters}
    for step, loss in whole["losses"].items():
        assert halved["losses"][step] == pytest.approx(loss, rel=2e-2), step
