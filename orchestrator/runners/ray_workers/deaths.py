"""What Ray's errors mean for a rank whose process could not tell itself: pure functions. Imports: ray, records."""

from __future__ import annotations

import re

import ray

from orchestrator.records import Failure
from orchestrator.runners.ray_workers.seats import Facts

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_EXIT_CODE = re.compile(r"exits with an exit code (-?\d+)")
_LONGEST = 500


def killed_for_memory(error: BaseException) -> bool:
    """Whether Ray's memory monitor killed the worker, or Ray knows that the system did."""
    return isinstance(error, ray.exceptions.OutOfMemoryError) or "OUT_OF_MEMORY" in str(error)


def death_of(error: BaseException, rank: int, facts: Facts | None, alive_s: float) -> Failure:
    """A failure from what Ray says of a rank's process; `alive_s` is when it answered last, seconds since the epoch.

    A process that died takes the blame of `hardware`, unless Ray knows better. An error that is not its death (its
    work could not be unpickled there) is one of the program.
    """
    where = f" on {facts.host}" if facts else ""
    common = {
        "rank": rank,
        "attempt": 0,
        "time_s": alive_s,
        "host": facts.host if facts else "",
        "node": facts.node if facts else "",
        "traceback": str(error),
    }
    if killed_for_memory(error):
        return Failure(
            error=f"the worker process{where} was killed since its node had no memory left",
            cause="out of memory",
            mend="lower train.microbatch_size (the global batch stays), or give the workers more memory",
            **common,
        )
    if isinstance(error, ray.exceptions.RayActorError | ray.exceptions.WorkerCrashedError):
        text = str(error)
        if getattr(error, "preempted", False):
            return Failure(
                error=f"the node{where} was taken away",
                cause="preemption",
                mend="run again: it resumes",
                **common,
            )
        code = _EXIT_CODE.search(text)
        return Failure(
            error=f"the worker process{where} died: {_how(text)}",
            cause="hardware",
            mend="look for the out-of-memory killer or a lost node; run again: it resumes",
            process_exit=int(code[1]) if code else None,
            **common,
        )
    if isinstance(error, ray.exceptions.GetTimeoutError | ray.exceptions.NodeDiedError):
        return Failure(error=f"the worker process{where} does not answer", cause="hardware", **common)
    return Failure(error=gist(str(error)), cause="internal", **common)


def gist(text: str) -> str:
    """What a long message says, without colours; of a traceback that Ray passed on, its last line."""
    lines = [line.strip() for line in _COLOUR.sub("", text).splitlines() if line.strip()]
    if any(line.startswith("Traceback (most recent call last)") for line in lines):
        lines = lines[-1:]
    joined = " ".join(" ".join(lines).split())
    return joined if len(joined) <= _LONGEST else joined[: _LONGEST - 1] + "…"


def _how(text: str) -> str:
    """What Ray tells of a death, without its ids and its guesses."""
    lines = [line.strip() for line in _COLOUR.sub("", text).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith("The actor is dead")] or lines
    joined = " ".join(" ".join(told).split())
    for guess in (" Some common causes include", " If the process was killed by the kernel"):
        joined = joined.partition(guess)[0]
    if "connection error code 2" in joined:
        return "it ended without a word, as after SIGKILL or a crash"
    return gist(joined.removeprefix("The actor is dead because ").rstrip("."))
