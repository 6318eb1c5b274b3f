"""How good the data is, before a model learns from it, and how far new data is from it afterwards.

`survey_quality` looks at a chunk, `merge_quality` makes the report of all chunks; `warnings` and `html` show it.
`compare` holds the report of new data against it; `verdicts` and `drift_html` show that.
"""

from orchestrator.data.quality.advice import QualityWarning, warnings
from orchestrator.data.quality.drift import ColumnDrift, DriftReport, compare, verdicts
from orchestrator.data.quality.drift_page import drift_html
from orchestrator.data.quality.merge import join_quality, merge_quality
from orchestrator.data.quality.page import html
from orchestrator.data.quality.report import ColumnReport, QualityReport
from orchestrator.data.quality.survey import QualityPartial, survey_quality

__all__ = [
    "ColumnDrift",
    "ColumnReport",
    "DriftReport",
    "QualityPartial",
    "QualityReport",
    "QualityWarning",
    "compare",
    "drift_html",
    "html",
    "join_quality",
    "merge_quality",
    "survey_quality",
    "verdicts",
    "warnings",
]
