"""The processes of a local cluster: started as nobody's children, found again by their mark or namespace, killed.

Imports: psutil, the standard library.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import psutil

from orchestrator.local_cluster.network import namespaces, processes_in
from orchestrator.local_cluster.plan import MARK, Plan

_KILL_TIMEOUT_S = 20.0
_POLL_S = 0.1


def start_daemon(command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> None:
    """Start a process in a session of its own that outlives this one; what it prints is appended to `log`."""
    with log.open("ab") as output:
        subprocess.run(
            ["setsid", "--fork", *command],
            env=dict(environment),
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            check=True,
        )


def node_processes(plan: Plan, name: str) -> list[psutil.Process]:
    """All processes of a node that live; zombies are dead."""
    if plan.isolated:
        return _living(processes_in(plan.host_name(name)))
    return _marked(f"{plan.label}/{name}")


def cluster_processes(label: str) -> list[psutil.Process]:
    """All processes of a cluster, also of one whose plan is lost."""
    inside = [number for name in namespaces(f"{label}-") for number in processes_in(name)] if has_ip() else []
    return list({process.pid: process for process in [*_living(inside), *_marked(f"{label}/")]}.values())


def first_process(plan: Plan, name: str) -> int | None:
    """The number, seen from outside, of process 1 of an isolated node; None where the node is off."""
    for number in processes_in(plan.host_name(name)):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{number}/status").read_text().splitlines():
                if line.startswith("NSpid:") and line.split()[1:][1:] == ["1"]:
                    return number
    return None


def kill_all(find: Callable[[], Iterable[psutil.Process]]) -> list[psutil.Process]:
    """Kill what is found until nothing is; returns what did not die in time."""
    deadline_s = time.monotonic() + _KILL_TIMEOUT_S
    while found := list(find()):
        if time.monotonic() > deadline_s:
            return found
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(_POLL_S)
    return []


def _marked(mark: str) -> list[psutil.Process]:
    """Processes with a mark that begins so, and their descendants: Ray overwrites its workers' environment."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if _begins(process.environ().get(MARK, ""), mark):
                for one in (process, *process.children(recursive=True)):
                    found[one.pid] = one
    return _living(found)


def _begins(value: str, mark: str) -> bool:
    return value.startswith(mark) if mark.endswith("/") else value == mark


def _living(numbers: Iterable[int]) -> list[psutil.Process]:
    found = []
    for number in numbers:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(number)
            if process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def has_ip() -> bool:
    import shutil

    return shutil.which("ip") is not None
