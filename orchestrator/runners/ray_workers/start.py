"""Ray itself: started here for one run, or found where a cluster runs; and whether a job fits into it.

Imports: ray, inside functions, since it takes a second.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.errors import Infeasible, OrchestratorError, UsageError
from orchestrator.recovery.sizing import NodeFacts, fitting, why_waiting
from orchestrator.runners.ray_workers.head_watch import head_given_up, outlive_head
from orchestrator.runners.ray_workers.nodes import node_facts

if TYPE_CHECKING:
    from orchestrator.spec import JobSpec


_KNOCK_S = 10.0
_FIRST_LOOK_S = 60.0
NODES_JOIN_S = 20.0
"""For how long a cluster that is too small is given the time to become larger."""


class NoCluster(OrchestratorError):
    cause = "control plane"


def cluster_address(address: str | None) -> str | None:
    """The cluster to connect to, or None for a Ray of our own.

    `--address` wins over `RAY_ADDRESS`, which Ray sets inside `ray job submit`.
    Raises UsageError for Ray Client and dashboard addresses.
    """
    chosen = address or os.environ.get("RAY_ADDRESS") or None
    if chosen and chosen.startswith("ray://"):
        raise UsageError(
            f"'{chosen}' is a Ray Client address: the driver would run apart from the cluster, without its "
            "files and signals",
            "use `orchestrator submit --address http://HEAD:8265`, or run on a node with --address auto",
        )
    if chosen and chosen.startswith(("http://", "https://")):
        raise UsageError(
            f"'{chosen}' is a dashboard address, where jobs are submitted",
            f"use `orchestrator submit SPEC --address {chosen}`, or --address HEAD:6379 on a cluster node",
        )
    return chosen


def inside_ray_job() -> bool:
    """Whether this process was started by `ray job submit`."""
    return bool(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR"))


def submission_id() -> str | None:
    """The Ray job that this process is the driver of; None outside of one."""
    config = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    metadata = json.loads(config).get("metadata", {}) if config else {}
    return metadata.get("job_submission_id")


def start_ray(spec: JobSpec, address: str | None) -> bool:
    """Initialise Ray; True where it is embedded. Call before anything else of Ray's.

    Raises NoCluster where the address does not answer, UsageError where secrets would leak.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    import ray

    if ray.is_initialized():
        return address is None and not inside_ray_job()
    env_vars = dict(spec.runtime_env.env_vars)
    common: dict[str, Any] = {
        "log_to_driver": True,
        "logging_level": logging.ERROR,
        "configure_logging": True,
    }
    if address is None and not inside_ray_job():
        _local_sockets()
        cpus = embedded_cpus(spec)
        if env_vars:
            common["runtime_env"] = {"env_vars": env_vars}
        # "local": another Ray on this machine is not joined by accident.
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **common)
        return True
    outlive_head()
    if not inside_ray_job():
        runtime_env: dict[str, Any] = {
            "working_dir": spec.runtime_env.working_dir,
            "excludes": spec.runtime_env.excludes,
        }
        if spec.runtime_env.pip:
            runtime_env["pip"] = spec.runtime_env.pip
        if env_vars:
            runtime_env["env_vars"] = env_vars
        common["runtime_env"] = runtime_env
    _connect(address, common)
    return False


@contextlib.contextmanager
def connected(spec: JobSpec, address: str | None) -> Iterator[None]:
    """Ray is there inside; what was started or joined here is left at the end. Raises as `start_ray` does."""
    import ray

    ours = not ray.is_initialized()
    start_ray(spec, address)
    try:
        yield
    finally:
        if ours and not head_given_up():
            ray.shutdown()


