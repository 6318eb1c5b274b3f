"""What each rank alone has, through real checkpoints over gloo: FSDP's shards, PowerSGD's memory of errors.

The same number of workers goes on with the same bits; another number begins with the same weights and moments.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.multiprocessing

from orchestrator.checkpoints.manifest import checkpoint_name
from orchestrator.engine import collectives
from orchestrator.engine.attempt import Attempt
from orchestrator.engine.loop import train
from orchestrator.engine.parallel.compression import compression_state
from orchestrator.engine.parallel.gradients import is_sharded, local
from orchestrator.engine.parallel.state import saved_state
from orchestrator.engine.recipe import Position
from orchestrator.runs.folder import RunFolder
from orchestrator.storage import Folder
from tests.distributed.test_gloo import Keeping
from tests.unit.engine_case import case_attempt, case_spec

pytestmark = pytest.mark.slow

STOP, THIN_STOP, OFTEN = 7, 115, 3
"""Steps at which runs are stopped: a checkpoint is due then, so that the ranks talk."""


def sharded(every_n_steps: int = STOP, **arguments: float) -> dict[str, Any]:
    return {
        "model": {"name": "mlp", "args": {"hidden": [15], **arguments}},
        "train": {
            "ema": {"decay": 0.9},
            "microbatch_size": 8,
            "parallel": {"strategy": "fsdp"},
            "max_steps": 12,
        },
        "checkpoint": {"every_n_steps": every_n_steps},
    }


SHARDED, DROPOUT, SAVED_OFTEN = sharded(), sharded(dropout=0.2), sharded(OFTEN)
# PowerSGD sends whole gradients for 100 passes, of which the warm-up takes some.
THIN = {
    "train": {
        "global_batch_size": 5,
        "max_steps": 125,
        "parallel": {"gradient_compression": "powersgd", "powersgd_rank": 2},
    },
    "checkpoint": {"every_n_steps": THIN_STOP},
}


class Telling(Keeping):
    """Keeps notices too, and stops at the first occasion after so many steps."""

    position: Position | None = None

    def __init__(self, rank: int, world_size: int, stop_after: int | None) -> None:
        super().__init__(rank, world_size, stop_after)
        self.notices: list[str] = []

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def stop_requested(self) -> bool:
        stop = self._stop_after
        return stop is not None and self.position is not None and self.position.step >= stop


def folder_of(storage: Path, run: str) -> Path:
    name, _, number = run.rpartition("-")
    return RunFolder(Folder.at(storage), name, int(number)).checkpoints.local_path()


def flat(state: Any, path: str = "") -> dict[str, Any]:
    """A tree's leaves by their path."""
    if isinstance(state, dict):
        return {
            name: leaf
            for key, value in state.items()
            for name, leaf in flat(value, f"{path}/{key}" if path else str(key)).items()
        }
    return {path: state}


def state_of(attempt: Attempt) -> dict[str, Any]:
    """Weights, moments and averages in whole tensors: the ranks' rows one after the other."""
    leaves = flat(saved_state(attempt.parallel, attempt.optimizer, attempt.ema))
    mine = {
        name: local(value).detach().clone() if isinstance(value, torch.Tensor) else value
        for name, value in leaves.items()
    }
    ranks = collectives.gather_objects({name: value for name, value in mine.items() if value is not None})
    return {
        name: torch.cat([rank[name] for rank in ranks])
        if isinstance(leaves[name], torch.Tensor) and is_sharded(leaves[name])
        else value
        for name, value in ranks[0].items()
    }


def one_run(
    storage: Path,
    rank: int,
    world_size: int,
    run: str,
    sections: dict[str, Any],
    stop: int | None,
    steps: bool,
) -> None:
    """Begin or go on as this rank, and train if there are to be `steps`; every rank writes what it then has."""
    link = Telling(rank, world_size, stop)
    attempt = case_attempt(case_spec(**sections), storage, link, run)
    begun = state_of(attempt)
    resumed_from, link.position = attempt.resumed_from, attempt.position
    if steps:
        train(attempt)
    facts = {
        "losses": {str(point.step): point.value for point in link.points if point.key == "train/loss"},
        "notices": link.notices,
        "resumed_from": resumed_from,
        "metrics": attempt.metrics,
    }
    ended = state_of(attempt)
    name = f"{run}-{world_size}-{stop}-{rank}"
    (storage / f"{name}.json").write_text(json.dumps(facts))
    torch.save(
        {"begun": begun, "ended": ended, "memory": compression_state(attempt.parallel)}, storage / name
    )


