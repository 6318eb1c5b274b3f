"""The fingerprint of a source's content: equal content, equal fingerprint, whatever the time stamps say.

Light: neither scikit-learn, torch nor pandas is imported. Imports: the standard library, `data.sources`, spec.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.data.sources.chunks import digest_lines
from orchestrator.data.sources.memo import cache_root, hash_file, memo_file
from orchestrator.data.sources.plans import plan_source
from orchestrator.spec.data import DataSection
from orchestrator.spec.data.split import PATH_COLUMN

__all__ = ["cache_root", "fingerprint", "hash_file", "memo_file"]


def fingerprint(
    section: DataSection,
    search_paths: Sequence[str] = (),
    memo: Path | None = None,
) -> str:
    """SHA-256 (hex) of what the source holds, made of the fingerprints of its chunks: file contents (of remote files
    ETag and size, or size and time), the library's version for data it ships, the rows that a database gives, or the
    module that user code lives in with the user's modules it imports (what that code reads is not seen).

    `memo` is a file that remembers hashes by path, size and modification time, so that unchanged files are
    not read again. Where rows are split by files, the files' names count too. Raises SourceError where a path does
    not exist or holds no data.
    """
    paths = PATH_COLUMN in section.split.columns
    pieces = plan_source(section, search_paths=search_paths, memo=memo, paths=paths).pieces
    return digest_lines([section.source.kind, *(piece.fingerprint for piece in pieces)])
