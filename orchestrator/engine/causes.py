"""What kind of fault an exception is: the class that decides whether a retry makes sense. Imports: torch."""

from __future__ import annotations

import traceback

import torch

from orchestrator.errors import Cause, OrchestratorError

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
    text = str(error).lower()
    if isinstance(error, torch.distributed.DistError | ConnectionError) or (
        isinstance(error, RuntimeError) and any(sign in text for sign in _PEER_LOST)
    ):
        return "hardware"
    if isinstance(error, OSError):
        return "hardware"
    return "user error"


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


def describe(error: BaseException) -> str:
    """The error in one line."""
    if isinstance(error, OrchestratorError):
        return error.reason
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
