"""A local cluster as its users hold it: looked at, disturbed, healed, and taken down with all that belongs to it.

Imports: the other files here, errors, the standard library.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.local_cluster import gcs, network, processes, store
from orchestrator.local_cluster.hosts import make_host, planned_node, start_node
from orchestrator.local_cluster.plan import HEAD, Node, Plan, driver_environment

UP_TIMEOUT_S = 240.0
"""How long a node may take to come up."""
_END_TIMEOUT_S = 10.0
_LOST = "lost"  # the name of what covers up lost storage


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
        states = {node["address"]: node["state"] for node in self._known()}
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

    def _known(self) -> list[dict[str, Any]]:
        """What the head knows of nodes; nothing where it does not answer."""
        if _answers(self.plan.gcs):
            with contextlib.suppress(OrchestratorError):
                return gcs.ask(self.plan.gcs, "list")
        return []

    def wait_for(self, states: dict[str, str], timeout_s: float = UP_TIMEOUT_S) -> None:
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
        # The head may not have noticed yet that the last node there is dead.
        before = [known["id"] for known in self._known() if known["address"] == node.address]
        start_node(plan, node)
        gcs.ask(self.address, "join", str(UP_TIMEOUT_S), node.address, *before, timeout_s=UP_TIMEOUT_S)

    def add(self) -> str:
        """One more worker node; returns its name."""
        with store.changing(self.label):
            plan = planned_node(self.plan)
            store.write_plan(plan)
        name = plan.nodes[-1].name
        make_host(plan, plan.nodes[-1])
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
            mount = ("mount", "-t", "tmpfs", "-o", "ro,size=4k", _LOST, shared)
            network.command("nsenter", f"--target={first}", "--mount", "--pid", "--", *mount)

    def restore_storage(self) -> None:
        """Undo `lose_storage`."""
        shared = str(self.shared)
        for first in self._running():
            if network.is_mounted(first, _LOST, shared):
                network.command(
                    "nsenter", f"--target={first}", "--mount", "--pid", "--", "umount", "--lazy", shared
                )

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


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError):
        socket.create_connection((host, int(port)), timeout=1).close()
        return True
    return False
