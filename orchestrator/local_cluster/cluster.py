"""A local cluster as its users hold it: started, disturbed, healed, and taken down with all that belongs to it.

Imports: the other files here, errors, the standard library.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.local_cluster import gcs, network, processes, store
from orchestrator.local_cluster.plan import (
    HEAD,
    MARK,
    MAX_NODES,
    REDIS_PORT,
    Node,
    Plan,
    driver_environment,
    environment,
    hosts_file,
    node_script,
    port_names,
    with_node,
)

_ROOT = Path(__file__).parents[2]
_UP_TIMEOUT_S = 240.0
_REDIS_TIMEOUT_S = 30.0
_END_TIMEOUT_S = 10.0
_TRIAL = ("unshare", "--net", "--mount", "--pid", "--uts", "--ipc", "--fork", "--mount-proc", "true")


class LocalCluster:
    """A cluster that is there, by its label. Everything is read anew, so that several processes can work on it.

    Nodes are named `head`, `w1`, `w2`, …; naming another one raises UsageError. Faults of links and storage
    need an isolated cluster, else UsageError.
    """

    def __init__(self, label: str) -> None:
        self.label = label

    @property
    def plan(self) -> Plan:
        return store.read_plan(self.label)

    @property
    def address(self) -> str:
        """What `ray.init` and `orchestrator run --address` take, on a node (see `command_on`)."""
        return self.plan.gcs

    @property
    def dashboard(self) -> str | None:
        """The dashboard and Jobs API, which this machine reaches too; None where there is none."""
        return self.plan.dashboard_url

    @property
    def shared(self) -> Path:
        """The folder that all nodes share."""
        return self.plan.shared

    def command_on(self, name: str, command: Sequence[str]) -> list[str]:
        """A command line that runs `command` on a node, in this working directory; give it `environment_on`.

        Signals, and the exit code, pass through. Raises UsageError where the node is off.
        """
        if not self.plan.isolated:
            self._node(name)
            return list(command)
        return [sys.executable, "-m", "orchestrator.local_cluster.enter", str(self._first(name)), *command]

    def environment_on(self, name: str) -> dict[str, str]:
        """This process's environment as a command on the node is to have it, with `RAY_ADDRESS`."""
        return driver_environment(self.plan, self._node(name), os.environ)

    def status(self) -> list[dict[str, Any]]:
        """Every node: `name`, `address`, `running` (has processes), `link`, and `state`, which is Ray's opinion.

        The state is empty where the head does not answer.
        """
        plan = self.plan
        states = {}
        if _answers(plan.gcs):
            with contextlib.suppress(OrchestratorError):
                states = {node["address"]: node["state"] for node in gcs.ask(plan.gcs, "list")}
        return [
            {
                "name": node.name,
                "address": node.address,
                "running": bool(processes.node_processes(plan, node.name)),
                "link": network.link_state(plan, node.name) if plan.isolated else "up",
                "state": states.get(node.address, ""),
            }
            for node in plan.nodes
        ]

    def wait_for(self, states: dict[str, str], timeout_s: float = _UP_TIMEOUT_S) -> None:
        """Wait until Ray holds nodes for `ALIVE` or `DEAD`. Raises OrchestratorError after the time."""
        wanted = [f"{self._node(name).address}={state}" for name, state in states.items()]
        gcs.ask(self.address, "wait", str(timeout_s), *wanted, timeout_s=timeout_s)

    def kill(self, name: str, *, silent: bool = False) -> None:
        """Kill all on a node at once, for good. `silent` as a power-off is: nobody is told by a closed connection."""
        plan, node = self.plan, self._node(name)
        if silent:
            self._isolated("a silent death")
            network.cut_link(plan, node.name, "packets")
        first = processes.first_process(plan, name) if plan.isolated else None
        if first is not None:
            os.kill(first, signal.SIGKILL)  # the kernel kills the others in its namespace
        processes.kill_all(lambda: processes.node_processes(plan, name))

    def stop(self, name: str) -> None:
        """Let a node leave in peace: it tells the head, then ends."""
        plan = self.plan
        self._node(name)
        for process in processes.node_processes(plan, name):
            with contextlib.suppress(Exception):  # it may have ended
                if process.name() == "raylet":
                    process.terminate()
                    process.wait(_END_TIMEOUT_S)
        self.kill(name)

    def start(self, name: str) -> None:
        """Start a node that was killed or stopped, its link in order, and wait until Ray has it."""
        plan, node = self.plan, self._node(name)
        if processes.node_processes(plan, name):
            self.kill(name)
        if plan.isolated:
            network.heal_link(plan, name)
        _start_node(plan, node)
        self.wait_for({name: "ALIVE"})

    def add(self) -> str:
        """One more worker node; returns its name."""
        with store.changing(self.label):
            plan = _planned_node(self.plan)
            store.write_plan(plan)
        name = plan.nodes[-1].name
        _make_host(plan, plan.nodes[-1])
        self.start(name)
        return name

    def cut(self, name: str, how: network.Cut = "link") -> None:
        """Cut a node off: its network card goes down, or (`packets`) all it sends and gets is lost without a word."""
        self._isolated("a cut link")
        network.cut_link(self.plan, self._node(name).name, how)

    def heal(self, name: str) -> None:
        """Undo `cut`. A node that Ray has declared dead meanwhile ends, and joins as a new one."""
        self._isolated("a link to heal")
        network.heal_link(self.plan, self._node(name).name)

    def drain(self, name: str, deadline_s: float) -> None:
        """Give notice, as a cloud does, that the node will be gone in `deadline_s`; to kill it then is yours."""
        gcs.ask(self.address, "drain", self._node(name).address, str(deadline_s))

    def stop_head(self) -> None:
        """Kill the head's node at once. Redis, where the cluster has one, lives on."""
        self.kill(HEAD)

    def start_head(self) -> None:
        """Start the head again: with Redis it knows all it knew, without it the nodes join a new cluster."""
        self.start(HEAD)

    def lose_storage(self) -> None:
        """Let the shared folder vanish from all running nodes: empty, and not to be written to."""
        self._isolated("storage to lose")
        shared = str(self.shared)
        for first in self._running():
            mount = ("mount", "-t", "tmpfs", "-o", "ro,size=4k", "lost", shared)
            network.command("nsenter", f"--target={first}", "--mount", "--", *mount)

    def restore_storage(self) -> None:
        """Undo `lose_storage`."""
        for first in self._running():
            with contextlib.suppress(OrchestratorError):  # it was started meanwhile
                network.command("nsenter", f"--target={first}", "--mount", "--", "umount", "--lazy", "--types",
                                "tmpfs", str(self.shared))  # fmt: skip

    def down(self) -> None:
        """End everything and remove every trace; may be called twice."""
        store.remove(self.label)

    def _node(self, name: str) -> Node:
        plan = self.plan
        try:
            return plan.node(name)
        except KeyError:
            known = ", ".join(node.name for node in plan.nodes)
            raise UsageError(f"{self.label} has no node '{name}'", f"its nodes are {known}") from None

    def _first(self, name: str) -> int:
        first = processes.first_process(self.plan, self._node(name).name)
        if first is None:
            raise UsageError(
                f"node {name} of {self.label} is off", f"start it: orchestrator cluster start {name}"
            )
        return first

    def _running(self) -> list[int]:
        plan = self.plan
        found = [processes.first_process(plan, node.name) for node in plan.nodes]
        return [number for number in found if number is not None]

    def _isolated(self, what: str) -> None:
        if not self.plan.isolated:
            raise UsageError(
                f"{what} needs a network of its own, and the nodes of {self.label} are plain processes",
                "as root, start the cluster with --isolated",
            )


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
    reserved: Any = None,
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
            plan = _planned_node(plan)
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


