"""Which process gets which rank, and which GPUs it may see: pure functions. Imports: the standard library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    """Where a worker's process runs. `node` is Ray's id of the machine, `gpus` are the devices that Ray gave to it."""

    node: str
    host: str
    ip: str
    pid: int
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Seat:
    """What a process is in an attempt, as torch's launchers name it."""

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    node_rank: int
    gpus: tuple[str, ...] = ()
    """Its own devices."""
    visible_gpus: tuple[str, ...] = ()
    """Those of all workers of its node, so that NCCL can copy between them directly."""


def assign_seats(facts: Mapping[int, Facts], first: int | None) -> dict[int, Seat]:
    """A seat for each process, by its key. The ranks of a node are neighbours, in the order of their devices.

    Rank 0 is the process `first` where it is still there, else the one with the lowest key.
    """
    first = min(facts) if first is None or first not in facts else first
    nodes: dict[str, list[int]] = {facts[first].node: []}
    for key in sorted(facts):
        nodes.setdefault(facts[key].node, []).append(key)
    for keys in nodes.values():
        keys.sort(key=lambda key: (key != first, _device_order(facts[key].gpus), key))
    seats: dict[int, Seat] = {}
    for node_rank, keys in enumerate(nodes.values()):
        visible = sorted(
            {gpu for key in keys for gpu in facts[key].gpus}, key=lambda gpu: _device_order([gpu])
        )
        for local_rank, key in enumerate(keys):
            seats[key] = Seat(
                rank=len(seats),
                world_size=len(facts),
                local_rank=local_rank,
                local_world_size=len(keys),
                node_rank=node_rank,
                gpus=facts[key].gpus,
                visible_gpus=tuple(visible),
            )
    return seats


def _device_order(gpus: Sequence[str]) -> tuple[int, str]:
    """Numbers by their value; names, as those of MIG devices, after them."""
    numbers = [int(gpu) for gpu in gpus if gpu.isdigit()]
    if numbers:
        return min(numbers), ""
    return (1 << 30, min(gpus)) if gpus else (-1, "")
