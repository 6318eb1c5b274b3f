"""Checks of `orchestrator doctor` that load torch or Ray. Each yields findings, and may hang or raise.

Imports: torch and ray inside functions; checks, submission.client.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from orchestrator.runners.checkup.checks import Finding, Places, memory_total_bytes

_REDUCED_BYTES = 16 * 2**20
_REDUCTIONS = 5


def torch_operators(_: Places) -> Iterator[Finding]:
    import torch

    from orchestrator.errors import MissingPackage
    from orchestrator.vision import import_torchvision

    product = torch.ones(64, 64) @ torch.ones(64, 64)
    if not bool((product == 64).all()):
        yield Finding("torch", "fail", "a product of ones is wrong", "reinstall torch")
        return
    torchvision = import_torchvision()
    versions = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    try:
        torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)
    except MissingPackage as error:
        yield Finding("torch", "warn", f"{versions} load; detection operators are missing", error.mend)
    else:
        yield Finding("torch", "ok", f"{versions}, compiled operators load")


def devices(_: Places) -> Iterator[Finding]:
    import torch

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    reason = f"{cpus} CPUs, {memory_total_bytes() / 1e9:,.0f} GB memory"
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        named = ", ".join(f"{gpu.name} {gpu.total_memory / 1e9:,.0f} GB" for gpu in gpus)
        value = float((torch.ones(8, 8, device="cuda") @ torch.ones(8, 8, device="cuda")).sum())
        if value != 512.0:
            yield Finding("devices", "fail", f"{named}: a small product is wrong", "look at nvidia-smi")
            return
        yield Finding("devices", "ok", f"{reason}, {len(gpus)} GPUs: {named}")
    elif torch.backends.mps.is_available():
        yield Finding("devices", "ok", f"{reason}, Apple GPU (mps)")
    elif shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():
        build = "a CPU build" if torch.version.cuda is None else f"built for CUDA {torch.version.cuda}"
        yield Finding(
            "devices",
            "warn",
            f"{reason}; an NVIDIA GPU is here, and torch, {build}, cannot use it",
            "install a CUDA build of torch that the driver can run, or look at CUDA_VISIBLE_DEVICES",
        )
    else:
        yield Finding("devices", "ok", f"{reason}, no GPU")


def collectives(_: Places) -> Iterator[Finding]:
    """Two processes add up a tensor over loopback, as the workers of a run do over the network."""
    import torch.multiprocessing as multiprocessing

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        other = multiprocessing.get_context("spawn").Process(target=_reduce, args=(1, folder), daemon=True)
        other.start()
        bytes_per_s = _reduce(0, folder)
        other.join(10)
    if other.exitcode != 0:
        yield Finding("collectives", "fail", f"the second process ended with {other.exitcode}")
        return
    yield Finding(
        "collectives", "ok", f"gloo, 2 processes on loopback: {bytes_per_s / 1e9:.2f} GB/s all-reduce"
    )
    try:
        socket.gethostbyname(socket.gethostname())
    except OSError:
        yield Finding(
            "collectives",
            "warn",
            f"the host name {socket.gethostname()} does not resolve: across machines gloo would hang",
            "put it into /etc/hosts, or set GLOO_SOCKET_IFNAME to the network interface on every node",
        )


def _reduce(rank: int, folder: str) -> float:
    """Bytes reduced per second; raises where the sum is wrong."""
    import datetime

    import torch
    import torch.distributed as distributed

    distributed.init_process_group(
        "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=30),
    )
    try:
        tensor = torch.ones(_REDUCED_BYTES // 4)
        distributed.all_reduce(tensor)
        began_s = time.perf_counter()
        for _ in range(_REDUCTIONS):
            distributed.all_reduce(tensor)
        took_s = time.perf_counter() - began_s
        if float(tensor[0]) != 2.0 ** (_REDUCTIONS + 1):
            raise ArithmeticError(f"all-reduce gave {float(tensor[0])}")
    finally:
        distributed.destroy_process_group()
    return _REDUCED_BYTES * _REDUCTIONS / took_s


def ray_answers(places: Places) -> Iterator[Finding]:
    if places.address is None:
        yield from _local_ray()
    else:
        yield from _cluster(places.address)


def _local_ray() -> Iterator[Finding]:
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.pop("RAY_ADDRESS", None)
    import ray

    began_s = time.perf_counter()
    folder = tempfile.mkdtemp(prefix="doctor-", dir="/tmp")  # paths of Ray's sockets have to be short
    try:
        ray.init(
            num_cpus=1,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=100_000_000,
            _temp_dir=folder,
        )
        ray.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    yield Finding("ray", "ok", f"Ray {ray.__version__} starts here in {time.perf_counter() - began_s:.1f} s")


def _cluster(address: str) -> Iterator[Finding]:
    from orchestrator.runners.submission.client import connect

    client = connect(address)
    answer = client._do_request("GET", "/api/v0/cluster_metadata", timeout=5).json()["data"]
    nodes = client._do_request("GET", "/api/v0/nodes?detail=1", timeout=5).json()["data"]["result"]["result"]
    alive = [node["resources_total"] for node in nodes if node["state"] == "ALIVE"]
    there = {"Ray": answer["rayVersion"], "Python": answer["pythonVersion"]}
    here = {"Ray": importlib.metadata.version("ray"), "Python": platform.python_version()}
    cpus, gpus = (sum(node.get(kind, 0) for node in alive) for kind in ("CPU", "GPU"))
    reason = f"{address} answers: {len(alive)} nodes, {cpus:g} CPUs, {gpus:g} GPUs, Ray {there['Ray']}"
    if not alive:
        yield Finding("ray", "fail", f"{address} answers, but has no node", "start one, or wait for it")
    elif there["Ray"] != here["Ray"]:
        mend = f"pip install ray=={there['Ray']} here, or upgrade the cluster"
        yield Finding("ray", "fail", f"{reason}, but Ray {here['Ray']} is installed here", mend)
    elif there["Python"].split(".")[:2] != here["Python"].split(".")[:2]:
        mend = "use one minor version of Python: objects are pickled from one to the other"
        yield Finding("ray", "fail", f"{reason}, Python {there['Python']}; here it is {here['Python']}", mend)
    else:
        yield Finding("ray", "ok", f"{reason}, Python {there['Python']}")
