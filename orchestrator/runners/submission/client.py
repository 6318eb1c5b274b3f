"""The way to a cluster's Jobs API, and what can be read there about one job.

Imports: errors; ray, requests and aiohttp inside functions.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from orchestrator.errors import OrchestratorError, UsageError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
ENDED = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})
_ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_CHATTY = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
)
_ANSWER_TIMEOUT_S = 5.0
_TAIL_LINES = 200
_Answer = TypeVar("_Answer")


class OutOfReach(OrchestratorError):
    """The cluster does not answer (any more); its jobs may be going on."""

    cause = "control plane"


def job_address(address: str | None) -> str:
    """Where the Jobs API is: `address`, else what the environment names, else a head on this machine.

    Raises UsageError for `ray://` and other addresses that are no head's.
    """
    named = address or next((os.environ[name] for name in _ADDRESS_VARIABLES if os.environ.get(name)), "")
    if named.startswith("ray://"):
        raise UsageError(
            f"'{named}' is refused: over a Ray Client connection the driver, with its signals and files, "
            "stays on this machine, and dies with the connection",
            f"use the head's dashboard: http://{urlsplit(named).hostname or 'HEAD'}:8265",
        )
    if "://" in named and not named.startswith(("http://", "https://")):
        raise UsageError(f"'{named}' is not the address of a dashboard", "write it as http://HEAD:8265")
    return named or DEFAULT_ADDRESS


def connect(address: str | None) -> JobSubmissionClient:
    """A client of the Jobs API that has had its first answer.

    Raises UsageError where nothing answers, or the cluster refuses the token.
    """
    target = job_address(address)
    _check_reachable(target)
    from ray.exceptions import AuthenticationError, RpcError
    from ray.job_submission import JobSubmissionClient

    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)  # they tell of every package and connection
    with _without_variables(_ADDRESS_VARIABLES):  # Ray lets them overrule even an explicit address
        try:
            client = JobSubmissionClient(target)
        except AuthenticationError as error:
            raise _refused_token(target) from error
        except (*_failures(), RpcError, ValueError) as error:
            raise UsageError(
                f"no Jobs API answers at {target}: {last_line(error)}",
                "give the address of the head's dashboard, as http://HEAD:8265",
            ) from error
    client._ssl_context = True  # verify, as Ray's None means too, of which aiohttp warns
    return client


def ask(call: Callable[..., _Answer], *arguments: Any) -> _Answer:
    """Call the Jobs API. Raises OutOfReach for what goes wrong on the way, UsageError for a refused token."""
    from ray.exceptions import AuthenticationError

    try:
        return call(*arguments)
    except AuthenticationError as error:
        raise _refused_token("this address") from error
    except _failures() as error:
        raise OutOfReach(
            f"the cluster does not answer: {last_line(error)}", "its jobs may be going on; try again"
        ) from error


def find_job(client: JobSubmissionClient, key: str) -> Any:
    """The job with this id, else the newest job that runs a spec of this name.

    Raises UsageError where there is none.
    """
    jobs = [job for job in ask(client.list_jobs) if job.submission_id]
    named = [job for job in jobs if (job.metadata or {}).get("orchestrator.job") == key]
    for job in jobs:
        if job.submission_id == key:
            return job
    if not named:
        raise UsageError(f"the cluster has no job '{key}'", "see: orchestrator list --address …")
    return max(named, key=lambda job: job.start_time or 0)


def job_state(job: Any) -> str:
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED."""
    return str(getattr(job.status, "value", job.status))


def log_tail(client: JobSubmissionClient, job: Any) -> str:
    """The end of the job's log; empty where it cannot be had, as when its node is gone."""
    if not job.driver_node_id:
        return ""
    query = f"node_id={job.driver_node_id}&filename=job-driver-{job.submission_id}.log&lines={_TAIL_LINES}"
    with contextlib.suppress(*_failures()):
        answer = client._do_request("GET", f"/api/v0/logs/file?{query}", timeout=_ANSWER_TIMEOUT_S)
        if answer.ok:  # sent without its encoding
            return str(answer.content.decode(errors="replace"))
        return str(client.get_job_logs(job.submission_id))
    return ""


