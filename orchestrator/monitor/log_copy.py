"""A log file on this machine's disk, copied into remote storage, so that it outlives the machine.

Imports: storage, the standard library.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from orchestrator.storage import Folder

_log = logging.getLogger(__name__)

FIRST_S, EVERY_S = 5.0, 30.0
"""When a log is copied first, and how often from then on where it has changed."""
REST = 10
"""A copy that takes long is made more seldom: after as many times the time it took."""
LAST_S, HURRY_S = 15.0, 0.5
"""How long the end of the block may wait for the last copy, and where an exception ends it: others wait for that
process to be free again, and the copy goes on beside whatever it does next."""
TRIES, AGAIN_S = 3, 1.0
MOST_BYTES, HEAD_BYTES = 32 << 20, 1 << 20
"""Of a longer log the beginning and the end are copied: an object in a bucket can only be written anew as a whole."""


@contextlib.contextmanager
def copied_log(
    local: Path, remote: Folder, name: str, *, first_s: float = FIRST_S, every_s: float = EVERY_S
) -> Iterator[None]:
    """Copy the log `attempt-N/….log` from the folder `local` to `remote` while the block runs and at its end.

    Logs of earlier attempts, which processes left here that were killed, are copied as well. Nothing is done
    where `remote` is a local folder. Never raises: what cannot be copied is tried again next time.
    """
    if remote.is_local:
        yield
        return
    end = threading.Event()

    def copy_on() -> None:
        copier = _Copier(local, remote)
        pause_s = first_s
        while not end.wait(pause_s):
            began_s = time.monotonic()
            copier.copy(name)
            copier.copy_leftovers(name)
            pause_s = max(every_s, REST * (time.monotonic() - began_s))
        for attempt in range(TRIES):
            if copier.copy(name):
                break
            time.sleep(AGAIN_S * 2**attempt)
        copier.copy_leftovers(name)

    thread = threading.Thread(target=copy_on, name="log-copy", daemon=True)
    thread.start()
    patience_s = HURRY_S
    try:
        yield
        patience_s = LAST_S
    finally:
        end.set()
        thread.join(patience_s)


class _Copier:
    """Copies what has changed since it was copied last."""

    def __init__(self, local: Path, remote: Folder) -> None:
        self._local, self._remote = local, remote
        self._sizes: dict[str, int] = {}
        self._left_over: list[str] | None = None

    def copy(self, name: str) -> bool:
        """Copy a log where it has grown; False where that failed."""
        try:
            size = (self._local / name).stat().st_size
            if size != self._sizes.get(name):
                place = PurePosixPath(name)
                (self._remote / str(place.parent)).write_bytes(place.name, log_content(self._local / name))
                self._sizes[name] = size
        except FileNotFoundError:
            return True  # nothing was logged yet
        except Exception as error:  # noqa: BLE001 - a log must not end a training
            _log.debug("the log %s could not be copied to %s: %s", name, self._remote.uri, error)
            return False
        return True

    def copy_leftovers(self, newest: str) -> None:
        """Copy what earlier attempts' processes on this machine had no time to."""
        try:
            if self._left_over is None:
                self._left_over = self._found(_attempt(newest))
        except Exception as error:  # noqa: BLE001 - as above
            _log.debug("the logs in %s could not be listed: %s", self._remote.uri, error)
            return
        self._left_over = [name for name in self._left_over if not self.copy(name)]

    def _found(self, before: int) -> list[str]:
        """Logs of attempts before one, that the storage has not or not in this length."""
        names = [path.relative_to(self._local).as_posix() for path in self._local.glob("attempt-*/*.log")]
        earlier = [name for name in names if _attempt(name) < before]
        return [
            name
            for name in earlier
            if not self._remote.exists(name)
            or self._remote.size_bytes(name) != (self._local / name).stat().st_size
        ]


def log_content(path: Path) -> bytes:
    """A log's content, without its middle where it is longer than 32 MiB."""
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= MOST_BYTES:
            return file.read(MOST_BYTES)
        head = file.read(HEAD_BYTES)
        left_out = size - MOST_BYTES
        file.seek(HEAD_BYTES + left_out)
        return (
            head
            + f"\n… {left_out:,} bytes are left out here …\n".encode()
            + file.read(MOST_BYTES - HEAD_BYTES)
        )


def _attempt(name: str) -> int:
    """The number in `attempt-3/rank-0.log`."""
    number = PurePosixPath(name).parts[0].removeprefix("attempt-")
    return int(number) if number.isdecimal() else 0
