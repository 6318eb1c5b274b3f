"""`cluster/local-head.sh`: a head that answers, takes its environment's Python along, and goes with Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from orchestrator.runners.submission import jobs
from orchestrator.runners.submission.package import JobPackage
from tests.cluster.conftest import Head, end_with_all_children, free_ports, head_environment, wait_until_up

SCRIPT = Path(__file__).parents[2] / "cluster" / "local-head.sh"


@pytest.mark.slow
def test_a_local_head_serves_jobs_and_leaves_nothing(short_folder: Path) -> None:
    ports = free_ports(6)
    options = (
        "dashboard-agent-listen-port",
        "dashboard-agent-grpc-port",
        "metrics-export-port",
        "runtime-env-agent-port",
    )
    environment = head_environment() | {
        "VIRTUAL_ENV": sys.prefix,
        "PORT": str(ports[0]),
        "DASHBOARD_PORT": str(ports[1]),
    }
    head = Head(f"http://127.0.0.1:{ports[1]}", f"127.0.0.1:{ports[0]}", short_folder)
    arguments = [f"--{name}={port}" for name, port in zip(options, ports[2:], strict=True)]
    with (short_folder / "head.log").open("wb") as log:
        process = subprocess.Popen(
            [
                SCRIPT,
                "--num-cpus=1",
                f"--temp-dir={short_folder}",
                "--object-store-memory=100000000",
                *arguments,
            ],
            stdout=log,
            stderr=log,
            env=environment,
            start_new_session=True,
        )
    try:
        wait_until_up(process, head, timeout_s=120)
        package = JobPackage(entrypoint="python -c 'import sys; print(sys.prefix)'")
        job_id = jobs.submit_package(package, address=head.address, submission_id="prefix")
        log_text = "".join(jobs.follow_logs(head.address, job_id, follow=True))
        family = psutil.Process(process.pid).children(recursive=True)
        os.kill(process.pid, signal.SIGINT)
        process.wait(timeout=120)
        _, alive = psutil.wait_procs(family, timeout=15)
    finally:
        end_with_all_children(process)
    assert log_text.splitlines()[-1] == sys.prefix
    assert alive == []


def test_the_doctor_compares_versions_with_the_cluster(ray_head: Head, tmp_path: Path) -> None:
    from orchestrator.runners.checkup.checks import Places
    from orchestrator.runners.checkup.doctor import examine

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    answers, *_ = examine(Places(str(tmp_path), uri, ray_head.address), names=["ray"], timeout_s=60)
    silent, *_ = examine(Places(str(tmp_path), uri, "http://127.0.0.1:9"), names=["ray"], timeout_s=60)
    assert (answers.level, "1 nodes, 2 CPUs" in answers.reason) == ("ok", True), answers
    assert (silent.level, "no Ray cluster answers" in silent.reason) == ("fail", True)
