"""How data is prepared: where, and in pieces of what size."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.spec.base import Section, Size


class Preparation(Section):
    """Where the source is read, cleaned and encoded. The result is the same."""

    by: Literal["auto", "process", "ray"] = "auto"
    """`process`: in the process that starts the run, chunk after chunk. `ray`: by tasks of Ray Data on the
    cluster. `auto`: by Ray where the source has 8 chunks or more and the run has a cluster."""
    chunk_size: Size = Field(default=64 * 2**20, ge=2**16)
    """How much of the source, as it lies on disk, is read at a time: what a task needs memory for. Each chunk
    makes a shard of each part."""
