"""Sharded models without other processes: FSDP2 over one rank has all its hooks and tensor types."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


@contextlib.contextmanager
def one_rank() -> Iterator[None]:
    """A process group of this process alone."""
    store = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def sharded(model: torch.nn.Module) -> torch.nn.Module:
    fully_shard(model)
    return model


def gathered(parameter: torch.Tensor) -> torch.Tensor:
    """The whole of a sharded parameter."""
    assert isinstance(parameter, DTensor)
    return parameter.full_tensor()
