"""How training goes through the prepared rows."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.spec.base import Section, Size


class Iterate(Section):
    """How training goes through the rows. Either way every row comes once per epoch, the batches are the same
    for any number of workers, and a resumed run starts at the exact next one."""

    kind: Literal["auto", "mapped", "streaming"] = "auto"
    """`mapped`: all rows lie on the node and are shuffled as a whole. `streaming`: shards are fetched as they are
    needed, so that the data may be larger than memory and disk. `auto`: mapped up to 16 GB of prepared data."""
    window: Size = Field(default=256_000_000, ge=1)
    """Streaming: the order of the shards is drawn anew for each epoch, and rows are shuffled within windows of
    so many bytes (at least one shard). A larger window mixes better; a worker maps two of them at a time."""
