"""What the tests of a group let its processes do, and how they ended."""

from __future__ import annotations

import importlib
import os
import sys
import time
from typing import Any

import psutil
import torch

from orchestrator.engine.link import WorkerLink
from orchestrator.records import EpochReport, Failure
from orchestrator.runners.ray_workers.group import Group
from orchestrator.runners.ray_workers.process import Ended

TIMEOUT_S = 200
KEPT: list[bytearray] = []


def add_up(link: WorkerLink) -> tuple[int, int, float]:
    """This rank, its process, and the sum of all ranks plus one."""
    total = torch.tensor([float(link.rank + 1)])
    torch.distributed.all_reduce(total)
    return link.rank, os.getpid(), total.item()


def meet(link: WorkerLink) -> tuple[int, dict[str, str], int, float]:
    """How many pieces of work this process group has seen, the environment, what torch calls this rank, a sum."""
    store = torch.distributed.distributed_c10d._get_default_store()
    times = store.add(f"work of {link.rank}", 1)
    names = (
        "RANK",
        "WORLD_SIZE",
        "LOCAL_RANK",
        "LOCAL_WORLD_SIZE",
        "NODE_RANK",
        "MASTER_ADDR",
        "MASTER_PORT",
    )
    return (
        times,
        {name: os.environ.get(name, "") for name in names},
        torch.distributed.get_rank(),
        add_up(link)[2],
    )


def spoil(link: WorkerLink, folder: str) -> tuple[str | None, str, list[int]]:
    """What the work before left behind: an environment variable, torch's default type, a module's variable."""
    sys.path.insert(0, folder)
    seen = importlib.import_module("own_net").SEEN
    found = os.environ.get("SPOILT"), str(torch.get_default_dtype()), list(seen)
    seen.append(link.rank)
    os.environ["SPOILT"] = "yes"
    torch.set_default_dtype(torch.float64)
    return found


def ask_at_a_gate(link: WorkerLink) -> str:
    link.gates = (2,)
    link.start()
    for epoch in (1, 2):
        link.report(EpochReport(epoch, epoch, {"val/loss": 1.0}))
    return link.decision(2) if link.rank == 0 else ""


def grow(link: WorkerLink, num_bytes: int) -> tuple[int, int]:
    """This process, and what it takes with so much memory in use that it keeps."""
    KEPT.append(bytearray(b"x") * num_bytes)
    return os.getpid(), psutil.Process().memory_info().rss


def fail_on_rank_1(link: WorkerLink) -> None:
    if link.rank == 1:
        raise ValueError("not me")
    torch.distributed.all_reduce(torch.zeros(1))


def wait_on_rank_1(link: WorkerLink) -> None:
    if link.rank == 1:
        time.sleep(TIMEOUT_S)
    torch.distributed.all_reduce(torch.zeros(1))


def wait_until_ready(group: Group) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not group.ready([0, 1], 1.0):
        assert time.monotonic() < deadline


def ends_of(group: Group, work: Any, *, keep: bool = False) -> dict[int, Ended | Failure]:
    """How the work ended on each rank."""
    assert group.begin([0, 1], work, 60.0, keep=keep) == {}
    ended: dict[int, Ended | Failure] = {}
    deadline = time.monotonic() + TIMEOUT_S
    while len(ended) < 2:
        assert time.monotonic() < deadline
        for rank, told in group.poll({}, 0.2).items():
            if isinstance(told, Failure):
                ended[rank] = told
            elif told.ended is not None:
                ended[rank] = told.ended
    return ended


def results_of(group: Group, work: Any = add_up, *, keep: bool = False) -> list[Any]:
    ends = ends_of(group, work, keep=keep)
    assert all(isinstance(end, Ended) and end.failure is None for end in ends.values()), ends
    return [ends[rank].result for rank in (0, 1)]  # type: ignore[union-attr]


def met(group: Group) -> int:
    """How many pieces of work the process group has seen that this one has, which all ranks take part in."""
    found = results_of(group, meet, keep=True)
    group.ended_well()
    addresses = {
        (environment.pop("MASTER_ADDR"), environment.pop("MASTER_PORT")) for _, environment, *_ in found
    }
    assert len(addresses) == 1
    assert all(all(address) for address in addresses)
    for rank, (_, environment, torch_rank, total) in enumerate(found):
        assert (torch_rank, total) == (rank, 3.0)
        assert environment == {
            "RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": "2",
            "NODE_RANK": "0",
        }
    assert len({times for times, *_ in found}) == 1
    return int(found[0][0])
