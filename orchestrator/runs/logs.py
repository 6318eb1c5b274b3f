"""The log files of a run: `logs/attempt-<n>/driver.log` and `rank-<r>.log`.

Imports: runs, storage, the standard library.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable, Iterator

from orchestrator.errors import UsageError
from orchestrator.runs.folder import RunFolder
from orchestrator.storage import Folder

_ATTEMPT = "attempt-"


def log_attempts(run: RunFolder) -> list[int]:
    """Numbers of the attempts that have logs, ascending."""
    names = (name.removeprefix(_ATTEMPT) for name in run.logs.names() if name.startswith(_ATTEMPT))
    return sorted(int(name) for name in names if name.isdecimal())


def log_name(rank: int | None) -> str:
    return "driver.log" if rank is None else f"rank-{rank}.log"


def read_log(run: RunFolder, rank: int | None, attempt: int | None) -> str:
    """The whole log of the driver (rank None) or of a rank; attempt None is the newest.

    Raises UsageError that names the logs there are.
    """
    attempts = log_attempts(run)
    number = attempt if attempt is not None else attempts[-1] if attempts else 1
    folder = run.attempt_logs(number)
    try:
        return folder.read_bytes(log_name(rank)).decode(errors="replace")
    except FileNotFoundError:
        raise UsageError(f"{run.label} has no {log_name(rank)} of attempt {number}", _known(run)) from None


def follow_log(
    run: RunFolder,
    rank: int | None,
    attempt: int | None,
    *,
    has_ended: Callable[[], bool],
    pause: Callable[[], None] = lambda: time.sleep(0.5),
) -> Iterator[str]:
    """Pieces of the log as they are written, until `has_ended` and all is read.

    Without an attempt given it goes on with each next one. A log that is not there yet is waited for.
    """
    number = attempt
    offset = 0
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while True:
        ending = has_ended()  # asked before reading, so that nothing written before the end is missed
        attempts = log_attempts(run)
        if number is None and attempts:
            number = attempts[-1]
        newer = [other for other in attempts if attempt is None and number is not None and other > number]
        data = _read_from(run.attempt_logs(number), log_name(rank), offset) if number is not None else b""
        offset += len(data)
        if text := decoder.decode(data):
            yield text
        if newer:
            number, offset = newer[0], 0
        elif ending:
            return
        else:
            pause()


def _read_from(folder: Folder, name: str, offset: int) -> bytes:
    try:
        with folder.filesystem.open_input_file(f"{folder.path}/{name}") as file:
            size = int(file.size())
            if size <= offset:
                return b""
            file.seek(offset)
            return bytes(file.read(size - offset))
    except FileNotFoundError:
        return b""


def _known(run: RunFolder) -> str:
    logs = [
        f"attempt {attempt} ({', '.join(run.attempt_logs(attempt).names())})" for attempt in log_attempts(run)
    ]
    return f"there are logs of {'; '.join(logs)}" if logs else "it has written no logs yet"
