"""The driver killed, stopped or interrupted, and the head: nothing is lost, and the same command goes on."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.local_cluster.cluster import LocalCluster
from orchestrator.local_cluster.starting import local_cluster
from tests.faults.case import STEPS, Case
from tests.faults.conftest import mend

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def go_on(case: Case, undisturbed: dict[str, Any], on: str = "head") -> None:
    """The same command again ends as if nothing had happened."""
    case.hurry()
    again = case.start(on=on)
    assert again.wait() == 0, again.output()
    assert "is unfinished and of the same identity" in again.output()
    assert case.result() == undisturbed
    assert sorted(case.steps()) == list(range(1, STEPS + 1))
    assert case.mlflow_statuses() == ["FINISHED"]


def saved_steps(case: Case) -> list[int]:
    manifests = case.storage.glob("*/checkpoints/step-*/manifest.json")
    return sorted(int(path.parent.name.removeprefix("step-")) for path in manifests)


def test_a_driver_that_is_killed_interrupted_or_stopped_loses_nothing(
    case: Case, undisturbed: dict[str, Any]
) -> None:
    driver = case.start()
    case.wait_for_step(12)
    driver.process.kill()
    assert driver.wait() == -signal.SIGKILL
    case.wait_until_gone()  # it takes its workers along
    for number, code in ((signal.SIGINT, 130), (signal.SIGTERM, 143)):
        reached = max(case.steps())
        driver = case.start()
        case.wait_for_step(reached + 6)
        driver.process.send_signal(number)
        assert driver.wait() == code, driver.output()
        assert case.verdict.status == "STOPPED"
        assert case.mlflow_statuses() == ["KILLED"]
        # It saved where it stood: not one step is made again.
        assert saved_steps(case)[-1] == max(case.steps())
        case.check_nothing_is_left()
    go_on(case, undisturbed)


def test_a_restarted_head_with_redis_does_not_end_a_run_whose_driver_is_elsewhere(
    redis: None, case: Case, undisturbed: dict[str, Any]
) -> None:
    driver = case.start(on="w3")
    case.wait_for_step(12)
    case.dawdle()
    case.cluster.stop_head()
    reached = max(case.steps())
    case.cluster.start_head()
    case.wait_for_step(reached + 6)
    case.hurry()
    code = driver.wait()
    if code == 0:
        assert case.result() == undisturbed
        return
    # It may have been lost with the head; then it says so, and nothing else is lost.
    assert (case.verdict.status, case.verdict.cause) == ("FAILED", "control plane"), driver.output()
    go_on(case, undisturbed)


@pytest.fixture(scope="module")
def forgetful_cluster() -> Iterator[LocalCluster]:
    """A cluster with a Jobs API, whose head forgets everything when it dies."""
    with local_cluster(2, isolated=True, tuned=True, dashboard=True) as cluster:
        yield cluster


@pytest.fixture
def other_case(forgetful_cluster: LocalCluster, request: pytest.FixtureRequest) -> Iterator[Case]:
    """A job on it."""
    case = Case(forgetful_cluster, forgetful_cluster.shared / request.node.name[:40])
    try:
        yield case
    finally:
        case.close()
        mend(forgetful_cluster)
    case.check_nothing_is_left()
    shutil.rmtree(case.root)


def test_ray_job_stop_saves_and_the_same_job_goes_on(other_case: Case, undisturbed: dict[str, Any]) -> None:
    case, job_id = other_case, "case-on-the-cluster"
    address = str(case.cluster.dashboard)
    environment = {**os.environ, "ORCHESTRATOR_STORAGE": str(case.storage), "RAY_AUTH_MODE": "disabled"}
    orchestrator = [sys.executable, "-m", "orchestrator"]
    submit = [
        *orchestrator,
        "submit",
        "job.yaml",
        "--address",
        address,
        "--submission-id",
        job_id,
        "--no-follow",
    ]
    subprocess.run(submit, cwd=case.project, env=environment, check=True, capture_output=True, timeout=120)
    case.wait_for_step(12)
    stop = [sys.executable, "-m", "ray.scripts.scripts", "job", "stop", "--address", address, job_id]
    subprocess.run(stop, env=environment, check=True, capture_output=True, timeout=120)
    waited = subprocess.run([*orchestrator, "wait", job_id, "--address", address], env=environment, check=False,
                            capture_output=True, text=True, timeout=120)  # fmt: skip
    assert waited.returncode == 143, waited.stdout + waited.stderr
    assert case.verdict.status == "STOPPED"
    assert saved_steps(case)[-1] == max(case.steps())
    go_on(case, undisturbed)


def test_a_head_that_dies_for_good_ends_the_run_and_a_new_cluster_goes_on(
    other_case: Case, undisturbed: dict[str, Any]
) -> None:
    case, cluster = other_case, other_case.cluster
    driver = case.start(on="w1")
    case.wait_for_step(12)
    case.dawdle()
    cluster.stop_head()
    assert driver.wait(240) == 75, driver.output()
    assert (case.verdict.status, case.verdict.cause) == ("FAILED", "control plane")
    assert "head" in case.verdict.reason + case.verdict.mend
    cluster.start_head()
    for name in ("w1", "w2"):
        cluster.start(name)
    cluster.wait_for({"w1": "ALIVE", "w2": "ALIVE"})  # or the job does not fit yet
    go_on(case, undisturbed)
