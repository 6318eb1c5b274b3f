"""Jobs on a Ray cluster, through Ray's own Jobs API: submit, list, look, follow, stop, wait.

What the API cannot tell (the run's own exit code, its progress) is read from the job's log, as
`monitor.progress_lines` writes it. Imports: ray inside functions; client, package, monitor, spec.
"""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from orchestrator.errors import OrchestratorError, UsageError
from orchestrator.monitor.progress_lines import parse_progress, parse_verdict
from orchestrator.records import Verdict
from orchestrator.runners.submission.client import (
    ENDED,
    OutOfReach,
    ask,
    connect,
    find_job,
    job_state,
    last_line,
    log_from,
    log_tail,
    why_never_started,
)
from orchestrator.runners.submission.package import JobPackage, load_job_secrets, package_job, secrets_module

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

    from orchestrator.spec.load import LoadedSpec

__all__ = [
    "follow_logs",
    "job_status",
    "list_jobs",
    "load_job_secrets",
    "new_submission_id",
    "stop_job",
    "submit_job",
    "submit_package",
    "wait_job",
]

_POLL_S = 0.5
_OUTAGE_S = 60.0  # how long the cluster may be out of reach before following or waiting gives up
_AGENT_S = 30.0
_NO_AGENT = "No available agent"
_RUN = re.compile(r"verdict: [A-Z]+ (\S+) \(exit")


class StillRunning(OrchestratorError):
    """The job has not ended in the time given."""

    exit_code = 124
    cause = "time limit"


def new_submission_id(name: str) -> str:
    """`digits-20261121-104512-3fa9`."""
    return f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"


def submit_job(
    loaded: LoadedSpec,
    *,
    spec_argument: str,
    overrides: Sequence[str],
    address: str | None,
    submission_id: str | None = None,
) -> str:
    """Package the working directory, submit `orchestrator run` as a job, and give its submission id.

    Raises UsageError where the spec lies outside of the working directory, the cluster cannot be reached, or
    the id is taken; see `package_job` for what is shipped and how secrets travel.
    """
    package = package_job(loaded, spec_argument=spec_argument, overrides=overrides)
    job_id = submission_id or new_submission_id(loaded.spec.name)
    return submit_package(package, address=address, submission_id=job_id)


def submit_package(package: JobPackage, *, address: str | None, submission_id: str) -> str:
    """Upload a package's files and secrets, and start its entrypoint; gives the submission id."""
    if not re.fullmatch(r"[\w.-]+", submission_id, re.ASCII):
        raise UsageError(
            f"submission id '{submission_id}' is refused", "use letters, digits, '.', '_' and '-'"
        )
    client = connect(address)
    runtime_env = dict(package.runtime_env)
    runtime_env["env_vars"] = {**runtime_env.get("env_vars", {}), "ORCHESTRATOR_SUBMISSION_ID": submission_id}
    with contextlib.ExitStack() as stack:
        modules = list(package.py_modules)
        if package.secrets:
            modules.append(str(stack.enter_context(secrets_module(package.secrets))))
        try:
            if modules:  # Ray cannot set up an empty list
                runtime_env["py_modules"] = _uploaded(client, modules)
            return _patiently(
                lambda: client.submit_job(
                    entrypoint=package.entrypoint,
                    submission_id=submission_id,
                    runtime_env=runtime_env,
                    metadata=dict(package.metadata),
                )
            )
        except (OSError, RuntimeError, ValueError) as error:
            raise _why_refused(error, submission_id) from error


def list_jobs(address: str | None) -> list[dict[str, Any]]:
    """All submitted jobs of the cluster, newest first, in the form of `job_status`."""
    client = connect(address)
    jobs = [job for job in ask(client.list_jobs) if job.submission_id]
    jobs.sort(key=lambda job: job.start_time or 0, reverse=True)
    return [_describe(client, job) for job in jobs]


def job_status(address: str | None, job_id: str) -> dict[str, Any]:
    """What is known of one job, JSON-able: name and job_id (its submission id), job (the spec's name), state,
    run, progress, eta_s, metrics, verdict, exit_code, reason, started_s (since the epoch), duration_s.

    `verdict`, `exit_code` and `run` are None until the job ends; `reason` says why it is PENDING or, where
    there is no verdict, why it failed. Raises UsageError where there is no such job.
    """
    client = connect(address)
    return _describe(client, find_job(client, job_id))


def follow_logs(address: str | None, job_id: str, follow: bool) -> Iterator[str]:
    """Pieces of the job's log, line ends included; with `follow` as they come, to the job's end.

    A connection that breaks is made anew, and goes on where it broke. Raises OutOfReach where the cluster
    stays silent for a minute; the job may be running then.
    """
    client = connect(address)
    job_id = find_job(client, job_id).submission_id
    if not follow:
        yield ask(client.get_job_logs, job_id)
        return
    seen, heard_s = 0, time.monotonic()
    while True:
        try:
            for text in log_from(client, job_id, seen):
                seen, heard_s = seen + len(text), time.monotonic()
                yield text
            if job_state(ask(client.get_job_info, job_id)) in ENDED:
                if rest := ask(client.get_job_logs, job_id)[seen:]:
                    yield rest
                return
        except OutOfReach:
            if time.monotonic() - heard_s > _OUTAGE_S:
                raise
        time.sleep(_POLL_S)


