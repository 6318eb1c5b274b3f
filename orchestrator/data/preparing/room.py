"""What a build says where its folder cannot, or may not, take what it writes. Imports: the standard library."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from orchestrator.data.prepared.shards import MOST_PIECES
from orchestrator.errors import DataError, OrchestratorError, UsageError
from orchestrator.storage import Folder

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EACCES, errno.EPERM, errno.EROFS})


@contextlib.contextmanager
def writing_to(storage: Folder) -> Iterator[None]:
    """Raises UsageError where the system forbids the block to write below a local storage, or to make it."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FORBIDDEN or not storage.is_local or not isinstance(error.filename, str):
            raise
        place = storage.local_path()
        if not (place.is_relative_to(error.filename) or Path(error.filename).is_relative_to(place)):
            raise  # the source's
        raise UsageError(
            f"storage: {error.filename} cannot be written: {os.strerror(error.errno)}",
            "get the right to write there, or name another place by storage",
        ) from error


def explain(
    error: OSError, folder: Folder, scratch: Folder | None, num_chunks: int
) -> OrchestratorError | None:
    """The error to raise for one of the system's that met a build in `folder`; None for one that is none of its
    own, as of a source.

    DataError where a disk, a quota or the limit of a file's size is reached: with what the build needs as
    far as the chunks that are written tell it. UsageError where the folder is not there on all machines.
    """
    if error.errno in _FULL:
        what = f"{folder.uri.rpartition('/')[0]} cannot take the prepared data: {os.strerror(error.errno)}"
        if folder.is_local:
            place = folder.local_path()
            needed = _needed(place, num_chunks, MOST_PIECES)
            needed += _needed(scratch.local_path(), num_chunks, 1) if scratch else 0
            if error.errno == errno.ENOSPC:
                what += f", {_megabytes(shutil.disk_usage(place).free)} are free"
            what += f", at least {_megabytes(needed)} are needed" if needed else ""
        return DataError(
            what,
            "make room (`orchestrator data gc` removes prepared data that nobody uses), lift the limit, or name "
            "another place by storage",
        )
    if isinstance(error, FileNotFoundError) and folder.is_local and folder.path in str(error):
        return not_shared(folder)
    return None


def not_shared(folder: Folder) -> UsageError:
    return UsageError(
        f"{folder.uri}: what a task on another machine wrote is not there",
        "name a storage that all machines of the cluster share (a folder or a URI), or write "
        "data.preparation.by: process",
    )


def _needed(folder: Path, num_chunks: int, pieces: int) -> int:
    """What the files of all chunks take up, by those of the chunks that have been written: `…-00012.arrow`, whose
    number is the chunk's times `pieces` and more."""
    sizes: dict[int, int] = {}
    for file in folder.glob("*.arrow"):
        number = file.stem.rpartition("-")[2]
        if not number.isdigit():
            continue
        chunk = int(number) // pieces
        sizes[chunk] = sizes.get(chunk, 0) + file.stat().st_size
    return sum(sizes.values()) * num_chunks // len(sizes) if sizes else 0


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