def log_from(client: JobSubmissionClient, job_id: str, seen: int) -> Iterator[str]:
    """Pieces of the job's log from character `seen` on, until the job or the connection ends.

    Raises OutOfReach where the connection breaks, also one that has gone silent without a word.
    """
    loop = asyncio.new_event_loop()
    pieces: AsyncIterator[str] = client.tail_job_logs(job_id)
    waiting: asyncio.Task[str] | None = None
    try:
        while True:
            waiting = waiting or loop.create_task(_next(pieces))
            done, _ = loop.run_until_complete(asyncio.wait({waiting}, timeout=_ANSWER_TIMEOUT_S))
            if not done:
                if job_state(ask(client.get_job_info, job_id)) in ENDED:
                    return
                continue
            text = waiting.result()
            waiting = None
            if not text:
                return
            skipped = min(seen, len(text))  # a new connection begins with the log's first line
            seen -= skipped
            if text[skipped:]:
                yield text[skipped:]
    except _failures() as error:
        raise OutOfReach(f"the log of '{job_id}' broke off: {last_line(error)}") from error
    finally:
        if waiting is not None:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, *_failures()):
                loop.run_until_complete(waiting)
        loop.run_until_complete(pieces.aclose())  # type: ignore[attr-defined]
        loop.close()


def why_never_started(client: JobSubmissionClient, job: Any) -> str:
    """Why a PENDING job cannot start on the cluster as it is; empty where it only has to wait."""
    with contextlib.suppress(*_failures(), ValueError, KeyError):
        filters = "filter_keys=state&filter_predicates=%3D&filter_values=PENDING_CREATION"
        actors = _state_of(client, f"actors?detail=1&{filters}")
        wanted: dict[str, float] = next(
            (
                actor["required_resources"]
                for actor in actors
                if actor["name"].endswith(f"_{job.submission_id}")
            ),
            {},
        )
        nodes = [
            node["resources_total"]
            for node in _state_of(client, "nodes?detail=1")
            if node["state"] == "ALIVE"
        ]
        if wanted and not any(all(node.get(name, 0) >= wanted[name] for name in wanted) for node in nodes):
            asked = ", ".join(f"{name}: {amount:g}" for name, amount in wanted.items())
            return f"no node of the cluster has what its entrypoint asks for ({asked})"
    return ""


def last_line(error: BaseException | str) -> str:
    """The line of a server's traceback, or of any long message, that says what happened."""
    lines = [line.strip(" .") for line in str(error).splitlines() if line.strip(" .")]
    return lines[-1] if lines else type(error).__name__


def _state_of(client: JobSubmissionClient, query: str) -> list[dict[str, Any]]:
    answer = client._do_request("GET", f"/api/v0/{query}", timeout=_ANSWER_TIMEOUT_S).json()
    found: list[dict[str, Any]] = answer["data"]["result"]["result"]
    return found


async def _next(pieces: AsyncIterator[str]) -> str:
    """The next piece; empty at the end, since a task may not raise StopAsyncIteration's kin."""
    return await anext(pieces, "")


def _failures() -> tuple[type[Exception], ...]:
    """What a call of the Jobs API raises when the cluster is gone or answers with an error."""
    import aiohttp
    import requests

    return (OSError, RuntimeError, requests.RequestException, aiohttp.ClientError)


def _refused_token(target: str) -> UsageError:
    return UsageError(
        f"the cluster at {target} refuses this client's token, or its lack of one",
        "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's own token",
    )


def _check_reachable(target: str) -> None:
    """Ray's client waits minutes for a host that does not answer: knock first."""
    parts = urlsplit(target if "://" in target else f"//{target}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"'{target}' is not an address: {error}", "write it as http://HEAD:8265") from error
    if target == "auto":
        return
    if not host:
        raise UsageError(f"'{target}' is not an address", "write it as http://HEAD:8265")
    try:
        socket.create_connection(
            (host, port or (443 if parts.scheme == "https" else 80)), timeout=_ANSWER_TIMEOUT_S
        ).close()
    except OSError as error:
        raise UsageError(
            f"no Ray cluster answers at {target}: {error}",
            "start one with cluster/local-head.sh, or give its dashboard's address: --address http://HEAD:8265",
        ) from error


@contextlib.contextmanager
def _without_variables(names: tuple[str, ...]) -> Iterator[None]:
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)
