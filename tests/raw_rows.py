"""Rows as a user would send them for prediction: those of a part of prepared data, as the source gives them."""

from __future__ import annotations

import pyarrow as pa

from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.sources.read import read_source
from orchestrator.spec.data import DataSection


def raw_rows(section: DataSection, prepared: Prepared, part: str) -> pa.Table:
    """In the part's order, the feature columns only; `prepared.part(part).gather` holds the matching targets. Of a
    language model, the documents in which the samples begin."""
    columns = list(prepared.pipeline.raw_schema.columns)
    return read_source(section).select(columns).take(pa.array(prepared.part(part).source_rows()))
