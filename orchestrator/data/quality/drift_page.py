"""The drift report as an HTML page. Imports: the standard library."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from orchestrator.data.quality.drift import ColumnDrift, DriftReport
from orchestrator.data.quality.markup import cards, page, pairs, table

_COLUMNS = 500
_CSS = {"none": "good", "moderate": "warn", "large": "bad"}


def drift_html(report: DriftReport, title: str = "Data drift") -> str:
    """A page that needs nothing else: no script, no network, all text escaped."""
    subtitle = f"{report.new_rows:,} new rows against {report.reference_rows:,} reference rows"
    return page(title, subtitle, _body(report))


def _body(report: DriftReport) -> Iterator[str]:
    count = {level: sum(column.level == level for column in report.columns) for level in _CSS}
    yield cards(
        [
            ("columns", f"{len(report.columns):,}"),
            ("large drift", f"{count['large']:,}"),
            ("moderate drift", f"{count['moderate']:,}"),
            ("without drift", f"{count['none']:,}"),
            ("new columns", f"{len(report.added):,}"),
        ]
    )
    if report.added:
        yield f'<p class="warn">No model has learned from these: {escape(", ".join(report.added[:20]))}</p>'
    yield '<h2>Columns <span class="soft"><i class="key" style="background:var(--bar)"></i>reference'
    yield '<i class="key" style="background:var(--val)"></i>new</span></h2>'
    heads = [
        ("name", "column"), ("", "drift"), ("num", "PSI"), ("num", "KS"), ("num", "p"), ("num", "null before"),
        ("num", "null now"), ("", "shares"), ("top", "why"),
    ]  # fmt: skip
    yield table(heads, [_row(column) for column in report.columns[:_COLUMNS]])
    yield (
        '<p class="soft">PSI: population stability index over the deciles or categories of the reference, 0.1 '
        "moderate and 0.25 large by custom. KS: the largest distance of the two distribution functions. p: how often "
        "chance alone gives such a distance. Numbers are compared by samples.</p>"
    )


def _row(column: ColumnDrift) -> list[str]:
    before, now = column.null_shares
    hints = [
        f"{name}: {first:.1%} before, {second:.1%} now"
        for name, first, second in zip(column.bins, *column.shares, strict=True)
    ]
    return [
        escape(column.name),
        f'<span class="{_CSS[column.level]}">{column.level}</span>',
        f"{column.psi:.3f}" if column.psi is not None else "",
        f"{column.ks:.3f}" if column.ks is not None else "",
        f"{column.p_value:.2g}" if column.p_value is not None else "",
        f"{before:.1%}",
        f"{now:.1%}",
        pairs(*column.shares, hints) if column.bins else "",
        escape("; ".join(column.reasons)),
    ]