def _local_sockets() -> None:
    """gloo resolves the host's name, and hangs or fails where it cannot; on one machine, loopback does."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if os.uname().sysname == "Linux" else "lo0")


def embedded_cpus(spec: JobSpec) -> int:
    """The CPUs that a Ray of our own says it has: this machine's, or as many as the fewest workers ask for, who then
    share them."""
    return max(
        os.cpu_count() or 1, math.ceil(spec.resources.min_workers * spec.resources.per_worker()["CPU"])
    )


def check_fits(spec: JobSpec, nodes: Sequence[NodeFacts] | None = None) -> None:
    """Raise Infeasible where the cluster can never hold the (fewest) workers; Ray itself would wait for ever.

    `nodes` are the cluster's, by default those of the connected one. All that others hold counts as free here.
    """
    resources = spec.resources
    if resources.autoscaling:
        return
    nodes = _nodes_there() if nodes is None else nodes
    empty = [replace(node, free=node.total, draining=False) for node in nodes]
    least, bundle = resources.min_workers, resources.bundle()
    if fitting(empty, bundle, (least, least), (), resources.placement_strategy):
        return
    mend = (
        "lower resources.num_workers or resources.resources_per_worker, or set resources.autoscaling: "
        "true where the cluster can grow"
    )
    total = sum_up(node.total for node in nodes)
    for name, amount in bundle.items():
        if amount * least > total.get(name, 0.0) + 1e-9:
            raise Infeasible(
                f"resources: {least} {'worker needs' if least == 1 else f'workers of {amount:g} {name} need'} "
                f"{amount * least:g} {name}, but the cluster has {total.get(name, 0.0):g}",
                mend,
            )
    raise Infeasible(
        "resources: the workers do not fit on the cluster's nodes, not even when these are empty: "
        + why_waiting(empty, bundle, least, (), resources.placement_strategy),
        mend,
    )


def wait_until_fits(spec: JobSpec, wait_s: float, say: Callable[[str], None]) -> None:
    """As `check_fits` for the connected cluster, but one that has just started, or lost a node that is being started
    again, is given so long for its nodes to join."""
    until_s = time.monotonic() + wait_s
    told = False
    while True:
        try:
            return check_fits(spec)
        except Infeasible as error:
            if time.monotonic() >= until_s:
                raise
            if not told:
                say(f"{error.reason}: waiting up to {wait_s:g} s for more nodes")
                told = True
        time.sleep(0.5)


def sum_up(amounts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The resources of several nodes together."""
    total: Counter[str] = Counter()
    for one in amounts:
        total.update(one)
    return dict(total)


def connected_nodes(address: str | None) -> tuple[str, list[NodeFacts]]:
    """A cluster's address and its nodes, by a short connection. Raises NoCluster where it does not answer."""
    import ray

    ours = not ray.is_initialized()
    if ours:
        _connect(address, {"log_to_driver": False, "logging_level": logging.ERROR})
    try:
        return ray.get_runtime_context().gcs_address, _nodes_there()
    finally:
        if ours:
            ray.shutdown()


def _nodes_there() -> list[NodeFacts]:
    """The connected cluster's nodes. Raises NoCluster where it has stopped answering."""
    import ray

    try:
        return node_facts(timeout_s=_FIRST_LOOK_S)
    except ray.exceptions.RayError as error:
        raise NoCluster(str(error), "see `ray status`; is the head up?") from error


def _connect(address: str | None, settings: dict[str, Any]) -> None:
    import ray

    try:
        _knock(address or "auto")
        ray.init(address=address or "auto", **settings)
    except (OSError, ValueError, RuntimeError) as error:
        raise NoCluster(
            f"no Ray cluster answers at '{address or 'auto'}': {' '.join(str(error).split())[:300]}",
            "start one with `ray start --head`, or leave --address out to run on this machine",
        ) from error


def _knock(address: str) -> None:
    """Raise OSError where nothing listens. Ray itself waits minutes for a head that is gone, as the address
    of the last one on this machine may be ("auto")."""
    from ray._private.services import canonicalize_bootstrap_address

    found = canonicalize_bootstrap_address(address)
    host, _, port = (found or "").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_S).close()
