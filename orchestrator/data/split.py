"""Part rows into train, val and test: what the rest of the package uses. Imports: none."""

from __future__ import annotations

from orchestrator.data.splitting.rows import PARTS, part_codes, split_rows
from orchestrator.data.splitting.survey import split_survey

__all__ = ["PARTS", "part_codes", "split_rows", "split_survey"]