def worker(rank: int, _: int, storage: Path) -> None:
    """One of three processes, which do all runs of this file one after the other: starting them is dear."""
    torch.set_num_threads(1)
    for size, runs in (
        (
            2,
            [
                ("straight-1", DROPOUT, None, True),
                ("broken-1", DROPOUT, STOP, True),
                ("broken-1", DROPOUT, None, True),
                ("fewer-1", SHARDED, STOP, True),
                ("more-1", SHARDED, STOP, True),
                ("grown-1", SHARDED, None, False),
                ("flipped-1", SAVED_OFTEN, 2 * OFTEN, True),
                ("missing-1", SAVED_OFTEN, 2 * OFTEN, True),
                ("thin-1", THIN, None, True),
                ("thinbroken-1", THIN, THIN_STOP, True),
                ("thinbroken-1", THIN, None, True),
                ("thinmore-1", THIN, THIN_STOP, True),
            ],
        ),
        (
            3,
            [
                ("more-1", SHARDED, None, True),
                ("thinmore-1", THIN, None, True),
                ("flipped-1", SAVED_OFTEN, None, False),
                ("missing-1", SAVED_OFTEN, None, False),
            ],
        ),
    ):
        if rank < size:
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{storage}/rendezvous-{size}", rank=rank, world_size=size
            )
            for run in runs:
                if size == 3:
                    collectives.barrier()
                    if rank == 0:
                        damage(storage, run[0])
                    collectives.barrier()
                one_run(storage, rank, size, *run)
            torch.distributed.destroy_process_group()


def damage(storage: Path, run: str) -> None:
    """Keep a copy of what was saved, and spoil the newest checkpoint of the runs that are for that."""
    place = folder_of(storage, run)
    shutil.copytree(place, storage / f"{run}-saved")
    file = place / checkpoint_name(2 * OFTEN) / "rank-00001.safetensors"
    if run == "missing-1":
        file.unlink()
    if run == "flipped-1":
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two and then three processes have done their runs; `grown-1` was begun by one before."""
    folder = tmp_path_factory.mktemp("sharded")
    torch.set_num_threads(1)
    one_run(folder, 0, 1, "grown-1", SHARDED, STOP, True)
    torch.multiprocessing.start_processes(worker, (3, folder), nprocs=3, start_method="spawn")
    return folder


def facts_of(storage: Path, run: str, size: int, stop: int | None = None, rank: int = 0) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((storage / f"{run}-{size}-{stop}-{rank}.json").read_text())
    return facts | torch.load(storage / f"{run}-{size}-{stop}-{rank}", weights_only=True)


def saved_by_two(place: Path) -> dict[str, Any]:
    """A checkpoint in whole tensors, read by others' readers."""
    files = [safetensors.torch.load_file(place / f"rank-{rank:05d}.safetensors") for rank in range(2)]
    names = {name for file in files for name in file}
    rows = {name: torch.cat([file[name] for file in files if name in file]) for name in names}
    shared = flat(torch.load(place / "state.pt", weights_only=True))
    owners = ("model/", "optimizer/", "ema/")
    return {name: rows.get(name, value) for name, value in shared.items() if name.startswith(owners)}


def assert_same(one: Any, other: Any) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            assert_same(value, other[name])
        elif isinstance(value, torch.Tensor):
            assert torch.equal(other[name], value), name
        elif isinstance(value, list):
            assert_same(dict(enumerate(value)), dict(enumerate(other[name])))
        else:
            assert other[name] == value, name


def test_shards_go_on_with_the_same_bits(storage: Path) -> None:
    """In the middle of an epoch and of the averages' first updates, with dropout and accumulation."""
    straight = facts_of(storage, "straight-1", 2)
    stopped, resumed = facts_of(storage, "broken-1", 2, STOP), facts_of(storage, "broken-1", 2)
    assert resumed["resumed_from"] == checkpoint_name(STOP)
    assert_same(resumed["begun"], stopped["ended"])
    assert {**stopped["losses"], **resumed["losses"]} == straight["losses"]
    assert resumed["metrics"] == straight["metrics"]
    assert_same(resumed["ended"], straight["ended"])


