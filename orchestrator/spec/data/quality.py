"""Whether the data is looked at before a model learns from it."""

from __future__ import annotations

from orchestrator.spec.base import Section


class Quality(Section):
    """The quality report, made when data is prepared. It changes no row."""

    report: bool = True
    """Count, compare and warn: figures of each column, class balance, duplicates across the parts, columns that
    give the label away. It lies beside the prepared data and among the run's artifacts, and is what new data is
    compared with."""
