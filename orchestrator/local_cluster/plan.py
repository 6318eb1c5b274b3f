"""What a local cluster consists of: names, addresses, settings and command lines, all following from its number.

Pure functions and records, nothing is started here. Imports: the standard library.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

HEAD = "head"
MARK = "ORCHESTRATOR_LOCAL_NODE"
"""The environment variable by which a node's processes are known: `oc1/w2`."""
GCS_PORT = 6379
DASHBOARD_PORT = 8265
REDIS_PORT = 6380
BASE = Path("/tmp")  # not $TMPDIR: paths of Ray's sockets are limited to 107 characters
MAX_NODES = 200

TUNED = {
    "RAY_health_check_initial_delay_ms": "2000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
}
"""A node that does not answer is declared dead after seconds; Ray's own settings take about a minute."""
FRUGAL = {"RAY_enable_worker_prestart": "0", "RAY_prestart_worker_first_driver": "0"}
"""No worker processes before there is work."""


@dataclass(frozen=True)
class Node:
    """One host. `ports` are by the names of `ray start`'s options; none where the address is all its own."""

    name: str
    address: str
    ports: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """A cluster as it was asked for. `isolated`: each node in network, PID, mount, UTS and IPC namespaces.

    `num_cpus` is a worker node's; the head has none, so that it trains nothing. `storage_bytes`: the shared
    folder is a file system of this size. `python_path` goes into the nodes' `PYTHONPATH`.
    """

    number: int
    isolated: bool
    tuned: bool = False
    dashboard: bool = True
    redis: bool = False
    num_cpus: float = 1
    storage_bytes: int | None = None
    python_path: str = ""
    nodes: tuple[Node, ...] = ()

    @property
    def label(self) -> str:
        """`oc1`: the cluster's name, and the beginning of the names of all that it makes."""
        return f"oc{self.number}"

    @property
    def folder(self) -> Path:
        """All its files."""
        return BASE / self.label

    @property
    def shared(self) -> Path:
        """The folder that all nodes see, for runs and checkpoints."""
        return self.folder / "shared"

    @property
    def bridge(self) -> str:
        return f"{self.label}-br"

    @property
    def host_address(self) -> str:
        """Where the machine itself, with Redis on it, is to be reached from the nodes."""
        return address_of(self.number, self.isolated, 1)

    @property
    def head(self) -> Node:
        return self.node(HEAD)

    @property
    def gcs(self) -> str:
        """What `ray.init` and `orchestrator run --address` take."""
        return f"{self.head.address}:{self.head.ports.get('port', GCS_PORT)}"

    @property
    def dashboard_url(self) -> str | None:
        """The dashboard and Jobs API; None where the cluster has none."""
        port = self.head.ports.get("dashboard-port", DASHBOARD_PORT)
        return f"http://{self.head.address}:{port}" if self.dashboard else None

    @property
    def workers(self) -> tuple[Node, ...]:
        return tuple(node for node in self.nodes if node.name != HEAD)

    def node(self, name: str) -> Node:
        """Raises KeyError for a node that is not there."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def host_name(self, node: str) -> str:
        """`oc1-w2`: the node's host name, its namespace and the link to it; unlike any other on the machine."""
        return f"{self.label}-{node}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def plan_from_dict(facts: Mapping[str, Any]) -> Plan:
    """The inverse of `Plan.to_dict`. Raises TypeError or KeyError where something is missing."""
    nodes = tuple(Node(**node) for node in facts["nodes"])
    return Plan(**{**facts, "nodes": nodes})


def address_of(number: int, isolated: bool, place: int) -> str:
    """The address of a place in a cluster: 1 is the machine itself, 10 the head, 11 and on the workers."""
    return f"10.231.{number}.{place}" if isolated else f"127.0.{number}.{place}"


def with_node(plan: Plan, ports: Mapping[str, int]) -> Plan:
    """The plan with one more node: the head first, then w1, w2, …"""
    count = len(plan.nodes)
    name = f"w{count}" if count else HEAD
    node = Node(name, address_of(plan.number, plan.isolated, 10 + count), dict(ports))
    return replace(plan, nodes=(*plan.nodes, node))


