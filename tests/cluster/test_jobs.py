"""Jobs on a real Ray head, with small stand-ins for `orchestrator run`."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests

from orchestrator.errors import UsageError
from orchestrator.monitor.progress_lines import format_progress, format_verdict
from orchestrator.records import Progress, Verdict
from orchestrator.runners.submission import jobs
from orchestrator.runners.submission.package import JobPackage, package_job
from orchestrator.spec import load_spec
from tests.cluster.conftest import Head

pytestmark = pytest.mark.cluster

SPEC = """
name: standin
data: {source: {kind: sklearn, name: digits}, target: target}
model: {name: cnn}
secrets: {API_TOKEN: "${env:STANDIN_TOKEN}"}
tags: {team: "${env:STANDIN_TEAM}"}
"""


@pytest.fixture
def address(ray_head: Head) -> str:
    return ray_head.address


Submit = Callable[[str], str]


@pytest.fixture
def submit(address: str, tmp_path: Path) -> Submit:
    """Submits Python code as a job. From a file: Ray prints the command into the log."""

    def submit(code: str) -> str:
        package = JobPackage(entrypoint=command(tmp_path, code), metadata={"orchestrator.job": "standin"})
        return jobs.submit_package(package, address=address, submission_id=jobs.new_submission_id("standin"))

    return submit


def command(folder: Path, code: str) -> str:
    (folder / "job.py").write_text(code)
    return f"python {folder / 'job.py'}"


def waits_for(file: Path) -> str:
    """Code that goes on when the file appears, and never outlives its test by much."""
    return f"""
import pathlib, time
for _ in range(1200):
    if pathlib.Path({str(file)!r}).exists(): break
    time.sleep(0.05)
"""


def test_a_job_sees_its_secrets_and_ray_shows_them_to_nobody(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = "s3cr3t-7f1c-plain-as-day"
    monkeypatch.setenv("STANDIN_TOKEN", token)
    monkeypatch.setenv("STANDIN_TEAM", "vision")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "big.bin").write_bytes(b"x")
    (tmp_path / "spec.yaml").write_text(f"{SPEC}runtime_env: {{excludes: [data, '*.json']}}\n")
    overrides = ["secrets.SECOND=another-hidden-value"]
    loaded = load_spec("spec.yaml", overrides)
    package = package_job(loaded, spec_argument="spec.yaml", overrides=overrides)
    code = """
import hashlib, os
import orchestrator.data
from orchestrator.runners.submission.jobs import load_job_secrets
print("before", "API_TOKEN" in os.environ)
print("names", sorted(load_job_secrets()))
for name in ("API_TOKEN", "STANDIN_TOKEN", "SECOND"):
    print(name, hashlib.sha256(os.environ[name].encode()).hexdigest())
print("team", os.environ["STANDIN_TEAM"], os.environ["RAY_JOB_STOP_WAIT_TIME_S"])
print("shipped", sorted(os.listdir(".")))
"""
    job_id = jobs.submit_package(
        replace(package, entrypoint=command(tmp_path, code)), address=address, submission_id="standin-secrets"
    )
    log = "".join(jobs.follow_logs(address, job_id, follow=True))

    assert jobs.wait_job(address, job_id, timeout_s=60) == 0, log
    assert "before False" in log
    assert "names ['API_TOKEN', 'SECOND', 'STANDIN_TOKEN']" in log
    for name, value in {"API_TOKEN": token, "STANDIN_TOKEN": token, "SECOND": "another-hidden-value"}.items():
        assert f"{name} {hashlib.sha256(value.encode()).hexdigest()}" in log
    assert "team vision 45" in log
    assert "shipped ['job.py', 'spec.yaml']" in log  # `data` was left out here, but not from our own package
    for page in (f"jobs/{job_id}", "jobs/", f"jobs/{job_id}/logs", "v0/jobs?detail=1", "v0/actors?detail=1"):
        shown = requests.get(f"{address}/api/{page}", timeout=10).text
        assert token not in shown
        assert "another-hidden-value" not in shown


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("raise SystemExit(2)", 2),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", 137),
    ],
)
def test_the_exit_code_is_the_processes_own(address: str, submit: Submit, code: str, expected: int) -> None:
    assert jobs.wait_job(address, submit(code), timeout_s=60) == expected


def test_status_tells_progress_run_and_verdict(address: str, submit: Submit, tmp_path: Path) -> None:
    go = tmp_path / "go"
    progress = Progress(3, 20, 120, 400, samples_per_s=3120, train_loss=0.5, eta_s=12)
    verdict = Verdict("FAILED", 1, "no memory left", cause="out of memory", rank=1, mend="smaller batches")
    code = f"""
