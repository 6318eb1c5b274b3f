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


def log_files(folder: Folder) -> list[str]:
    """The names of the logs in an attempt's folder."""
    return [name for name in folder.names() if name.endswith(".log")]


def newest_postmortem(run: RunFolder) -> Folder | None:
    """What was gathered when the newest failed attempt failed; None where there is nothing."""
    folders = (run.postmortem(attempt) for attempt in reversed(log_attempts(run)))
    return next((folder for folder in folders if folder.exists()), None)


def log_name(folder: Folder, rank: int | None) -> str | None:
    """The file in an attempt's logs that tells of a rank; None where it is not there (yet).

    Rank None is the driver; where it keeps no log of its own, rank 0 speaks for it.
    """
    wanted = ["driver.log", "rank-0.log"] if rank is None else [f"rank-{rank}.log"]
    there = folder.names()
    return next((name for name in wanted if name in there), None)


def read_log(run: RunFolder, rank: int | None, attempt: int | None) -> str:
    """The whole log of the driver (rank None) or of a rank; attempt None is the newest.

    Raises UsageError that names the logs there are.
    """
    attempts = log_attempts(run)
    number = attempt if attempt is not None else attempts[-1] if attempts else 1
    folder = run.attempt_logs(number)
    name = log_name(folder, rank)
    if name is None:
        whose = "the driver" if rank is None else f"rank {rank}"
        raise UsageError(f"{run.label} has no log of {whose} in attempt {number}", _known(run))
    return folder.read_bytes(name).decode(errors="replace")


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
    name: str | None = None
    offset = 0
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    while True:
        ending = has_ended()  # asked before reading, so that nothing written before the end is missed
        attempts = log_attempts(run)
        if number is None and attempts:
            number = attempts[-1]
        newer = [other for other in attempts if attempt is None and number is not None and other > number]
        if number is not None and name is None:
            name = log_name(run.attempt_logs(number), rank)
        data = _read_from(run.attempt_logs(number), name, offset) if number is not None and name else b""
        offset += len(data)
        if text := decoder.decode(data):
            yield text
        if newer:
            number, name, offset = newer[0], None, 0
        elif ending:
            return
        else:
            pause()


def _read_from(folder: Folder, name: str, offset: int) -> bytes:
    with folder.filesystem.open_input_file(f"{folder.path}/{name}") as file:
        size = int(file.size())
        if size <= offset:
            return b""
        file.seek(offset)
        return bytes(file.read(size - offset))


def _known(run: RunFolder) -> str:
    logs = [
        f"attempt {attempt} ({', '.join(log_files(run.attempt_logs(attempt)))})"
        for attempt in log_attempts(run)
    ]
    return f"there are logs of {'; '.join(logs)}" if logs else "it has written no logs yet"
