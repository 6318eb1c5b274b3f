"""The reports that lie beside prepared data: its quality, its drift from earlier data, what was corrupt.

Imports: the standard library; numpy through `data.quality`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrator.data.cleaning.corrupt import CorruptLog
from orchestrator.data.prepared.manifest import CORRUPT, DRIFT, DRIFT_PAGE, QUALITY, QUALITY_PAGE
from orchestrator.data.quality.advice import warnings
from orchestrator.data.quality.drift import compare, verdicts
from orchestrator.data.quality.drift_page import drift_html
from orchestrator.data.quality.merge import merge_quality
from orchestrator.data.quality.page import html
from orchestrator.data.quality.report import QualityReport
from orchestrator.data.quality.survey import QualityPartial
from orchestrator.storage import Folder

_SHOWN = 5


@dataclass(frozen=True)
class Looks:
    """What the quality survey saw: in all chunks, and in those that earlier data did not have."""

    whole: QualityPartial | None = None
    new: QualityPartial | None = None

    def add(self, look: QualityPartial | None, *, new: bool) -> Looks:
        """With one more chunk, the next in the order of the source."""
        if look is None:
            return self
        return Looks(
            look if self.whole is None else self.whole.join(look),
            (look if self.new is None else self.new.join(look)) if new else self.new,
        )


def write_reports(folder: Path, looks: Looks, corrupt: CorruptLog, earlier: Path | None) -> list[str]:
    """Write what there is to report; the names of the files. `earlier` is the folder of earlier data, whose report
    new rows are compared with."""
    place, names = Folder.at(folder), []
    if looks.whole is not None:
        quality = merge_quality([looks.whole])
        place.write_json(QUALITY, quality.to_dict())
        place.write_bytes(QUALITY_PAGE, html(quality).encode())
        names += [QUALITY, QUALITY_PAGE]
    reference = read_quality(earlier) if earlier is not None else None
    if reference is not None and looks.new is not None:
        drift = compare(reference, merge_quality([looks.new]))
        place.write_json(DRIFT, drift.to_dict() | {"lines": verdicts(drift)})
        place.write_bytes(DRIFT_PAGE, drift_html(drift).encode())
        names += [DRIFT, DRIFT_PAGE]
    if corrupt.count:
        corrupt.write(folder / CORRUPT)
        names.append(CORRUPT)
    return names


def read_quality(folder: Path) -> QualityReport | None:
    """The quality report of prepared data; None where it has none."""
    value = Folder.at(folder).read_json(QUALITY)
    return QualityReport.from_dict(value) if value else None


def notable(folder: Path) -> Iterator[str]:
    """What a user should know of prepared data, a line each: the gravest warnings, and drift."""
    quality = read_quality(folder)
    if quality is not None:
        found = [warning for warning in warnings(quality) if warning.level != "note"]
        yield from (f"data: {warning}" for warning in found[:_SHOWN])
        if len(found) > _SHOWN:
            yield f"data: {len(found) - _SHOWN} warnings more in {folder / QUALITY_PAGE}"
    drift = Folder.at(folder).read_json(DRIFT)
    if drift and drift["level"] != "none":
        yield from (f"drift: {line}" for line in drift["lines"][:_SHOWN])
        yield f"drift: see {folder / DRIFT_PAGE}"