print({format_progress(progress)!r}, flush=True)
{waits_for(go)}
print({format_verdict(verdict, "standin-7")!r})
raise SystemExit(1)
"""
    job_id = submit(code)
    log = jobs.follow_logs(address, job_id, follow=True)
    while "epoch 3/20" not in next(log):
        pass
    running = jobs.job_status(address, job_id)
    go.touch()
    rest = "".join(log)
    ended = jobs.job_status(address, "standin")  # by the spec's name: the newest

    assert running["state"] == "RUNNING"
    assert (running["progress"]["step"], running["eta_s"], running["verdict"]) == (120, 12, None)
    assert "verdict: FAILED standin-7" in rest
    assert ended["job_id"] == job_id
    assert (ended["state"], ended["run"], ended["exit_code"]) == ("FAILED", "standin-7", 1)
    assert ended["verdict"]["reason"] == "no memory left"
    assert ended["verdict"]["cause"] == "out of memory"
    assert jobs.list_jobs(address)[0] == ended
    json.dumps(ended)


@pytest.mark.parametrize("tells", [True, False])
def test_a_stopped_job_has_time_to_say_how_it_ended(
    address: str, submit: Submit, tmp_path: Path, tells: bool
) -> None:
    verdict = Verdict("STOPPED", 75, "the node goes away", cause="preemption")
    answer = f"print({format_verdict(verdict, 'standin-8')!r}, flush=True)" if tells else "pass"
    code = f"""
import signal, sys
def stop(*_):
    {answer}
    sys.exit(9)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
{waits_for(tmp_path / "never")}
"""
    job_id = submit(code)
    log = jobs.follow_logs(address, job_id, follow=True)
    while "ready" not in next(log):
        pass
    jobs.stop_job(address, job_id)

    assert jobs.wait_job(address, job_id, timeout_s=60) == (75 if tells else 143)
    assert jobs.job_status(address, job_id)["state"] == "STOPPED"
    with pytest.raises(UsageError, match="has ended already: STOPPED"):
        jobs.stop_job(address, job_id)


class Line:
    """A TCP connection to the head that can be cut, and is there again afterwards."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [self._start(self._accept)]

    def cut(self) -> None:
        for end in self._open:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue  # gone already

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join(timeout=10)
        for end in self._open:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                ends = self._listener.accept()[0], socket.create_connection(self._target)
            except OSError:
                return
            self._open += ends
            self._threads += [self._start(lambda a=a, b=b: self._pump(a, b)) for a, b in (ends, ends[::-1])]

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)
        except OSError:
            return

    @staticmethod
    def _start(work: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        return thread


@pytest.fixture
def line(address: str) -> Iterator[Line]:
    host, _, port = address.removeprefix("http://").partition(":")
    line = Line((host, int(port)))
    yield line
    line.close()


def test_following_survives_a_cut_connection(
    address: str, submit: Submit, line: Line, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    code = f"""
for i in range(40): print("first", i, "äöü", flush=True)
{waits_for(go)}
for i in range(40): print("second", i, flush=True)
"""
    job_id = submit(code)
    pieces = []
    for text in jobs.follow_logs(line.address, job_id, follow=True):
        pieces.append(text)
        if "first 39" in text:
            line.cut()
            go.touch()

    log = "".join(pieces)
    assert log == "".join(jobs.follow_logs(address, job_id, follow=False))
    assert log.count("first 7 äöü\n") == 1
    assert log.count("second 39\n") == 1


def test_a_job_that_can_never_start_says_so(address: str) -> None:
    from ray.job_submission import JobSubmissionClient

    job_id = JobSubmissionClient(address).submit_job(
        entrypoint="true", entrypoint_resources={"quantum": 2}, submission_id="standin-infeasible"
    )
    with pytest.raises(jobs.StillRunning) as timeout:
        jobs.wait_job(address, job_id, timeout_s=1)
    status = jobs.job_status(address, job_id)

    assert timeout.value.exit_code == 124
    assert status["state"] == "PENDING"
    assert "quantum: 2" in status["reason"]
    with pytest.raises(UsageError, match="quantum: 2"):
        jobs.stop_job(address, job_id)


def test_an_id_is_taken_once(address: str) -> None:
    package = JobPackage(entrypoint="true")
    jobs.submit_package(package, address=address, submission_id="standin-twice")
    with pytest.raises(UsageError, match="has a job with the id 'standin-twice' already"):
        jobs.submit_package(package, address=address, submission_id="standin-twice")
    assert jobs.wait_job(address, "standin-twice", timeout_s=60) == 0


def test_unknown_jobs_are_named(address: str) -> None:
    for verb in (jobs.job_status, jobs.stop_job):
        with pytest.raises(UsageError, match="no job 'nobody-1'"):
            verb(address, "nobody-1")


def test_an_explicit_address_wins_over_the_environment(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:9")
    assert isinstance(jobs.list_jobs(address), list)
    with pytest.raises(UsageError, match=r"no Ray cluster answers at http://127\.0\.0\.1:9"):
        jobs.list_jobs(None)
