"""The sink in a process of its own: MLflow's client takes milliseconds of CPU for each call, which the driver's threads
and the workers beside it want.

An operation and the run's state go to the process (`serve`) as a line of JSON, the new state or an error comes back as
one. Imports: ops, the standard library.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from orchestrator.tracking.ops import Op, RunState, SinkRefused, SinkUnavailable, to_json

_ROOT = Path(__file__).resolve().parents[3]
"""Where the package lies."""
_SERVER = "orchestrator.tracking.mlflow_sink.serve"


@contextmanager
def mlflow_process(tracking_uri: str) -> Iterator[MlflowProcess]:
    """A sink for the block; its process is there from the first operation to the end of the block."""
    sink = MlflowProcess(tracking_uri)
    try:
        yield sink
    finally:
        sink.close()


class MlflowProcess:
    """Applies operations as `MlflowSink` does. A process that has died is replaced with the next operation."""

    def __init__(self, tracking_uri: str) -> None:
        self._tracking_uri = tracking_uri
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def apply(self, op: Op, state: RunState) -> RunState:
        answer = self._ask({"op": to_json(op), "state": asdict(state)})
        if "state" in answer:
            return RunState(**answer["state"])
        error = SinkRefused if answer["refused"] else SinkUnavailable
        raise error(answer["reason"], answer["mend"])

    def close(self) -> None:
        """End the process, whatever it is at: an operation that was not answered counts as not applied."""
        self._closed = True
        self._end()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        if self._closed:
            raise SinkUnavailable("recording in MLflow has ended")
        try:
            process = self._process = self._process or _start(self._tracking_uri)
        except OSError as error:
            raise SinkUnavailable(f"no process can be started to record in MLflow: {error}") from error
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(json.dumps(question, default=str) + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except (OSError, ValueError):
            answer = ""
        if not answer.endswith("\n"):
            self._end()
            raise SinkUnavailable(f"the process that records in MLflow ended with code {process.wait()}")
        found: dict[str, Any] = json.loads(answer)
        return found

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            for end in (process.stdin, process.stdout):
                assert end is not None
                with contextlib.suppress(OSError, ValueError):  # what was still to be written to it
                    end.close()


def _start(tracking_uri: str) -> subprocess.Popen[str]:
    paths = [str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    process = subprocess.Popen(
        # -P: a file of the user's in the working directory must not take the place of a module of Python's.
        [sys.executable, "-P", "-m", _SERVER, str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        process_group=0,  # Ctrl-C is for the driver, which has its end to record then
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(tracking_uri) + "\n")  # not as an argument: it may have a password
    return process