def _planned_node(plan: Plan) -> Plan:
    names = port_names(plan, head=not plan.nodes)
    return with_node(plan, dict(zip(names, _free_ports(len(names)), strict=True)))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("", 0))
        return [listener.getsockname()[1] for listener in sockets]


def _start(plan: Plan) -> None:
    if plan.storage_bytes is not None:
        size = f"size={plan.storage_bytes},mode=1777"
        network.command("mount", "-t", "tmpfs", "-o", size, plan.label, str(plan.shared))
    if plan.isolated:
        network.make_bridge(plan)
    for node in plan.nodes:
        _make_host(plan, node)
    if plan.redis:
        _start_redis(plan)
    _start_node(plan, plan.head)
    # No more at once than there are processors: Ray gives each node 30 s, and a start is hard work.
    at_once, cluster = os.cpu_count() or 1, LocalCluster(plan.label)
    cluster.wait_for({HEAD: "ALIVE"})
    for first in range(0, len(plan.workers), at_once):
        several = plan.workers[first : first + at_once]
        for node in several:
            _start_node(plan, node)
        cluster.wait_for({node.name: "ALIVE" for node in several})


def _make_host(plan: Plan, node: Node) -> None:
    (plan.folder / node.name).mkdir(exist_ok=True)
    (plan.folder / "resolv.conf").touch()
    with (plan.folder / "hosts").open("w") as file:  # in place: the nodes have this very file mounted
        file.write(hosts_file(plan))
    if plan.isolated:
        network.make_namespace(plan, node)


def _start_node(plan: Plan, node: Node) -> None:
    command = ["sh", "-c", node_script(plan, node)]
    if plan.isolated:
        spaces = ("--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")
        command = ["ip", "netns", "exec", plan.host_name(node.name), "unshare", *spaces, *command]
    folder = plan.folder / node.name
    settings = environment(plan, node, os.environ)
    processes.start_daemon(command, settings, folder, plan.folder / f"{node.name}.log")


def _start_redis(plan: Plan) -> None:
    folder = plan.folder / "redis"
    folder.mkdir()
    options = {
        "bind": plan.host_address,
        "port": REDIS_PORT,
        "dir": folder,
        "protected-mode": "no",
        "appendonly": "yes",
        "save": "",
        "set-proc-title": "no",  # a title would cover up the environment, by which it is found again
    }
    command = [
        "redis-server",
        *(part for name, value in options.items() for part in (f"--{name}", str(value))),
    ]
    marked = {**os.environ, MARK: f"{plan.label}/redis"}
    processes.start_daemon(command, marked, folder, plan.folder / "redis.log")
    log, deadline_s = plan.folder / "redis.log", time.monotonic() + _REDIS_TIMEOUT_S
    while "Ready to accept connections" not in log.read_text():
        if time.monotonic() > deadline_s:
            raise OrchestratorError(f"Redis does not come up: {log.read_text()[-500:]}")
        time.sleep(0.1)


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        socket.create_connection((host, int(port)), timeout=1).close()
        return True
    return False


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
