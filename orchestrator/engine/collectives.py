"""The few collective calls the engine makes; without a process group they are local. Imports: torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum in place over all ranks; the same result on each."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def gather_objects(value: Any) -> list[Any]:
    """Every rank's object, in rank order, on every rank. The ranks are one trusted program."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered


def broadcast_object(value: Any) -> Any:
    """Rank 0's object, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def share_tensors(tensors: Iterable[torch.Tensor]) -> None:
    """Give rank 0's values, in place, to every rank."""
    if world_size() > 1:
        for tensor in tensors:
            values = tensor.contiguous()
            dist.broadcast(values, src=0)
            if values is not tensor:
                tensor.copy_(values)


def barrier() -> None:
    if world_size() > 1:
        dist.barrier()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0
