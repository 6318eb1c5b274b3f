"""The system's commands: network namespaces, a bridge between them, links that are cut. Needs root.

`ip` of iproute2 does the work. Imports: errors, the standard library.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from pathlib import Path
from typing import Any, Literal

from orchestrator.errors import OrchestratorError
from orchestrator.local_cluster.plan import Node, Plan

Cut = Literal["link", "packets"]
"""How a node is cut off: its network card is down, or its packets get lost on the way without a word."""


def command(*arguments: str) -> str:
    """Run a command of the system and return its output. Raises OrchestratorError with what it says."""
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OrchestratorError(
            f"`{' '.join(arguments)}` failed: {done.stderr.strip() or done.stdout.strip()}"
        )
    return done.stdout


def make_bridge(plan: Plan) -> None:
    """The bridge between the hosts, by which they also reach this machine."""
    # An address of its own: else it has the lowest of its ports', which changes where that one is cut off, and for
    # most of a minute the other hosts would not reach this machine.
    hardware = "02:00:" + ":".join(f"{int(part):02x}" for part in plan.host_address.split("."))
    command("ip", "link", "add", plan.bridge, "address", hardware, "type", "bridge")
    command("ip", "addr", "add", f"{plan.host_address}/24", "dev", plan.bridge)
    command("ip", "link", "set", plan.bridge, "up")


def make_namespace(plan: Plan, node: Node) -> None:
    """A namespace for the node, linked to the bridge."""
    name = plan.host_name(node.name)
    command("ip", "netns", "add", name)
    command("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name)
    command("ip", "link", "set", name, "up")
    command("ip", "-n", name, "addr", "add", f"{node.address}/24", "dev", "eth0")
    command("ip", "-n", name, "link", "set", "lo", "up")
    heal_link(plan, node.name)


def cut_link(plan: Plan, name: str, how: Cut) -> None:
    """Cut a node off."""
    host = plan.host_name(name)
    if how == "link":
        command("ip", "-n", host, "link", "set", "eth0", "down")
    else:
        command("ip", "link", "set", host, "nomaster")


def heal_link(plan: Plan, name: str) -> None:
    """Put a node's link into order, whatever was done to it."""
    host = plan.host_name(name)
    command("ip", "link", "set", host, "master", plan.bridge)
    command("ip", "-n", host, "link", "set", "eth0", "up")
    # By the way to the rest of the world programs find out which address is theirs.
    command("ip", "-n", host, "route", "replace", "default", "via", plan.host_address)


def link_state(plan: Plan, name: str) -> str:
    """`up`, `down` or `loses packets`."""
    host = plan.host_name(name)
    with contextlib.suppress(OrchestratorError):
        (ours,) = _json("ip", "-j", "link", "show", "dev", host)
        (theirs,) = _json("ip", "-n", host, "-j", "link", "show", "dev", "eth0")
        if "UP" not in theirs["flags"]:
            return "down"
        return "up" if ours.get("master") == plan.bridge else "loses packets"
    return "none"


def processes_in(namespace: str) -> list[int]:
    """The numbers of the processes in a network namespace; none where it is not there."""
    with contextlib.suppress(OrchestratorError):
        return [int(line) for line in command("ip", "netns", "pids", namespace).split()]
    return []


def is_mounted(pid: int, source: str, place: str) -> bool:
    """Whether something of this name is mounted at a place, as a process sees it."""
    with contextlib.suppress(OSError):
        mounts = [line.split() for line in Path(f"/proc/{pid}/mounts").read_text().splitlines()]
        return any(mount[:2] == [source, place] for mount in mounts)
    return False


def namespaces(prefix: str) -> list[str]:
    """The named network namespaces that begin so."""
    names = [entry["name"] for entry in _json("ip", "-j", "netns", "list")]
    return [name for name in names if name.startswith(prefix)]


def links(prefix: str) -> list[str]:
    """The network devices of the machine that begin so."""
    names = [entry["ifname"] for entry in _json("ip", "-j", "link", "show")]
    return [name for name in names if name.startswith(prefix)]


def addresses() -> set[str]:
    """The machine's own addresses."""
    return {
        str(address["local"])
        for device in _json("ip", "-j", "-4", "addr", "show")
        for address in device.get("addr_info", [])
        if "local" in address
    }


def remove(prefix: str) -> None:
    """Remove all namespaces and links that begin so; what has gone by itself is no matter."""
    for name in namespaces(prefix):
        with contextlib.suppress(OrchestratorError):
            command("ip", "netns", "delete", name)
    for name in links(prefix):
        with contextlib.suppress(OrchestratorError):  # a link goes with the namespace at its other end
            command("ip", "link", "delete", name)


def _json(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(command(*arguments) or "[]")
    return found
