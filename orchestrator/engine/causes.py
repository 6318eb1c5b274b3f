"""What kind of fault an exception is: the class that decides whether a retry makes sense. Imports: torch."""

from __future__ import annotations

import socket
import time
import traceback
from collections.abc import Callable

import torch

from orchestrator.errors import Cause, Diverged, OrchestratorError
from orchestrator.records import Failure

_PEER_LOST = (
    "connection closed by peer",
    "connection reset by peer",
    "connection refused",
    "broken pipe",
    "nccl",
    "gloo",
    "socket timeout",
    "process group",
)


def cause_of(error: BaseException) -> Cause:
    """The class of an error raised in a worker.

    A collective that broke is `hardware`: a peer went away, and the peer's own report says why.
    """
    if isinstance(error, OrchestratorError):
        return error.cause
    if is_out_of_memory(error):
        return "out of memory"
    if is_peer_lost(error) or isinstance(error, OSError):
        return "hardware"
    return "user error"


def is_peer_lost(error: BaseException) -> bool:
    """Whether a collective broke, as it does when another rank goes away: the fault is then that rank's."""
    text = str(error).lower()
    return isinstance(error, torch.distributed.DistError | ConnectionError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in _PEER_LOST)
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the GPU's or the machine's memory was too small."""
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "can't allocate memory" in str(error).lower()
    )


def mend_of(error: BaseException) -> str:
    """What to do about it, in a phrase; empty where nothing general can be said."""
    if isinstance(error, OrchestratorError):
        return error.mend
    cause = cause_of(error)
    if cause == "out of memory":
        return "lower train.microbatch_size (the global batch stays), or give the workers more memory"
    if cause == "user error":
        frames = traceback.extract_tb(error.__traceback__)
        return (
            f"see {frames[-1].filename}:{frames[-1].lineno}; step through it with --inline" if frames else ""
        )
    return ""


def failure_of(
    error: BaseException, *, rank: int, attempt: int, hide: Callable[[str], str] = lambda text: text
) -> Failure:
    """What a rank tells of the error that ends it, as of now. `hide` takes the secrets out of a text."""
    code = getattr(error, "code", None) if isinstance(error, SystemExit) else None
    return Failure(
        rank=rank,
        attempt=attempt,
        time_s=time.time(),
        error=hide(describe(error)),
        cause=cause_of(error),
        mend=mend_of(error),
        traceback=hide("".join(traceback.format_exception(error))),
        host=socket.gethostname(),
        exit_code=getattr(error, "exit_code", 1),
        peer_lost=is_peer_lost(error),
        final=not getattr(error, "retry", True),
        diverged=isinstance(error, Diverged),
        process_exit=code if isinstance(code, int) else None,
    )


def describe(error: BaseException) -> str:
    """The error in one line."""
    if isinstance(error, OrchestratorError):
        return error.reason
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