def port_names(plan: Plan, *, head: bool) -> tuple[str, ...]:
    """The ports of a node that need numbers of their own, by the names of `ray start`'s options.

    None for isolated nodes: nobody else is at their addresses.
    """
    if plan.isolated:
        return ()
    agents = (
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "runtime-env-agent-port",
        "metrics-export-port",
    )
    return (*agents, "port", "dashboard-port", "ray-client-server-port") if head else agents


def ray_start(plan: Plan, node: Node) -> list[str]:
    """The command that makes a node of it."""
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"),
        f"--node-ip-address={node.address}",
        f"--temp-dir={plan.folder / node.name}",
        "--object-store-memory=80000000",
        *(f"--{name}={port}" for name, port in node.ports.items()),
    ]
    if not plan.isolated:  # the nodes share the range from which Ray takes its workers' ports
        command += ["--min-worker-port=0", "--max-worker-port=0"]
    if node.name != HEAD:
        return [*command, f"--address={plan.gcs}", f"--num-cpus={plan.num_cpus:g}"]
    if plan.isolated:
        command += [f"--port={GCS_PORT}", f"--dashboard-port={DASHBOARD_PORT}"]
    shown = str(plan.dashboard).lower()
    return [
        *command,
        *("--head", "--num-cpus=0", "--no-monitor"),
        f"--include-dashboard={shown}",
        f"--dashboard-host={node.address}",
    ]


def environment(plan: Plan, node: Node, base: Mapping[str, str]) -> dict[str, str]:
    """What a node's processes find in their environment; `base` is that of whoever starts them.

    Settings of another Ray or MLflow do not get through.
    """
    kept = {name: value for name, value in base.items() if not name.startswith(("RAY_", "MLFLOW_"))}
    paths = [plan.python_path, base.get("PYTHONPATH", "")]
    redis = {
        "RAY_REDIS_ADDRESS": f"{plan.host_address}:{REDIS_PORT}",
        "RAY_external_storage_namespace": plan.label,
    }
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}:{base.get('PATH', '')}",
        "PYTHONPATH": ":".join(path for path in paths if path),
        # Said outright: left unset, a head asks for tokens where a stray ~/.ray/auth_token lies.
        "RAY_AUTH_MODE": "disabled",
        "GLOO_SOCKET_IFNAME": "eth0" if plan.isolated else "lo",
        MARK: f"{plan.label}/{node.name}",
        **FRUGAL,
        **(TUNED if plan.tuned else {}),
        **(redis if plan.redis else {}),
    }


def driver_environment(plan: Plan, node: Node, base: Mapping[str, str]) -> dict[str, str]:
    """The same for a command on the node, which finds the cluster by `RAY_ADDRESS`; MLflow's settings stay."""
    mlflow = {name: value for name, value in base.items() if name.startswith("MLFLOW_")}
    return {**mlflow, **environment(plan, node, base), "RAY_ADDRESS": plan.gcs}


def node_script(plan: Plan, node: Node) -> str:
    """The shell script that is the node: Ray, and Ray again where it ends.

    A node that was cut off and declared dead ends when it reconnects; a service manager would restart it.
    In a namespace the script is process 1, and all on the node ends with it.
    """
    lines = [f"while :; do {shlex.join(ray_start(plan, node))}; sleep 1; done"]
    if plan.isolated:
        shared = shlex.quote(str(plan.shared))
        lines = [
            "set -e",
            f"hostname {plan.host_name(node.name)}",
            "mount -t tmpfs -o size=2g tmpfs /dev/shm",
            f"mount --bind {plan.folder}/hosts /etc/hosts",
            # No name server is to be reached, and whoever asks for one would wait.
            f"[ ! -e /etc/resolv.conf ] || mount --bind {plan.folder}/resolv.conf /etc/resolv.conf",
            f"mount --bind {shared} {shared}",
            "set +e",
            *lines,
        ]
    return "\n".join(lines)


def hosts_file(plan: Plan) -> str:
    """What the nodes know each other by, as /etc/hosts has it."""
    lines = ["127.0.0.1 localhost", f"{plan.host_address} {plan.label}"]
    return "".join(
        f"{line}\n"
        for line in [*lines, *(f"{node.address} {plan.host_name(node.name)}" for node in plan.nodes)]
    )
