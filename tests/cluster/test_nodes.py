"""What a real Ray tells of its nodes, and what its exceptions mean."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import ray

from orchestrator.errors import Cause, DataError
from orchestrator.recovery.sizing import fitting
from orchestrator.runners.ray_workers.causes import cause_of_ray_error
from orchestrator.runners.ray_workers.nodes import node_facts

CPU = {"CPU": 1.0}


def wait_for_free(cpus: float) -> None:
    """Ray's account of what is free comes a little later."""
    deadline = time.monotonic() + 30
    while node_facts()[0].free["CPU"] != cpus and time.monotonic() < deadline:
        time.sleep(0.05)


def test_what_our_own_group_holds_counts_as_free(ray_cluster: str) -> None:
    wait_for_free(4)
    [node] = node_facts()
    assert (node.total["CPU"], node.free["CPU"], node.draining, node.deadline_s) == (4, 4, False, None)
    assert node.node_id == ray.get_runtime_context().get_node_id()
    group = ray.util.placement_group([CPU] * 3)
    try:
        assert group.wait(30)
        wait_for_free(1)
        assert fitting(node_facts(), CPU, (1, 9)) == 1
        assert fitting(node_facts({node.node_id: 3}, CPU), CPU, (1, 9)) == 4
        assert node_facts({node.node_id: 9}, CPU)[0].free["CPU"] == 4
        assert fitting(node_facts({"another": 3}, CPU), CPU, (1, 9)) == 1
    finally:
        ray.util.remove_placement_group(group)
    wait_for_free(4)


@ray.remote(num_cpus=0)
class Victim:
    def __init__(self, fails: bool = False) -> None:
        if fails:
            raise ValueError("cannot begin")

    def die(self) -> None:
        os._exit(3)

    def wait(self) -> None:
        time.sleep(0.5)

    def bad_data(self) -> None:
        raise DataError("row 7 is broken")

    def bug(self) -> None:
        raise KeyError("x")


def test_the_causes_of_what_an_actor_meets(ray_cluster: str) -> None:
    victim = Victim.remote()
    ray.get(victim.__ray_ready__.remote(), timeout=60)
    expected: dict[str, Cause] = {
        "bad_data": "data",
        "bug": "internal",
        "wait": "control plane",
        "die": "hardware",
    }
    for method, cause in expected.items():
        with pytest.raises(Exception) as caught:
            ray.get(getattr(victim, method).remote(), timeout=0.05 if method == "wait" else 60)
        assert cause_of_ray_error(caught.value) == cause


def test_an_actor_that_cannot_begin_is_no_lost_machine(ray_cluster: str) -> None:
    with pytest.raises(ray.exceptions.RayActorError) as caught:
        ray.get(Victim.remote(fails=True).die.remote(), timeout=60)
    assert cause_of_ray_error(caught.value) == "internal"


DRAIN = """
import json, sys, time
from dataclasses import asdict
import ray
from ray.cluster_utils import Cluster
from ray.core.generated import autoscaler_pb2
from orchestrator.runners.ray_workers.causes import cause_of_ray_error
from orchestrator.runners.ray_workers.nodes import node_facts

def drain(node, deadline_ms):
    reason = autoscaler_pb2.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    assert ray._raylet.GcsClient(address=cluster.address).drain_node(node.node_id, reason, "spot", deadline_ms)[0]

head = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 100_000_000, "temp_dir": sys.argv[1]}
cluster = Cluster(initialize_head=True, head_node_args=head)
ours, other, lost = (cluster.add_node(num_cpus=2, object_store_memory=100_000_000) for _ in range(3))
cluster.connect()
# A node that drains and holds nothing ends at once.
group = ray.util.placement_group([{"CPU": 2}], bundle_label_selector=[{"ray.io/node-id": other.node_id}])
assert group.wait(60)

@ray.remote(num_cpus=2, label_selector={"ray.io/node-id": ours.node_id})
class Worker:
    def work(self):
        time.sleep(1000)

worker = Worker.remote()
ray.get(worker.__ray_ready__.remote(), timeout=60)
drain(ours, 2_000_000_000_000)
drain(other, 0)
cluster.remove_node(lost, allow_graceful=False)
for _ in range(600):
    if len(node_facts()) == 3:
        break
    time.sleep(0.1)
facts = {"ours": ours.node_id, "other": other.node_id}
facts["nodes"] = [asdict(node) for node in node_facts({ours.node_id: 2}, {"CPU": 1.0})]
work = worker.work.remote()
cluster.remove_node(ours, allow_graceful=False)
try:
    ray.get(work, timeout=60)
except ray.exceptions.RayError as error:
    facts["taken away"] = cause_of_ray_error(error)
cluster.head_node.kill_gcs_server(False)
try:
    node_facts(timeout_s=1.0)
except ray.exceptions.GetTimeoutError as error:
    facts["away"] = str(error)
print(json.dumps(facts), flush=True)
"""


@pytest.mark.slow
def test_nodes_that_drain_are_told_with_their_deadline(short_folder: Path) -> None:
    """In a process of its own: this one is connected to another Ray, and the head is killed in the end."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run(
        [sys.executable, "-c", DRAIN, str(short_folder)],
        capture_output=True,
        text=True,
        timeout=200,
        env=environment,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert answers, done.stdout + done.stderr
    facts = json.loads(answers[0])
    by_id = {node["node_id"]: node for node in facts["nodes"]}
    head = facts["nodes"][0]
    assert set(by_id) == {head["node_id"], facts["ours"], facts["other"]}
    assert (head["draining"], head["deadline_s"], head["free"]["CPU"]) == (False, None, 1)
    ours, other = by_id[facts["ours"]], by_id[facts["other"]]
    assert (ours["draining"], ours["deadline_s"], ours["free"]["CPU"]) == (True, 2e9, 2)
    assert (other["draining"], other["deadline_s"], other["free"]["CPU"]) == (True, None, 0)
    assert facts["taken away"] == "preemption"
    assert facts["away"] == "Ray's head has not answered for 1 s"
