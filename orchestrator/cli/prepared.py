"""What the verbs of `orchestrator data` say about prepared data."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import typer

from orchestrator.cli.options import print_table, show_size
from orchestrator.data.prepared.cache import remote_manifest
from orchestrator.data.prepared.manifest import CORRUPT, QUALITY, QUALITY_PAGE
from orchestrator.data.quality.advice import QualityWarning, warnings
from orchestrator.data.quality.report import QualityReport
from orchestrator.storage import Folder


def prepared_facts(place: Folder) -> dict[str, Any]:
    """The manifest of a folder of prepared data without the pipeline, and what is odd about the data.

    Raises DataError where there is none of this version.
    """
    manifest = remote_manifest(place)
    facts = manifest.to_dict()
    facts.pop("pipeline")
    return facts | {
        "folder": place.uri,
        "bytes": manifest.total_bytes,
        "warnings": [asdict(warning) for warning in _warnings(place)],
        "quality_page": (place / QUALITY_PAGE).uri if QUALITY_PAGE in manifest.files else None,
    }


def show_prepared(place: Folder) -> None:
    """The same for people. Raises as `prepared_facts`."""
    manifest = remote_manifest(place)
    shape = "×".join(map(str, manifest.input_shape))
    rows: list[tuple[str, str]] = [
        ("key", manifest.key),
        ("folder", place.uri),
        (
            "task",
            f"{manifest.task}: input {shape} ({manifest.feature_kind}), {manifest.num_outputs} output(s)",
        ),
        ("rows read", f"{manifest.rows_read:,}"),
        *(
            (part, f"{count:,} rows in {len(manifest.shards_of(part))} shard(s)")
            for part, count in manifest.rows.items()
        ),
        ("size", show_size(manifest.total_bytes)),
    ]
    for entry in manifest.cleaning:
        rows.append((f"clean: {entry['step']}", f"{entry['rows']:,} rows"))
    if manifest.corrupt:
        rows.append(("corrupt", f"{manifest.corrupt:,} records skipped, see {(place / CORRUPT).uri}"))
    counts = (manifest.class_counts or {}).get("train") or {}
    shown = sorted(counts.items(), key=lambda item: -item[1])[:10]
    rows += [(f"class {label}", f"{count:,} training rows") for label, count in shown]
    if len(counts) > len(shown):
        rows.append(("", f"and {len(counts) - len(shown)} classes more"))
    if QUALITY_PAGE in manifest.files:
        rows.append(("quality", (place / QUALITY_PAGE).uri))
    print_table(["", ""], rows)
    for warning in _warnings(place):
        typer.echo(f"{warning.level}: {warning}")


def _warnings(place: Folder) -> list[QualityWarning]:
    report = place.read_json(QUALITY)
    return [] if report is None else warnings(QualityReport.from_dict(report))
