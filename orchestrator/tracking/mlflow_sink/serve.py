"""The process that records in MLflow for a driver: `python -m orchestrator.tracking.mlflow_sink.serve PARENT`.

Reads the store's URI, then operations, from its standard input, and answers each (see `process`). After the first one
it runs only where others leave time; it ends with its driver. Imports: the sink, the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
from dataclasses import asdict
from typing import IO, Any

from orchestrator.tracking.mlflow_sink.sink import MlflowSink
from orchestrator.tracking.ops import RunState, SinkRefused, SinkUnavailable, from_json

_PR_SET_PDEATHSIG = 1
_NICENESS = 19


def serve(questions: IO[str], answers: IO[str]) -> None:
    """Answer until there are no more questions."""
    sink, yields = MlflowSink(json.loads(next(questions))), False
    for question in questions:
        answer = _answer(sink, json.loads(question))
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
        if "state" in answer and not yields:
            # Not before: importing MLflow's client would take minutes then on a busy machine.
            _yield_to_training()
            yields = True


def _answer(sink: MlflowSink, question: dict[str, Any]) -> dict[str, Any]:
    try:
        return {"state": asdict(sink.apply(from_json(question["op"]), RunState(**question["state"])))}
    except (SinkRefused, SinkUnavailable) as error:
        return {"refused": isinstance(error, SinkRefused), "reason": error.reason, "mend": error.mend}
    except Exception as error:  # noqa: BLE001 - a fault of ours loses nothing: it is tried again
        return {"refused": False, "reason": f"{type(error).__name__}: {error}", "mend": ""}


def _yield_to_training() -> None:
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, _NICENESS)


def _end_with(parent: int) -> None:
    """Let this process end with its driver, even a killed one: the next driver sends the same again, with a process of
    its own. (Linux ends it with the thread that started it already, which is the driver's shipper.)"""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the driver has ended")


def main() -> None:
    _end_with(int(sys.argv[1]))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the driver says when it is over
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what MLflow prints is no answer
        serve(sys.stdin, answers)


if __name__ == "__main__":
    main()
