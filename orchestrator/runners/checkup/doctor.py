"""`orchestrator doctor`'s engine: every check in a process of its own, so that a hang or a crash is a finding.

Run as `python -m orchestrator.runners.checkup.doctor CHECK` it does one check of the places that stdin
names, and prints its findings; both in JSON.
Imports: the checks, errors, the standard library; heavy packages only inside the checks' processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from orchestrator.errors import OrchestratorError
from orchestrator.runners.checkup import checks, heavy
from orchestrator.runners.checkup.checks import Check, Finding, Places

CHECKS: dict[str, Check] = {
    "packages": checks.packages,
    "torch": heavy.torch_operators,
    "devices": heavy.devices,
    "collectives": heavy.collectives,
    "storage": checks.storage,
    "tracking": checks.tracking,
    "ray": heavy.ray_answers,
    "auth": checks.auth,
    "shared memory": checks.shared_memory,
    "open files": checks.open_files,
    "clock": checks.clock,
}
"""In the order of the report."""

_SLOW = ("ray", "collectives", "torch", "devices")
"""Started first."""


def examine(
    places: Places, *, timeout_s: float = 40.0, names: Sequence[str] = tuple(CHECKS), at_once: int = 4
) -> list[Finding]:
    """All findings, in the order of `names`. Never raises for what a check finds, or for how it breaks."""
    by_speed = sorted(names, key=lambda name: _SLOW.index(name) if name in _SLOW else len(_SLOW))
    with ThreadPoolExecutor(at_once) as pool:
        running = {name: pool.submit(_in_own_process, name, places, timeout_s) for name in by_speed}
        return [finding for name in names for finding in running[name].result()]


def _in_own_process(name: str, places: Places, timeout_s: float) -> list[Finding]:
    command = [sys.executable, "-m", "orchestrator.runners.checkup.doctor", name]
    # The parent's own search path, so that the check runs from a source tree as well.
    paths = [str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,  # not an argument, which all users of the machine see: addresses hold passwords
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(json.dumps(asdict(places)), timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return [Finding(name, "fail", f"gave no answer within {timeout_s:g} s", _HANGS.get(name, ""))]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with whatever the check has started
        process.communicate()
    with contextlib.suppress(ValueError, IndexError, TypeError):
        return [Finding(**finding) for finding in json.loads(out.splitlines()[-1])]
    how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
    said = [line for line in err.splitlines() if line.strip()]
    return [
        Finding(name, "fail", f"the check itself ended by {how}: {said[-1] if said else 'without a word'}")
    ]


_HANGS = {
    "collectives": "set GLOO_SOCKET_IFNAME to the network interface that the nodes share (lo on one machine)",
    "ray": "look for a leftover Ray with `ray status`, and end it with `ray stop`",
    "devices": "look at `nvidia-smi`: a GPU that has fallen off the bus hangs whoever asks for it",
    "storage": "the file system does not answer: look at its mount",
}


@contextlib.contextmanager
def _stdout_aside() -> Iterator[None]:
    """What libraries print goes to stderr: stdout carries the findings alone."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def main(name: str) -> None:
    places = Places(**json.load(sys.stdin))
    with _stdout_aside():
        try:
            findings = list(CHECKS[name](places))
        except OrchestratorError as error:
            findings = [Finding(name, "fail", error.reason, error.mend)]
        except Exception as error:  # noqa: BLE001 - whatever breaks a check is what the check has found
            findings = [Finding(name, "fail", f"{type(error).__name__}: {error}")]
    print(json.dumps([asdict(finding) for finding in findings]))


if __name__ == "__main__":
    main(sys.argv[1])
