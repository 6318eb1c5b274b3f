"""Which files are read together. Pure functions. Imports: the standard library only."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from orchestrator.data.sources.files import File


def group_files(files: Sequence[File], chunk_bytes: int) -> list[list[File]]:
    """Consecutive files in groups of up to about `chunk_bytes`; larger files are alone.

    Where a group ends depends on the names and sizes of its own files only. So files that are added behind all
    others change the last group at most, and after files that are added in between, the groups are soon the same as
    before: past half of its size, a group likes to end behind files whose names hash to a small number.
    """
    groups: list[list[File]] = []
    group: list[File] = []
    size = 0
    for file in files:
        if group and size + file.size_bytes > chunk_bytes:
            groups.append(group)
            group, size = [], 0
        group.append(file)
        size += file.size_bytes
        if size >= chunk_bytes or (size >= chunk_bytes / 2 and _ends_here(file, chunk_bytes)):
            groups.append(group)
            group, size = [], 0
    return [*groups, group] if group else groups


def _ends_here(file: File, chunk_bytes: int) -> bool:
    """True once in an eighth of a chunk, on average."""
    share = zlib.crc32(file.relative.encode(errors="replace")) / 2**32
    return share * chunk_bytes < 8 * file.size_bytes
