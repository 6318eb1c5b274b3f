"""Join the ranks of a group into torch's process group, and leave it again. Imports: torch, psutil.

The devices are shared out as Ray Train does it: every worker of a node sees the GPUs of all of them, so that NCCL
can copy between them directly, and takes its own by its place in the list.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
from collections.abc import Iterator

import psutil
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import TCPStore
from torch.distributed.distributed_c10d import _set_pg_timeout

from orchestrator.runners.ray_workers.seats import Seat

_MEET_S = 120.0
"""How long the ranks may take to find each other: their processes are all there by then."""


def open_store(timeout_s: float) -> tuple[TCPStore, tuple[str, int]]:
    """A store that listens on a free port of this machine, and its address; rank 0 keeps it as long as it works."""
    import ray

    ip = ray.util.get_node_ip_address()
    store = TCPStore(
        ip, 0, is_master=True, wait_for_workers=False, timeout=datetime.timedelta(seconds=timeout_s)
    )
    return store, (ip, store.port)


def choose_device(seat: Seat) -> torch.device:
    """The worker's device. Call before anything touches CUDA: it reads the environment only once."""
    if not seat.gpus:
        return torch.device("cpu")
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(seat.visible_gpus)
    return torch.device("cuda", min(seat.visible_gpus.index(gpu) for gpu in seat.gpus))


def take_seat(seat: Seat, device: torch.device, address: tuple[str, int]) -> None:
    """Tell the process, and this thread, who it is: as torch's launchers do."""
    ip, port = address
    os.environ.update(
        RANK=str(seat.rank),
        LOCAL_RANK=str(seat.local_rank),
        WORLD_SIZE=str(seat.world_size),
        LOCAL_WORLD_SIZE=str(seat.local_world_size),
        NODE_RANK=str(seat.node_rank),
        MASTER_ADDR=ip,
        MASTER_PORT=str(port),
        ACCELERATE_TORCH_DEVICE=str(device),
    )
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        _name_interface()


@contextlib.contextmanager
def joined(
    seat: Seat, device: torch.device, address: tuple[str, int], store: TCPStore | None, timeout_s: float
) -> Iterator[None]:
    """A process group of all ranks within the block: NCCL on GPUs, gloo on CPUs. `store` is rank 0's own.

    Raises torch's errors where a rank does not come. Where the block fails, the sockets are closed with it: that is
    how the other ranks learn of it at once.
    """
    ip, port = address
    to_meet = datetime.timedelta(seconds=min(timeout_s, _MEET_S))
    if store is None or seat.rank:
        store = TCPStore(ip, port, is_master=False, timeout=to_meet)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        store=store,
        rank=seat.rank,
        world_size=seat.world_size,
        timeout=to_meet,
        device_id=device if device.type == "cuda" else None,
    )
    try:
        dist.barrier()  # all are there, and reach each other
        _set_pg_timeout(datetime.timedelta(seconds=timeout_s))
        yield
    except BaseException:
        if device.type != "cuda":  # where NCCL would wait for the others; such a process is ended anyway
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _name_interface() -> None:
    """Let gloo use the network of the address by which Ray knows this machine.

    By itself it resolves the host's name, which may lead nowhere or to another network.
    """
    import ray

    if "GLOO_SOCKET_IFNAME" in os.environ:
        return
    ip = ray.util.get_node_ip_address()
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.family in (socket.AF_INET, socket.AF_INET6) and one.address == ip for one in addresses):
            os.environ["GLOO_SOCKET_IFNAME"] = name
            return
