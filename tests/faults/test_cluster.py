"""The local cluster itself: it comes up, takes what is done to it, and goes away whatever becomes of its starter."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from orchestrator.local_cluster import network, processes, store
from orchestrator.local_cluster.cluster import LocalCluster
from orchestrator.local_cluster.starting import local_cluster

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]

WHERE = """
import json, ray
ray.init(log_to_driver=False, logging_level="error")

@ray.remote(num_cpus=1)
def where():
    return ray.util.get_node_ip_address()

print(json.dumps(ray.get(where.remote())))
"""
ABANDON = """
import os, signal
from orchestrator.local_cluster.starting import local_cluster
with local_cluster(1) as cluster:
    print(cluster.label, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run_on(cluster: LocalCluster, name: str, script: str) -> str:
    command = cluster.command_on(name, [sys.executable, "-c", script])
    done = subprocess.run(
        command, env=cluster.environment_on(name), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def states(cluster: LocalCluster) -> dict[str, tuple[bool, str]]:
    return {node["name"]: (node["running"], node["state"]) for node in cluster.status()}


def check_all_is_gone(label: str) -> None:
    assert not (Path("/tmp") / label).exists()
    assert processes.cluster_processes(label) == []
    if processes.has_ip():
        assert network.namespaces(f"{label}-") == []
        assert network.links(f"{label}-") == []


def test_plain_nodes_run_work_and_are_stopped_and_started() -> None:
    with local_cluster(1, isolated=False, tuned=True) as cluster:
        worker = cluster.plan.node("w1")
        assert json.loads(run_on(cluster, "head", WHERE)) == worker.address
        cluster.stop("w1")
        cluster.wait_for({"w1": "DEAD", "head": "ALIVE"})
        assert states(cluster) == {"head": (True, "ALIVE"), "w1": (False, "DEAD")}
        cluster.start("w1")
        assert states(cluster)["w1"] == (True, "ALIVE")
        cluster.kill("w1")
        cluster.wait_for({"w1": "DEAD"})
    check_all_is_gone(cluster.label)


def test_an_isolated_node_is_added_and_one_that_was_cut_off_joins_again(fault_cluster: LocalCluster) -> None:
    with local_cluster(1, isolated=True, tuned=True) as cluster:  # beside the other one
        assert cluster.label != fault_cluster.label
        assert cluster.add() == "w2"
        cluster.kill("w1")
        assert json.loads(run_on(cluster, "head", WHERE)) == cluster.plan.node("w2").address
        cluster.cut("w2", "packets")
        cluster.wait_for({"w2": "DEAD"})
        assert states(cluster)["w2"] == (True, "DEAD")
        cluster.heal("w2")
        cluster.wait_for({"w2": "ALIVE"})
    check_all_is_gone(cluster.label)
    assert all(state == (True, "ALIVE") for state in states(fault_cluster).values())


def test_a_cluster_goes_with_a_starter_that_is_killed() -> None:
    starter = subprocess.run([sys.executable, "-c", ABANDON], capture_output=True, text=True, check=False,
                             timeout=200, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})  # fmt: skip
    assert starter.returncode == -signal.SIGKILL, starter.stderr
    label = starter.stdout.strip()
    deadline_s = time.monotonic() + 60
    while label in store.labels() and time.monotonic() < deadline_s:
        time.sleep(0.2)
    check_all_is_gone(label)
