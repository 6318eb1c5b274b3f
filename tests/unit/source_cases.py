"""Sections for tests of sources."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from orchestrator.data.sources.read import Source, open_source
from orchestrator.spec.data import DataSection

BY_FILES = {"kind": "given", "files": {"train": ["**"]}}
"""A split for which rows must tell their files."""


def section(source: dict[str, Any], target: str | None = None, **more: Any) -> DataSection:
    """A section that is valid without a target."""
    more |= {"text": {}} if target is None else {}
    return DataSection.model_validate({"source": source, "target": target, **more})


def opened(kind: str, path: Path | str, chunk_bytes: int = 2**26, **more: Any) -> Source:
    return open_source(section({"kind": kind, "path": str(path), **more}), chunk_bytes)


def rows_of(source: Source) -> pa.Table:
    """All chunks one after another; each must have the schema of the source."""
    tables = [chunk.read() for chunk in source.chunks]
    assert all(table.schema.equals(source.schema) for table in tables)
    return pa.concat_tables(tables)
