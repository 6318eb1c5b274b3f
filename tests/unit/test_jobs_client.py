"""Addresses of clusters, and the meaning of how a job ended. No cluster is needed."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from orchestrator.errors import UsageError
from orchestrator.records import Verdict
from orchestrator.runners.submission import jobs
from orchestrator.runners.submission.client import connect, job_address, last_line
from orchestrator.runners.submission.jobs import exit_code_of, new_submission_id


@pytest.mark.parametrize(
    ("given", "variables", "expected"),
    [
        (None, {}, "http://127.0.0.1:8265"),
        ("http://head:8265", {"RAY_ADDRESS": "http://other:1"}, "http://head:8265"),
        (None, {"RAY_ADDRESS": "http://head:8265"}, "http://head:8265"),
        (None, {"RAY_API_SERVER_ADDRESS": "https://api", "RAY_ADDRESS": "10.0.0.1:6379"}, "https://api"),
        ("10.0.0.1:6379", {}, "10.0.0.1:6379"),
    ],
)
def test_the_address_is_found(
    monkeypatch: pytest.MonkeyPatch, given: str | None, variables: dict[str, str], expected: str
) -> None:
    for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert job_address(given) == expected


def test_a_ray_client_address_is_refused_with_the_reason() -> None:
    with pytest.raises(UsageError, match="driver") as refused:
        job_address("ray://head:10001")
    assert "http://head:8265" in refused.value.mend


@pytest.mark.parametrize(
    "address", ["s3://bucket", "http://", "http://head:port", "http://127.0.0.1:1", "127.0.0.1:1"]
)
def test_an_address_that_leads_nowhere_is_a_usage_error(address: str) -> None:
    with pytest.raises(UsageError, match=r"address|answers"):
        connect(address)


@pytest.fixture
def guarded() -> Iterator[str]:
    """A server that knows no token."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(401)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_refused_token_names_the_setting(guarded: str) -> None:
    with pytest.raises(UsageError, match="RAY_AUTH_MODE=token"):
        connect(guarded)


STOPPED = Verdict("STOPPED", 75, "the node goes away")


@pytest.mark.parametrize(
    ("state", "driver_exit_code", "verdict", "expected"),
    [
        ("SUCCEEDED", 0, None, 0),
        ("SUCCEEDED", 0, Verdict("SUCCEEDED", 0, "done"), 0),
        ("FAILED", 2, None, 2),
        ("FAILED", -9, None, 137),
        ("FAILED", None, None, 1),  # its runtime environment could not be made
        ("STOPPED", None, None, 143),
        ("STOPPED", None, STOPPED, 75),
        ("STOPPED", None, Verdict("SUCCEEDED", 0, "done"), 0),  # asked to stop when it had just ended
        ("FAILED", 124, Verdict("FAILED", 124, "time is up"), 124),
        ("FAILED", 1, Verdict("SUCCEEDED", 0, "done"), 1),  # it broke after its verdict
    ],
)
def test_exit_codes(state: str, driver_exit_code: int | None, verdict: Verdict | None, expected: int) -> None:
    job = SimpleNamespace(status=state, driver_exit_code=driver_exit_code)
    assert exit_code_of(job, verdict) == expected


def test_submission_ids_are_readable_and_differ() -> None:
    ids = {new_submission_id("digits") for _ in range(20)}
    assert len(ids) == 20
    assert all(id_.startswith("digits-20") and len(id_.split("-")) == 4 for id_ in ids)


def test_the_last_line_of_a_traceback_tells() -> None:
    assert last_line("Traceback:\n  File x\nValueError: too big.\n.\n") == "ValueError: too big"
    assert last_line(KeyError()) == "KeyError"


def test_a_head_whose_job_agent_comes_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_POLL_S", 0.0)
    answers = iter([RuntimeError("500: No available agent to submit job, please try again later."), "a-job"])

    def submit() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert jobs._patiently(submit) == "a-job"
    monkeypatch.setattr(jobs, "_AGENT_S", -1.0)
    answers = iter([RuntimeError("500: No available agent to submit job")])
    with pytest.raises(RuntimeError) as late:
        jobs._patiently(submit)
    assert "--dashboard-agent-listen-port" in jobs._why_refused(late.value, "a-job").mend
