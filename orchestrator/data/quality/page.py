"""The quality report as an HTML page. Imports: the standard library."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from html import escape
from itertools import pairwise

from orchestrator.data.quality.advice import QualityWarning, warnings
from orchestrator.data.quality.markup import cards, figure, histogram, page, stacked, table
from orchestrator.data.quality.report import PARTS, ColumnReport, NumberSummary, QualityReport

_CLASSES = 30
_COLUMNS = 500
_TOP = 3


def html(report: QualityReport, title: str = "Data quality") -> str:
    """A page that needs nothing else: no script, no network, all text escaped."""
    return page(title, _subtitle(report), _body(report))


def _subtitle(report: QualityReport) -> str:
    learned = f"target '{report.target}' ({report.task})" if report.target else "no target"
    return f"{len(report.features)} feature columns, {learned}"


def _body(report: QualityReport) -> Iterator[str]:
    found = warnings(report)
    grave = sum(warning.level == "warning" for warning in found)
    yield cards(
        [
            *((f"{part} rows", f"{rows:,}") for part, rows in zip(PARTS, report.rows, strict=True)),
            ("rows dropped", f"{report.dropped:,}"),
            ("columns", f"{len(report.columns):,}"),
            ("warnings", f"{grave:,}"),
            ("notes", f"{len(found) - grave:,}"),
        ]
    )
    yield "<h2>What to look at</h2>"
    yield _found(found)
    if report.classes:
        yield '<h2>Classes <span class="soft">'
        yield "".join(f'<i class="key" style="background:var(--{part})"></i>{part}' for part in PARTS)
        yield "</span></h2>" + _classes(report)
    yield "<h2>Rows of equal features</h2>" + _duplicates(report)
    yield "<h2>Columns</h2>" + _columns(report)


def _found(found: Sequence[QualityWarning]) -> str:
    if not found:
        return '<p class="good">Nothing: no check found anything odd.</p>'
    lines = (
        f'<li class="{warning.level}">{escape(warning.fact)}.<div class="mend">{_mend(warning.mend)}</div></li>'
        for warning in found
    )
    return f'<ul class="found">{"".join(lines)}</ul>'


def _mend(text: str) -> str:
    """What stands between back quotes is code."""
    pieces = escape(text[:1].upper() + text[1:]).split("`")
    return "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))


def _classes(report: QualityReport) -> str:
    most, total = (
        max(item.total for item in report.classes),
        max(1, sum(item.total for item in report.classes)),
    )
    rows = [
        [
            escape(item.name),
            stacked(item.counts, PARTS, most),
            *(f"{count:,}" for count in item.counts),
            f"{item.total / total:.1%}",
        ]
        for item in report.classes[:_CLASSES]
    ]
    heads = [("name", "class"), ("", ""), *(("num", part) for part in PARTS), ("num", "share")]
    rest = len(report.classes) - _CLASSES
    more = f'<p class="soft">and {rest:,} smaller classes</p>' if rest > 0 else ""
    return table(heads, rows) + more


def _duplicates(report: QualityReport) -> str:
    duplicates = report.duplicates
    about = "" if duplicates.exact else "≈ "

    def cell(count: int, bad: bool) -> str:
        return f'<span class="bad">{about}{count:,}</span>' if count and bad else f"{about}{count:,}"

    across, within = duplicates.across, duplicates.within
    rows = [
        ["train", cell(within[0], False), cell(across[0], True), cell(across[1], True)],
        ["val", "", cell(within[1], False), cell(across[2], True)],
        ["test", "", "", cell(within[2], False)],
    ]
    heads = [("name", "rows that repeat one of"), *(("num", f"in {part}") for part in PARTS)]
    return table(heads, rows)


def _columns(report: QualityReport) -> str:
    heads = [
        ("name", "column"), ("", "kind"), ("num", "null"), ("num", "distinct"), ("", "values"), ("num", "mean ± std"),
        ("num", "min"), ("num", "median"), ("num", "max"), ("top", "most frequent"), ("num", "tells"),
    ]  # fmt: skip
    rows = [_row(column, column.name == report.target) for column in report.columns[:_COLUMNS]]
    rest = len(report.columns) - _COLUMNS
    more = f'<p class="soft">and {rest:,} more columns</p>' if rest > 0 else ""
    note = (
        '<p class="soft">Tells: how far the column alone tells the target, 0 to 1. Of text, the numbers are those of '
        "its length in characters. Quantiles and bars of large data come from a sample.</p>"
    )
    return table(heads, rows) + more + note


def _row(column: ColumnReport, is_target: bool) -> list[str]:
    numbers, about = column.numbers, "" if column.distinct_exact else "≈ "
    target = ' <span class="soft">target</span>' if is_target else ""
    nulls = f"{column.null_share:.1%}"
    link = f"{column.label_link:.2f}" if column.label_link is not None else ""
    return [
        escape(column.name) + target,
        f'<span title="{escape(column.type)}">{column.kind}</span>',
        f'<span class="bad">{nulls}</span>' if column.nulls else '<span class="soft">0</span>',
        f"{about}{column.distinct:,}",
        _chart(column),
        *(_figures(column, numbers) if numbers else ["", "", "", ""]),
        _top(column),
        f'<span class="bad">{link}</span>' if (column.label_link or 0) >= 0.99 else link,
    ]


def _figures(column: ColumnReport, numbers: NumberSummary) -> list[str]:
    if column.kind == "time":
        middle = _date(numbers.quantiles[3]) if numbers.quantiles else ""
        return ["", _date(numbers.least), middle, _date(numbers.most)]
    median = figure(numbers.quantiles[3]) if numbers.quantiles else ""
    middle = f"{figure(numbers.mean)} ± {figure(numbers.std)}"
    return [middle, figure(numbers.least), median, figure(numbers.most)]


def _chart(column: ColumnReport) -> str:
    numbers = column.numbers
    if column.is_category or (column.kind == "image" and column.values):
        shown = column.values[:20]
        return histogram([count for _, count in shown], [f"{value}: {count:,}" for value, count in shown])
    if numbers is None or not numbers.counts:
        return ""
    write = _date if column.kind == "time" else figure
    hints = [
        f"{write(low)} to {write(high)}: {count:,}"
        for (low, high), count in zip(pairwise(numbers.edges), numbers.counts, strict=True)
    ]
    return histogram(numbers.counts, hints)


def _top(column: ColumnReport) -> str:
    if not (column.is_category or column.kind in ("image", "array")):
        return ""
    shown = [
        f"{escape(_short(value))} <span class='soft'>{count:,}</span>"
        for value, count in column.values[:_TOP]
    ]
    return "<br>".join(shown)


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:23]}…"


def _date(seconds: float) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
    except (ValueError, OverflowError, OSError):
        return figure(seconds)
