"""What Ray's errors mean for a rank whose process could not tell itself: pure functions. Imports: ray, records."""

from __future__ import annotations

import re

import ray

from orchestrator.records import Failure
from orchestrator.runners.ray_workers.causes import cause_of_ray_error
from orchestrator.runners.ray_workers.seats import Facts
from orchestrator.runners.verdicts import COLOUR, gist

_EXIT_CODE = re.compile(r"exits with an exit code (-?\d+)")
_MEND = "look for the out-of-memory killer or a lost node; run again: it resumes"


def death_of(error: BaseException, rank: int, facts: Facts | None, alive_s: float) -> Failure:
    """A failure from what Ray says of a rank's process; `alive_s` is when it answered last, seconds since the epoch.

    An error that is not the process's death (its work could not be unpickled there) is taken by itself.
    """
    cause, where = cause_of_ray_error(error), f" on {facts.host}" if facts else ""
    code, mend = None, ""
    if cause == "out of memory":
        reason = f"the worker process{where} was killed since its node had no memory left"
        mend = "lower train.microbatch_size (the global batch stays), or give the workers more memory"
    elif cause == "preemption":
        reason, mend = f"the node of the worker{where} was taken away", "run again: it resumes"
    elif isinstance(error, ray.exceptions.ActorDiedError) and not error.actor_init_failed:
        reason, mend = f"the worker process{where} died: {_how(str(error))}", _MEND
        code = _EXIT_CODE.search(str(error))
    else:
        reason = f"the worker{where}: {gist(str(error))}"
    return Failure(
        rank=rank,
        attempt=0,
        time_s=alive_s,
        error=reason,
        cause=cause,
        mend=mend,
        traceback=str(error),
        host=facts.host if facts else "",
        node=facts.node if facts else "",
        process_exit=int(code[1]) if code else None,
    )


def _how(text: str) -> str:
    """What Ray tells of a death, without its ids and its guesses."""
    if code := _EXIT_CODE.search(text):
        return f"it ended with exit code {code[1]}"
    if "its node has died" in text:
        return "its node was lost"
    if "connection error code 2" in text:
        return "it ended without a word, as after SIGKILL or a crash"
    lines = [line.strip() for line in COLOUR.sub("", text).splitlines() if line.strip()]
    told = [line for line in lines if line.startswith(("The actor is dead", "The actor died because"))]
    return gist(" ".join(told or lines).removeprefix("The actor is dead because ").rstrip("."))
