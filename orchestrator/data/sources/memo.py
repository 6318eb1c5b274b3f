"""Content hashes of files, and a file that remembers them by path, size and modification time.

Remote files are told apart by what their storage says of them, ETag above all, instead of being downloaded.
Imports: pyarrow, `storage`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from orchestrator.data.sources.files import File
from orchestrator.data.threads import in_threads
from orchestrator.storage import Folder

_SETTLED_S = 2.0
"""A file changed less than this ago may change again within one tick of its clock: it is not remembered."""
_THREADS = 16
_READ_AT_ONCE_BYTES = 1 << 20
"""Up to which a file is hashed in one piece, in a third of the time."""


class Memo:
    """What was found out about files, kept in a file (None: nowhere). It only saves time."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._known = _read(path)

    def hashes(self, files: Sequence[File]) -> list[str]:
        """A hash (hex) of the content of each file, in order. Raises OSError."""
        return self.facts(files, "", content_hash)

    def facts(
        self, files: Sequence[File], about: str, learn: Callable[[File], Any], threads: int = _THREADS
    ) -> list[Any]:
        """What `learn` finds out about each file (values that JSON can hold), in order; `about` tells it from
        what else is remembered of the file."""

        def fact(file: File) -> Any:
            entry = self._known.get(f"{file}{about}")
            if entry and entry[:2] == [file.size_bytes, file.mtime_ns]:
                return entry[2]
            return learn(file)

        found = in_threads(fact, files, threads)
        now_s = time.time()
        fresh = {
            f"{file}{about}": [file.size_bytes, file.mtime_ns, value]
            for file, value in zip(files, found, strict=True)
            if file.mtime_ns and now_s - file.mtime_ns / 1e9 > _SETTLED_S
        }
        if self._path is not None and any(self._known.get(key) != entry for key, entry in fresh.items()):
            self._known |= fresh
            with contextlib.suppress(OSError):  # whoever needs the place itself says what is wrong with it
                Folder.at(self._path.parent).write_bytes(self._path.name, json.dumps(self._known).encode())
        return found


def memo_file(storage: Folder) -> Path:
    """Where hashes of source files are remembered for a storage."""
    if storage.is_local:
        return storage.local_path() / "prepared" / "fingerprints.json"
    return cache_root() / "fingerprints.json"


def cache_root() -> Path:
    """This machine's own cache, for what must not be on remote storage."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "orchestrator"


def hash_file(file: Path) -> str:
    """SHA-256 (hex) of a file's content."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def content_hash(file: File) -> str:
    """SHA-256 (hex) of a local file's content; of a remote one, of its ETag and size or, where it has no ETag, of
    size and modification time, or of its content where there is neither. Raises OSError."""
    if file.filesystem is None and file.size_bytes > _READ_AT_ONCE_BYTES:
        return hash_file(Path(file.path))
    if file.filesystem is None:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    etag = _etag(file)
    if etag or file.mtime_ns:
        told = f"{file.size_bytes} {etag or file.mtime_ns}"
        return hashlib.sha256(told.encode()).hexdigest()
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _etag(file: File) -> str:
    if isinstance(file.filesystem, pafs.PyFileSystem):
        inner = getattr(file.filesystem.handler, "fs", None)
        found = inner.info(file.path) if inner is not None else {}
        return str(found.get("ETag") or found.get("etag") or found.get("md5") or "")
    if file.filesystem.type_name not in ("s3", "gcs", "abfs"):
        return ""
    with file.filesystem.open_input_file(file.path) as stream:
        metadata = stream.metadata()
    return next((value.decode() for key, value in metadata.items() if str(key).lower() == "etag"), "")


def _read(path: Path | None) -> dict[str, list[Any]]:
    try:
        value = json.loads(path.read_bytes()) if path is not None else {}
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