def stop_job(address: str | None, job_id: str) -> None:
    """Ask a job to stop: it saves, records its end and goes, within its `failure.stop_grace`.

    Raises UsageError where there is no such job, where it has ended, or where it cannot start: what Ray
    waits to start it does not drop, whatever it is told.
    """
    client = connect(address)
    job = find_job(client, job_id)
    if job_state(job) in ENDED:
        raise UsageError(f"job '{job.submission_id}' has ended already: {job_state(job)}")
    ask(client.stop_job, job.submission_id)
    if job_state(job) == "PENDING" and (reason := why_never_started(client, job)):
        raise UsageError(
            f"job '{job.submission_id}' never started, and Ray keeps it PENDING: {reason}",
            "Ray fails it by itself when its start timeout (15 minutes) is over",
        )


def wait_job(address: str | None, job_id: str, timeout_s: float | None) -> int:
    """Wait for the job's end, for ever without a timeout, and give the run's own exit code.

    Raises StillRunning (exit code 124) where it has not ended in time, OutOfReach where the cluster stays
    silent for a minute.
    """
    client = connect(address)
    job_id = find_job(client, job_id).submission_id
    started_s = heard_s = time.monotonic()
    while True:
        try:
            job = ask(client.get_job_info, job_id)
            heard_s = time.monotonic()
            if job_state(job) in ENDED:
                return exit_code_of(job, _verdict_of(job, log_tail(client, job)))
        except OutOfReach:
            if time.monotonic() - heard_s > _OUTAGE_S:
                raise
        if timeout_s is not None and time.monotonic() - started_s >= timeout_s:
            raise StillRunning(f"job '{job_id}' has not ended within {timeout_s:g} s", "it goes on")
        time.sleep(_POLL_S)


def exit_code_of(job: Any, verdict: Verdict | None) -> int:
    """The exit code of an ended job: by its verdict, else by its process, else by Ray's word for its end."""
    code: int | None = job.driver_exit_code  # a stopped job has none
    if verdict is not None and (verdict.exit_code or not code):
        return verdict.exit_code
    if code is not None:
        return 128 - code if code < 0 else code  # ended by a signal, told as a shell would
    return {"SUCCEEDED": 0, "STOPPED": 143}.get(job_state(job), 1)


def _uploaded(client: JobSubmissionClient, modules: Sequence[str]) -> list[str]:
    """The modules' addresses on the cluster. Uploaded apart from the working directory, since Ray applies its
    `excludes` to modules too: `excludes: [data]` would take a package's own `data` folder away."""
    modules_only = {"py_modules": list(modules), "excludes": ["__pycache__"]}
    client._upload_py_modules_if_needed(modules_only)
    return modules_only["py_modules"]


def _describe(client: JobSubmissionClient, job: Any) -> dict[str, Any]:
    state, log = job_state(job), log_tail(client, job)
    ended = state in ENDED
    verdict = _verdict_of(job, log) if ended else None
    progress = next(filter(None, map(parse_progress, reversed(log.splitlines()))), None)
    run = _RUN.search(log) or _RUN.search(job.message or "")
    started_s = job.start_time / 1000 if job.start_time else None
    until_s = job.end_time / 1000 if job.end_time else time.time()
    return {
        "name": job.submission_id,
        "job_id": job.submission_id,
        "job": (job.metadata or {}).get("orchestrator.job"),
        "state": state,
        "run": run[1] if run and ended else None,
        "progress": asdict(progress) if progress else None,
        "eta_s": progress.eta_s if progress and not ended else None,
        "metrics": dict(verdict.metrics) if verdict else {},
        "verdict": verdict.to_dict() if verdict else None,
        "exit_code": exit_code_of(job, verdict) if ended else None,
        "reason": _reason(client, job, verdict),
        "started_s": started_s,
        "duration_s": max(0.0, until_s - started_s) if started_s else None,
    }


def _verdict_of(job: Any, log: str) -> Verdict | None:
    return parse_verdict(log) or parse_verdict(job.message or "")  # Ray keeps a failed job's last ten lines


def _reason(client: JobSubmissionClient, job: Any, verdict: Verdict | None) -> str:
    state = job_state(job)
    if state == "PENDING":
        return why_never_started(client, job) or "waits for a place, or for its runtime environment"
    if state != "FAILED" or verdict is not None:
        return ""
    if job.driver_exit_code in (126, 127):
        return "no python on the head's PATH: start Ray with its environment's bin folder first in PATH"
    return last_line(job.message or "Ray gives no reason")


def _patiently(submit: Callable[[], str]) -> str:
    """Submit, giving a young head's job agent half a minute to come up."""
    deadline_s = time.monotonic() + _AGENT_S
    while True:
        try:
            return str(submit())
        except RuntimeError as error:
            if _NO_AGENT not in str(error) or time.monotonic() > deadline_s:
                raise
        time.sleep(_POLL_S)


def _why_refused(error: Exception, submission_id: str) -> UsageError:
    if "already exists" in str(error):
        return UsageError(
            f"the cluster has a job with the id '{submission_id}' already",
            "give another --submission-id, or none to have one made",
        )
    if isinstance(error, ValueError):
        return UsageError(
            f"the working directory cannot be shipped: {last_line(error)}",
            "leave out what the job does not need, in .rayignore or runtime_env.excludes",
        )
    if _NO_AGENT in str(error):
        return UsageError(
            f"the head at this address has had no job agent for {_AGENT_S:.0f} s",
            "another program may hold the agent's port: start the head with another "
            "--dashboard-agent-listen-port (Ray's own is 52365)",
        )
    return UsageError(f"the cluster refused the job: {last_line(error)}")
