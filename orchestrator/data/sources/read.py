"""Open a source as chunks, or read all of it. Imports: pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from orchestrator.data.columns import require_columns
from orchestrator.data.sources.chunks import CHUNK_BYTES, Chunk, Source, Unreadable, concat
from orchestrator.data.sources.plans import plan_source
from orchestrator.data.sources.rows import to_table
from orchestrator.errors import SourceError
from orchestrator.spec.data import DataSection
from orchestrator.spec.data.split import PATH_COLUMN

__all__ = [
    "CHUNK_BYTES",
    "Chunk",
    "Source",
    "Unreadable",
    "open_source",
    "read_source",
    "to_table",
    "wanted_columns",
]


def open_source(
    section: DataSection,
    chunk_bytes: int = CHUNK_BYTES,
    *,
    search_paths: Sequence[str] = (),
    memo: Path | None = None,
) -> Source:
    """The columns that the section names, all where it names none, and the chunks to read, in the order of the source.

    Chunks read about `chunk_bytes` of files, as these lie on disk: groups of small files; row groups, record batches
    or ranges of lines of large ones; other sources are one chunk. Types of CSV and JSON lines are inferred from all
    of their content, which is read once for it. `search_paths` and `memo` as in `fingerprint`.

    Where rows are split by files, the column `__path__` (dictionary-encoded strings) is the file of each row; sources
    that are read at once have none.

    Raises SourceError where the source cannot be read or lacks a named column, and UserCodeError where the user's
    own function raises.
    """
    wanted, paths = wanted_columns(section), PATH_COLUMN in section.split.columns
    source, names = plan_source(section, chunk_bytes, search_paths, memo, paths=paths).open(
        wanted, paths=paths
    )
    if section.target:
        require_columns(names, [section.target], "data.target")
    require_columns(names, section.features or [], "data.features")
    require_columns(names, [name for name in section.split.columns if name != PATH_COLUMN], "data.split.by")
    require_columns(names, wanted or [], "data.clean")
    return source


def read_source(section: DataSection) -> pa.Table:
    """All rows, as the chunks of `open_source` give them one after another.

    Raises as `open_source`, and SourceError where there are no rows.
    """
    source = open_source(section)
    table = concat([chunk.read() for chunk in source.chunks], source.schema)
    if not table.num_rows:
        raise SourceError(f"the source ({section.source.kind}) has no rows", "look at data.source")
    return table


def wanted_columns(section: DataSection) -> list[str] | None:
    """The columns that a section names, to be read; None for all of them."""
    if section.features is None:
        return None
    named = [name for step in section.clean for name in getattr(step, "columns", None) or []]
    target = [section.target] if section.target else []
    by = [name for name in section.split.columns if name != PATH_COLUMN]
    return list(dict.fromkeys([*section.features, *target, *by, *named]))
