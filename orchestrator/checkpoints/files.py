"""A checkpoint's files: written once through a hash, onto the disk for good, and checked when they are read.

Imports: storage, the standard library.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from orchestrator.checkpoints.manifest import FileFacts
from orchestrator.errors import CheckpointError
from orchestrator.storage import Folder

CHUNK_BYTES = 4 << 20
"""Bounds what a writer takes at once: it runs beside the training, and hashing and writing of such a piece hold
no lock that the training needs."""
_READ_BYTES = 32 << 20
_FLUSH_BYTES = 64 << 20
"""How much of an upload may wait in memory."""


class Sink(Protocol):
    """What a file's content is written to; bytes and all that has their buffer."""

    def write(self, data: Any) -> int: ...

    def flush(self) -> None: ...


class HashingSink:
    """Passes what is written on to a file in pieces, and hashes it on the way. `check` is called before each
    piece and may raise."""

    def __init__(self, file: Any, check: Callable[[], None], flush_bytes: int | None = None) -> None:
        self._file = file
        self._check = check
        self._flush_bytes = flush_bytes
        self._unflushed = 0
        self._hash = hashlib.sha256()
        self._size = 0

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK_BYTES):
            piece = view[start : start + CHUNK_BYTES]
            self._check()
            self._hash.update(piece)
            self._file.write(piece)
            self._unflushed += len(piece)
            if self._flush_bytes is not None and self._unflushed >= self._flush_bytes:
                self._file.flush()
                self._unflushed = 0
        self._size += len(view)
        return len(view)

    def flush(self) -> None:
        """The file is flushed when it is whole."""

    @property
    def facts(self) -> FileFacts:
        return FileFacts(self._hash.hexdigest(), self._size)


def write_file(
    folder: Folder,
    name: str,
    produce: Callable[[Sink], None],
    *,
    check: Callable[[], None] = lambda: None,
    temporary: str = "tmp",
) -> FileFacts:
    """Write what `produce` gives, without ever holding all of it; returns what was written.

    Locally the file is complete and on the disk when it gets its name, and so is the name. `temporary` tells
    writers apart that might write the same file. On an error nothing of it stays. Raises OSError.
    """
    if not folder.is_local:
        return _upload(folder, name, produce, check)
    place = folder.local_path()
    place.mkdir(parents=True, exist_ok=True)
    hidden = place / f".{name}.{temporary}"
    try:
        with hidden.open("wb") as file:
            sink = HashingSink(file, check)
            produce(sink)
            file.flush()
            os.fsync(file.fileno())
        hidden.replace(place / name)
    except BaseException:
        hidden.unlink(missing_ok=True)
        raise
    sync_folder(place)
    return sink.facts


def _upload(
    folder: Folder, name: str, produce: Callable[[Sink], None], check: Callable[[], None]
) -> FileFacts:
    try:
        with folder.put(name) as stream:
            sink = HashingSink(stream, check, _FLUSH_BYTES)
            produce(sink)
    except BaseException:
        if not folder.renames:
            # Closing has put the half under the file's name; it is no checkpoint, but it takes room.
            with contextlib.suppress(OSError):
                folder.remove_file(name)
        raise
    return sink.facts


def sync_folder(place: Path) -> None:
    """Bring the names in a local folder onto the disk; a power cut may undo a rename that is not there yet."""
    if os.name != "posix":
        return
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno != errno.EINVAL:  # filesystems that have nothing to bring anywhere
            raise
    finally:
        os.close(handle)


def read_checked(folder: Folder, name: str, expected: FileFacts) -> bytes:
    """A file's content. Raises CheckpointError where it is not what it must be, OSError where it cannot be
    read."""
    try:
        with folder.filesystem.open_input_file(f"{folder.path}/{name}") as file:
            data: bytes = file.read(file.size())  # at once: a bucket would be asked for each piece
    except (FileNotFoundError, IsADirectoryError) as error:
        raise _damaged(folder, name, "it is missing") from error
    found = FileFacts(hashlib.sha256(data).hexdigest(), len(data))
    if found != expected:
        raise _damaged(folder, name, difference(expected, found))
    return data


def check_file(folder: Folder, name: str, expected: FileFacts) -> str | None:
    """What is wrong with a file, without holding all of it; None where it is whole. Raises OSError where it
    cannot be read."""
    found = hashlib.sha256()
    size = 0
    try:
        with folder.filesystem.open_input_stream(f"{folder.path}/{name}", compression=None) as stream:
            while data := stream.read(_READ_BYTES):
                found.update(data)
                size += len(data)
    except (FileNotFoundError, IsADirectoryError):
        return "it is missing"
    facts = FileFacts(found.hexdigest(), size)
    return None if facts == expected else difference(expected, facts)


def difference(expected: FileFacts, found: FileFacts) -> str:
    """What of it is wrong, in words."""
    if found.size_bytes != expected.size_bytes:
        return f"it has {found.size_bytes} bytes, and its manifest says {expected.size_bytes}"
    return f"its sha256 is {found.sha256[:12]}…, and its manifest says {expected.sha256[:12]}…"


def _damaged(folder: Folder, name: str, what: str) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {folder.uri} is damaged: {name}: {what}",
        "an older checkpoint is taken where there is one",
    )
