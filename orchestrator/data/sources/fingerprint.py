"""The fingerprint of a source's content: equal content, equal fingerprint, whatever the time stamps say.

Light: neither scikit-learn, torch nor pandas is imported. Imports: the standard library,
`user_code`, `storage`, spec.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from orchestrator.data.sources.files import TEXT_SUFFIXES, class_images, data_files, existing_path
from orchestrator.spec.data import (
    CsvSource,
    DataSection,
    ImageFolderSource,
    LinearSource,
    ParquetSource,
    PythonSource,
    SklearnSource,
    TextSource,
)
from orchestrator.storage import Folder
from orchestrator.user_code import hash_modules

_SETTLED_S = 2.0
"""A file changed less than this ago may change again within one tick of its clock: it is not remembered."""


def fingerprint(section: DataSection, search_paths: Sequence[str] = (), memo: Path | None = None) -> str:
    """SHA-256 (hex) of what the source holds: file contents, the library's version for data it ships, or the
    module that user code lives in with the user's modules it imports (what that code reads is not seen).

    `memo` is a file that remembers hashes by path, size and modification time, so that unchanged files are
    not read again. Raises SourceError where a path does not exist or holds no data.
    """
    source = section.source
    lines: Iterable[str]
    match source:
        case SklearnSource():
            lines = [source.name, importlib.metadata.version("scikit-learn")]
        case LinearSource():
            lines = [source.model_dump_json()]
        case ImageFolderSource():
            root = existing_path(source.path)
            files = [file for group in class_images(source.path).values() for file in group]
            names = [file.relative_to(root).as_posix() for file in files]
            lines = [f"{name} {digest}" for name, digest in zip(names, _hash_files(files, memo), strict=True)]
        case ParquetSource():
            lines = _hash_files(data_files(source.path, (".parquet", ".pq")), memo)
        case CsvSource():
            lines = _hash_files(data_files(source.path, (".csv", ".tsv", ".txt")), memo)
        case TextSource():
            lines = _hash_files(data_files(source.path, TEXT_SUFFIXES), memo)
        case PythonSource():
            lines = [
                source.model_dump_json(),
                hash_modules([source.function.partition(":")[0]], search_paths),
            ]
    return hashlib.sha256("\n".join([source.kind, *lines]).encode("utf-8", errors="replace")).hexdigest()


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


def _hash_files(files: Sequence[Path], memo: Path | None) -> list[str]:
    """The hash of each file, in order."""
    known = _read_memo(memo)
    stats = [(str(file), file.stat()) for file in files]
    now_s = time.time()

    def digest(index: int) -> str:
        path, stat = stats[index]
        entry = known.get(path)
        if entry and entry[:2] == [stat.st_size, stat.st_mtime_ns]:
            return str(entry[2])
        return hash_file(files[index])

    with ThreadPoolExecutor() as pool:
        digests = list(pool.map(digest, range(len(files))))
    fresh = {
        path: [stat.st_size, stat.st_mtime_ns, digest]
        for (path, stat), digest in zip(stats, digests, strict=True)
        if now_s - stat.st_mtime > _SETTLED_S
    }
    if memo is not None and any(known.get(path) != entry for path, entry in fresh.items()):
        Folder.at(memo.parent).write_bytes(memo.name, json.dumps(known | fresh).encode())
    return digests


def _read_memo(memo: Path | None) -> dict[str, list[int | str]]:
    try:
        value = json.loads(memo.read_bytes()) if memo is not None else {}
    except (OSError, ValueError):
        return {}  # a memo only saves time
    return value if isinstance(value, dict) else {}