def test_each_rank_writes_its_rows_only(storage: Path) -> None:
    place = folder_of(storage, "fewer-1") / checkpoint_name(STOP)
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in safetensors.torch.load_file(file).items()}
        for file in sorted(place.glob("rank-*.safetensors"))
    ]
    assert len(shapes) == 2
    weight = next(name for name in shapes[0] if name.startswith("model/") and shapes[0][name] == (8, 64))
    assert shapes[1][weight] == (7, 64)
    assert not list(place.glob("rank-*.json"))
    state = torch.load(place / "state.pt", weights_only=True)
    assert all(tensor.is_meta for tensor in state["model"].values())


@pytest.mark.parametrize(("run", "size"), [("fewer-1", 1), ("more-1", 3)])
def test_another_number_of_workers_begins_with_the_same_state(storage: Path, run: str, size: int) -> None:
    if size == 1:
        saved = saved_by_two(folder_of(storage, run) / checkpoint_name(STOP))
        one_run(storage, 0, 1, run, SHARDED, None, True)
    else:
        saved = saved_by_two(storage / f"{run}-saved" / checkpoint_name(STOP))
    found = facts_of(storage, run, size)
    assert found["resumed_from"] == checkpoint_name(STOP)
    assert_same(found["begun"], {name: saved[name] for name in found["begun"]})
    assert_same(found["begun"], facts_of(storage, run, 2, STOP)["ended"])


def test_the_curve_goes_on_with_another_number_of_workers(storage: Path) -> None:
    one_run(storage, 0, 1, "alone-1", SHARDED, None, True)
    alone, more = facts_of(storage, "alone-1", 1), facts_of(storage, "more-1", 3)
    assert sorted(int(step) for step in more["losses"]) == list(range(STOP + 1, 13))
    for step, loss in more["losses"].items():
        assert loss == pytest.approx(alone["losses"][step], rel=1e-4), step
    for name, value in alone["ended"].items():
        if name.startswith("model/"):
            torch.testing.assert_close(more["ended"][name], value, rtol=1e-3, atol=1e-5)


def test_what_one_process_saved_is_sharded(storage: Path) -> None:
    alone, found = facts_of(storage, "grown-1", 1, STOP), facts_of(storage, "grown-1", 2)
    assert found["resumed_from"] == checkpoint_name(STOP)
    assert_same(found["begun"], alone["ended"])


@pytest.mark.parametrize("run", ["flipped-1", "missing-1"])
def test_with_a_damaged_shard_all_take_the_older_checkpoint(storage: Path, run: str) -> None:
    found = facts_of(storage, run, 3)
    assert found["resumed_from"] == checkpoint_name(OFTEN)
    assert_same(found["begun"], saved_by_two(storage / f"{run}-saved" / checkpoint_name(OFTEN)))


@pytest.mark.parametrize("rank", [0, 1])
def test_powersgd_goes_on_with_the_same_bits(storage: Path, rank: int) -> None:
    """Weights, losses, and what each rank's gradients have lost so far."""
    straight = facts_of(storage, "thin-1", 2, rank=rank)
    resumed = facts_of(storage, "thinbroken-1", 2, rank=rank)
    assert resumed["resumed_from"] == checkpoint_name(THIN_STOP)
    assert straight["memory"]["iter"] > 100
    assert any(bool(error.any()) for error in straight["memory"]["error_dict"].values())
    assert_same(resumed["memory"], straight["memory"])
    assert_same(resumed["ended"], straight["ended"])


def test_the_errors_are_each_ranks_own(storage: Path) -> None:
    one, other = (facts_of(storage, "thin-1", 2, rank=rank)["memory"]["error_dict"] for rank in range(2))
    assert not torch.equal(one[0], other[0])


def test_for_another_number_of_workers_powersgd_begins_anew(storage: Path) -> None:
    found = facts_of(storage, "thinmore-1", 3)
    assert found["resumed_from"] == checkpoint_name(THIN_STOP)
    assert [text for text in found["notices"] if "2 workers saved the checkpoint and 3 go on" in text]
    assert found["memory"]["iter"] < 100
    assert not found["memory"]["error_dict"]
