"""Run a command on an isolated node: `python -m orchestrator.local_cluster.enter PID COMMAND…`.

Enters the namespaces of process PID, passes SIGINT and SIGTERM on to the command, dies with it and it with this.
Needs root, and a process with one thread. Imports: the standard library.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

_KINDS = ("uts", "ipc", "net", "pid", "mnt")  # mnt last: it hides the /proc with the others
_PR_SET_PDEATHSIG = 1


def enter(pid: int, command: list[str]) -> NoReturn:
    """Never returns: ends with the exit code of the command, or 128 + n where signal n killed it."""
    libc = ctypes.CDLL(None, use_errno=True)
    folder = Path.cwd()
    handles = [os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY) for kind in _KINDS]
    for handle in handles:
        if libc.setns(handle, 0):
            raise OSError(ctypes.get_errno(), f"cannot enter the namespaces of process {pid}")
        os.close(handle)
    os.chdir(folder)  # setns has moved to the root
    child = os.fork()  # a process enters a PID namespace only with its children
    if child == 0:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            os.execvp(command[0], command)
        except OSError as error:
            print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
            os._exit(127)
    _pass_on(child)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    sys.exit(128 - code if code < 0 else code)


def _pass_on(child: int) -> None:
    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signature that Python calls
        # Ctrl-C on a terminal reaches the child by itself.
        if number != signal.SIGINT or not sys.stdin.isatty():
            os.kill(child, number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handle)


if __name__ == "__main__":
    enter(int(sys.argv[1]), sys.argv[2:])
