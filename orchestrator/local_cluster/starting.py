"""A local cluster is started, for good or for the length of a block; where it cannot be, it is said why.

Imports: the other files here, errors, the standard library.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.errors import UsageError
from orchestrator.local_cluster import network, store
from orchestrator.local_cluster.cluster import LocalCluster
from orchestrator.local_cluster.hosts import make_host, planned_node, start_node, start_redis
from orchestrator.local_cluster.plan import HEAD, MAX_NODES, Plan

_ROOT = Path(__file__).parents[2]
_TRIAL = ("unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--mount-proc", "true")


@contextlib.contextmanager
def local_cluster(
    nodes: int = 3,
    *,
    isolated: bool | None = None,
    tuned: bool = False,
    redis: bool = False,
    dashboard: bool = False,
    num_cpus: float = 1,
    storage_bytes: int | None = None,
) -> Iterator[LocalCluster]:
    """A cluster for the length of a block, and not a moment longer, even where this process is killed.

    The arguments are those of `start_cluster`.
    """
    guards: list[int] = []
    make = functools.partial(_guard, guards)
    cluster = None
    try:
        cluster = start_cluster(
            nodes,
            isolated=isolated,
            tuned=tuned,
            redis=redis,
            dashboard=dashboard,
            num_cpus=num_cpus,
            storage_bytes=storage_bytes,
            reserved=make,
        )
        yield cluster
    finally:
        if cluster is not None:
            cluster.down()
        for pipe in guards:
            with contextlib.suppress(BrokenPipeError):
                os.write(pipe, b"\n")  # the guard may go: the number may be another cluster's from now on
            os.close(pipe)


def start_cluster(
    nodes: int,
    *,
    isolated: bool | None = None,
    tuned: bool = False,
    redis: bool = False,
    dashboard: bool = True,
    num_cpus: float = 1,
    storage_bytes: int | None = None,
    reserved: Callable[[str], None] | None = None,
) -> LocalCluster:
    """Start a head without CPUs and so many worker nodes of `num_cpus`; returns when Ray has them all.

    `isolated`: each node in namespaces of its own, by default where this machine allows it; else plain
    processes on loopback addresses. `tuned`: a node's death is noticed in seconds. `redis`: the head keeps
    what it knows in a Redis, and may be restarted. `storage_bytes`: the size of the shared folder, which is
    the disk's otherwise (needs root). `reserved` is called with the label before anything is started.
    Raises UsageError where something is missing here, OrchestratorError where the nodes do not come up; then
    nothing is left behind.
    """
    isolated = _check(nodes, isolated, redis, storage_bytes)
    root = str(_ROOT)

    def make(number: int) -> Plan:
        plan = Plan(number, isolated, tuned, dashboard, redis, num_cpus, storage_bytes, root)
        for _ in range(nodes + 1):
            plan = planned_node(plan)
        return plan

    plan = store.reserve(make)
    cluster = LocalCluster(plan.label)
    try:
        if reserved is not None:
            reserved(plan.label)
        _start(plan)
    except BaseException:
        tails = _log_tails(plan)
        cluster.down()
        if tails:
            print(tails, file=sys.stderr)
        raise
    return cluster


def why_not_isolated() -> str:
    """Why this machine or user cannot isolate nodes, as a sentence; empty where it can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [name for name in ("ip", "unshare", "nsenter", "mount") if shutil.which(name) is None]
    if missing:
        return f"{', '.join(missing)} of iproute2 and util-linux are not installed"
    if subprocess.run(_TRIAL, capture_output=True, check=False).returncode:
        return "the kernel or the container does not allow new namespaces"
    return ""


def _check(nodes: int, isolated: bool | None, redis: bool, storage_bytes: int | None) -> bool:
    """Whether the cluster is to be isolated. Raises UsageError for what cannot be."""
    if sys.platform != "linux":
        raise UsageError("a local cluster of several nodes needs Linux", "use cluster/local-head.sh")
    if not 1 <= nodes <= MAX_NODES:
        raise UsageError(f"a local cluster has 1 to {MAX_NODES} worker nodes, not {nodes}")
    if importlib.util.find_spec("ray") is None:
        raise UsageError("ray is not installed in this environment", "install the project's dependencies")
    if redis and shutil.which("redis-server") is None:
        raise UsageError("redis-server is not installed", "install it (Debian: apt install redis-server)")
    reason = why_not_isolated() if isolated in (True, None) else ""
    if isolated and reason:
        raise UsageError(reason, "start plain processes on loopback addresses instead: --plain")
    if storage_bytes is not None and os.geteuid() != 0:
        raise UsageError("a shared folder of a size of its own needs root", "leave its size out")
    return isolated if isolated is not None else not reason


def _start(plan: Plan) -> None:
    if plan.storage_bytes is not None:
        size = f"size={plan.storage_bytes},mode=1777"
        network.command("mount", "-t", "tmpfs", "-o", size, plan.label, str(plan.shared))
    if plan.isolated:
        network.make_bridge(plan)
    for node in plan.nodes:
        make_host(plan, node)
    if plan.redis:
        start_redis(plan)
    start_node(plan, plan.head)
    # No more at once than there are processors: Ray gives each node 30 s, and a start is hard work.
    at_once, cluster = os.cpu_count() or 1, LocalCluster(plan.label)
    cluster.wait_for({HEAD: "ALIVE"})
    for first in range(0, len(plan.workers), at_once):
        several = plan.workers[first : first + at_once]
        for node in several:
            start_node(plan, node)
        cluster.wait_for({node.name: "ALIVE" for node in several})


def _log_tails(plan: Plan) -> str:
    """The ends of the nodes' logs, for whoever has to find out why they did not come up."""
    tails = []
    for node in plan.nodes:
        with contextlib.suppress(OSError):
            lines = (plan.folder / f"{node.name}.log").read_text(errors="replace").splitlines()[-8:]
            tails += [f"{node.name}: {line}" for line in lines]
    return "\n".join(tails)


def _guard(pipes: list[int], label: str) -> None:
    """Start a process that takes the cluster down when this one has ended, however it did."""
    theirs, ours = os.pipe()
    pipes.append(ours)
    watch = 'read -r _ || exec "$@"'
    command = ["sh", "-c", watch, "sh", sys.executable, "-m", "orchestrator", "cluster", "down", label]
    root = str(_ROOT)
    subprocess.run(
        ["setsid", "--fork", *command],
        env={**os.environ, "PYTHONPATH": root},
        stdin=theirs,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    os.close(theirs)
