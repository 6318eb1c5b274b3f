"""Leases on folders of prepared data: who reads one holds it, and what is held is not removed.

A lease is a shared lock of the operating system on the folder's manifest. It ends with the process that holds it,
however that ends. Imports: the standard library.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path

from orchestrator.data.prepared.manifest import MANIFEST


class Lease:
    """Held until this object is gone."""

    def __init__(self, handle: int) -> None:
        self._close = weakref.finalize(self, os.close, handle)

    def release(self) -> None:
        self._close()


def hold(folder: Path) -> Lease | None:
    """Take a lease and note the time of use; None where there is no manifest, or no locking on its filesystem."""
    file = folder / MANIFEST
    with contextlib.suppress(OSError):
        while True:
            handle = os.open(file, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_SH)
                if not os.path.samestat(os.fstat(handle), file.stat()):  # replaced while we waited
                    os.close(handle)
                    continue
            except OSError:
                os.close(handle)
                raise
            with contextlib.suppress(OSError):  # another user's folder
                os.utime(handle)
            return Lease(handle)
    return None


def remove_unless_held(folder: Path) -> bool:
    """Remove a folder with a manifest; False where somebody holds a lease on it."""
    with _alone(folder) as alone:
        if not alone:
            return False
        gone = folder.with_name(f"{folder.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")
        folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)
    return True


def is_held(folder: Path) -> bool:
    with _alone(folder) as alone:
        return not alone


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether no lease is out; none can be taken inside. A folder without a manifest has none."""
    try:
        handle = os.open(folder / MANIFEST, os.O_RDWR)  # what NFS wants for an exclusive lock
    except FileNotFoundError:
        yield True
        return
    except OSError:
        yield False
        return
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)
