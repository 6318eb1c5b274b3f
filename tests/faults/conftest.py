"""The cluster that the fault tests share, an undisturbed run to compare with, and order after each test."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.local_cluster.cluster import LocalCluster
from orchestrator.local_cluster.plan import HEAD
from orchestrator.local_cluster.processes import node_processes
from orchestrator.local_cluster.starting import local_cluster, why_not_isolated
from tests.faults.case import Case

REASON = why_not_isolated()
REDIS = shutil.which("redis-server") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs namespaces where there are none, and Redis where it is not installed."""
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        if REASON and {"namespaces", "fault_cluster"} & names:
            item.add_marker(pytest.mark.skip(reason=REASON))
        if not REDIS and "redis" in names:
            item.add_marker(pytest.mark.skip(reason="redis-server is not installed"))


@pytest.fixture
def namespaces() -> None:
    """For tests that isolate nodes."""


@pytest.fixture
def redis() -> None:
    """For tests in which the head must remember what it knew."""


@pytest.fixture(scope="session")
def fault_cluster() -> Iterator[LocalCluster]:
    """A head, with Redis if it is installed, and three nodes of one CPU; it notices a dead node in seconds."""
    with local_cluster(3, isolated=True, tuned=True, redis=REDIS, storage_bytes=10**9) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def undisturbed(fault_cluster: LocalCluster) -> dict[str, Any]:
    """The result of the job, two workers, that nothing happened to."""
    case = Case(fault_cluster, fault_cluster.shared / "undisturbed")
    try:
        case.hurry()
        driver = case.start()
        assert driver.wait() == 0, driver.output()
        case.check_nothing_is_left()
        return case.result()
    finally:
        case.close()


@pytest.fixture
def case(
    fault_cluster: LocalCluster, undisturbed: dict[str, Any], request: pytest.FixtureRequest
) -> Iterator[Case]:
    """The job for one test. Afterwards the cluster is whole again, and of the job nothing is left."""
    root = fault_cluster.shared / re.sub(r"\W+", "-", request.node.name)[:60]
    case = Case(fault_cluster, root)
    try:
        yield case
    finally:
        case.close()
        mend(fault_cluster)
    case.check_nothing_is_left()
    shutil.rmtree(root)


def mend(cluster: LocalCluster) -> None:
    """All nodes run, all links are up, the storage is there."""
    plan = cluster.plan
    cluster.restore_storage()
    if not node_processes(plan, HEAD):
        cluster.start_head()
    for node in plan.workers:
        cluster.heal(node.name)
    for node in plan.workers:
        if not node_processes(plan, node.name):
            cluster.start(node.name)
    cluster.wait_for({node.name: "ALIVE" for node in plan.nodes})
