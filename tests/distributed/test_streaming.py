"""Streamed data over two real processes: the same batches, so the same losses, as for one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.multiprocessing

from tests.distributed.test_gloo import alone, one_run, result_of
from tests.unit.engine_case import case_data, case_spec
from tests.unit.prepared_case import reshard

pytestmark = pytest.mark.slow
STREAMED = {"data": {"iterate": {"kind": "streaming", "window": "40kB"}}}


def worker(rank: int, world_size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    for run, stop in (("straight-2", None), ("broken-2", 7), ("broken-2", None), ("grown-1", None)):
        one_run(folder, rank, world_size, run, stop, STREAMED)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streaming")
    torch.set_num_threads(1)
    reshard(case_data(case_spec(), folder), 40)
    alone(folder, "grown-1", stop=7, **STREAMED)
    torch.multiprocessing.start_processes(worker, (2, folder), nprocs=2, start_method="spawn")
    return folder


def test_losses_do_not_change_with_the_world_size(storage: Path) -> None:
    reference, weights = alone(storage, "straight-1", **STREAMED)
    assert reference["losses"] != alone(storage, "mapped-1")[0]["losses"]
    for run in ("straight-2", "grown-1"):  # the latter was begun by one process and ended by two
        facts, others = result_of(storage, run)
        steps = sorted(map(int, facts["losses"]))
        assert steps == list(range(34 - len(steps), 34))
        assert (len(steps) == 33) == (run == "straight-2")  # where the other one stopped, the clock decided
        for step, loss in facts["losses"].items():
            assert loss == pytest.approx(reference["losses"][step], rel=1e-4), (run, step)
        assert facts["metrics"]["val/loss"] == pytest.approx(reference["metrics"]["val/loss"], rel=1e-4)
        for name, tensor in weights.items():
            torch.testing.assert_close(others[name], tensor, rtol=1e-3, atol=1e-5)


def test_a_stop_and_a_resume_repeat_an_unhurt_run(storage: Path) -> None:
    straight, weights = result_of(storage, "straight-2")
    broken, others = result_of(storage, "broken-2")
    assert broken["metrics"] == straight["metrics"]
    for name, tensor in weights.items():
        assert torch.equal(others[name], tensor), name
