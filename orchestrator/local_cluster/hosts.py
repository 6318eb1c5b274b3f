"""The hosts of a local cluster: their folders and networks, and the processes that make nodes of them.

Imports: the other files here, errors, the standard library.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time

from orchestrator.errors import OrchestratorError
from orchestrator.local_cluster import network, processes
from orchestrator.local_cluster.plan import (
    MARK,
    REDIS_PORT,
    Node,
    Plan,
    environment,
    hosts_file,
    node_script,
    port_names,
    with_node,
)

_REDIS_TIMEOUT_S = 30.0


def planned_node(plan: Plan) -> Plan:
    """The plan with one more node, on ports that are free now."""
    names = port_names(plan, head=not plan.nodes)
    return with_node(plan, dict(zip(names, _free_ports(len(names)), strict=True)))


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in sockets:
            listener.bind(("", 0))
        return [listener.getsockname()[1] for listener in sockets]


def make_host(plan: Plan, node: Node) -> None:
    """All that a node needs before it can be started."""
    (plan.folder / node.name).mkdir(exist_ok=True)
    (plan.folder / "resolv.conf").touch()
    with (plan.folder / "hosts").open("w") as file:  # in place: the nodes have this very file mounted
        file.write(hosts_file(plan))
    if plan.isolated:
        network.make_namespace(plan, node)


def start_node(plan: Plan, node: Node) -> None:
    """Switch a host on; it does not wait until Ray is there."""
    command = ["sh", "-c", node_script(plan, node)]
    if plan.isolated:
        spaces = ("--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child", "--mount-proc")
        command = ["ip", "netns", "exec", plan.host_name(node.name), "unshare", *spaces, *command]
    folder = plan.folder / node.name
    settings = environment(plan, node, os.environ)
    processes.start_daemon(command, settings, folder, plan.folder / f"{node.name}.log")


def start_redis(plan: Plan) -> None:
    """A Redis for the head, on the machine itself. Raises OrchestratorError where it does not come up."""
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
