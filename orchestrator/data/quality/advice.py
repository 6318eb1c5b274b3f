"""What to mend in the data before training on it. Imports: the standard library."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from orchestrator.data.quality.report import PARTS, ColumnReport, QualityReport

Level = Literal["warning", "note"]

_LINK = {"classification": 0.99, "regression": 0.999}
_MOSTLY_NULL = 0.5
_ID_ROWS = 50
_ID_SHARE = 0.97
_ID_CHARACTERS = 64
_IMBALANCE = 10
_TINY_CLASS = 10
_FAR_OUT = 50
_MANY_DUPLICATES = 0.01
_FEW_DISTINCT_ROWS = 0.5
_NAMED = 5


@dataclass(frozen=True)
class QualityWarning:
    """`column` is None where it concerns the rows or the classes. A `note` may well be meant to be so."""

    level: Level
    column: str | None
    fact: str
    mend: str

    def __str__(self) -> str:
        return f"{self.fact}. {self.mend[:1].upper()}{self.mend[1:]}" if self.mend else self.fact


def warnings(report: QualityReport) -> list[QualityWarning]:
    """What is odd about the data, the gravest first: each with its figure, and with the words to write in the spec."""
    found = [*_about_rows(report), *_about_classes(report)]
    for column in report.columns:
        found += _about_target(column, report) if column.name == report.target else _about(column, report)
    return sorted(found, key=lambda warning: warning.level == "note")


def _about(column: ColumnReport, report: QualityReport) -> Iterator[QualityWarning]:
    name, out = f"column '{column.name}'", f"leave it out: {_features_without(column.name, report)}"
    known = column.count - column.nulls
    if column.label_link is not None and column.label_link >= _LINK[report.task or "classification"]:
        figure = (
            f"correlates with the target by {column.label_link:.4f}"
            if report.task == "regression"
            else f"alone tells the target of {column.label_link:.1%} of the rows that guessing gets wrong"
        )
        yield _high(column, f"{name} {figure}", f"if it is not known before the answer is, {out}")
    if not known:
        yield _high(column, f"{name} is null in all {column.count} rows", out)
    elif column.distinct == 1 and not column.nulls:
        value = f": {column.values[0][0]}" if column.values and column.kind not in ("image", "array") else ""
        yield _high(column, f"{name} holds one value in all {column.count} rows{value}", out)
    elif column.nulls and not _is_filled(column, report):
        yield _nulls(column, name, out)
    if column.infinite:
        yield _high(
            column,
            f"{name} is infinite in {column.infinite} of {column.count} rows",
            f"mend the source, or {out}",
        )
    if _is_id(column, known) and not report.text:
        yield _high(
            column,
            f"{name} holds a different value in {'each' if column.distinct == known else 'nearly each'} of "
            f"{known} rows, as an id does",
            out,
        )
    yield from _far_out(column, name)
    yield from _about_shapes(column, name)


def _about_target(column: ColumnReport, report: QualityReport) -> Iterator[QualityWarning]:
    name = f"the target '{column.name}'"
    if column.nulls:
        mend = f"add `- {{kind: drop_nulls, columns: [{column.name}]}}` to data.clean"
        yield _high(column, f"{name} is null in {column.nulls} rows ({column.null_share:.2%})", mend)
    if report.task == "regression":
        yield from _far_out(column, name)


def _about_rows(report: QualityReport) -> Iterator[QualityWarning]:
    duplicates, rows = report.duplicates, report.rows
    about = "" if duplicates.exact else "about "
    # Rows of few combinations meet again by chance alone: this is no copying.
    few = duplicates.distinct_rows < _FEW_DISTINCT_ROWS * sum(rows)
    shared = [
        f"{about}{count} of {rows[second]} {PARTS[second]} rows are in {PARTS[first]}, too"
        for (first, second), count in zip(((0, 1), (0, 2), (1, 2)), duplicates.across, strict=True)
        if count and rows[second]
    ]
    if shared:
        fact = f"parts share rows of equal features: {'; '.join(shared)}"
        if few:
            fact += f" (all rows take but {about}{duplicates.distinct_rows} distinct values)"
        mend = "add `- {kind: drop_duplicates}` to data.clean"
        yield QualityWarning("note" if few else "warning", None, fact, mend)
    inside = duplicates.within[0]
    if rows[0] and inside >= _MANY_DUPLICATES * rows[0] and not few:
        fact = f"{about}{inside} of {rows[0]} train rows repeat another ({inside / rows[0]:.1%})"
        yield QualityWarning("note", None, fact, "add `- {kind: drop_duplicates}` to data.clean")


def _about_classes(report: QualityReport) -> Iterator[QualityWarning]:
    classes = [item for item in report.classes if item.counts[0]]
    if len(classes) > 1:
        largest = max(classes, key=lambda item: item.counts[0])
        smallest = min(classes, key=lambda item: item.counts[0])
        ratio = largest.counts[0] / smallest.counts[0]
        if ratio >= _IMBALANCE:
            fact = (
                f"class '{largest.name}' has {ratio:.0f} times the train rows of class '{smallest.name}' "
                f"({largest.counts[0]} against {smallest.counts[0]})"
            )
            yield QualityWarning("warning", None, fact, "write train.loss.class_weights: balanced")
    tiny = [item for item in report.classes if item.total < _TINY_CLASS]
    if tiny:
        shown = _some([f"'{item.name}' ({item.total})" for item in tiny])
        many = "one class has" if len(tiny) == 1 else f"{len(tiny)} classes have"
        mend = "drop or join them, or gather more rows of them"
        yield QualityWarning("warning", None, f"{many} fewer than {_TINY_CLASS} rows: {shown}", mend)
    for part, rows in zip(range(3), report.rows, strict=True):
        absent = [
            f"'{item.name}'" for item in report.classes if not item.counts[part] and item.total >= _TINY_CLASS
        ]
        if rows and absent:
            fact = f"the {PARTS[part]} part has no row of class {_some(absent)}"
            yield QualityWarning("warning", None, fact, "write data.split.kind: stratified")


def _nulls(column: ColumnReport, name: str, out: str) -> QualityWarning:
    fact = f"{name} is null in {column.nulls} rows ({column.null_share:.2%})"
    if column.null_share > _MOSTLY_NULL:
        return _high(column, fact, out)
    kind = "fill_nulls" if column.kind == "number" else "drop_nulls"
    return _high(column, fact, f"add `- {{kind: {kind}, columns: [{column.name}]}}` to data.clean")


def _far_out(column: ColumnReport, name: str) -> Iterator[QualityWarning]:
    numbers = column.numbers
    if column.kind != "number" or numbers is None or numbers.farthest < _FAR_OUT:
        return
    value = max(numbers.most, numbers.least, key=lambda edge: abs(edge - numbers.quantiles[3]))
    yield _high(
        column,
        f"{name} holds {value:.6g}, which is {numbers.farthest:.0f} quartile distances from its median "
        f"{numbers.quantiles[3]:.6g}",
        f"add `- {{kind: drop_outliers, columns: [{column.name}]}}` to data.clean; if it stands for a missing value, "
        "make it null in the source",
    )


def _about_shapes(column: ColumnReport, name: str) -> Iterator[QualityWarning]:
    found = dict(column.values)
    if column.kind == "image" and (bad := found.get("not an image", 0)):
        looked = sum(found.values())
        yield _high(
            column,
            f"{name}: {bad} of the {looked} images that were looked at cannot be read",
            "replace them, or allow a share of them by data.max_corrupt_share",
        )
    if column.kind == "array" and (len(found) > 1 or "shapes differ" in found):
        yield _high(
            column, f"{name} holds arrays of different shapes", "give every row an array of the same shape"
        )


def _is_filled(column: ColumnReport, report: QualityReport) -> bool:
    if report.filled is None:
        return column.kind in ("number", "boolean")
    return column.name in report.filled


def _is_id(column: ColumnReport, known: int) -> bool:
    if known < _ID_ROWS or column.distinct < _ID_SHARE * known:
        return False
    if column.kind == "text":
        return column.numbers is not None and column.numbers.mean <= _ID_CHARACTERS
    return column.kind == "number" and column.type.startswith(("int", "uint"))


def _features_without(name: str, report: QualityReport) -> str:
    """The line of the spec that names all other features, as far as a line holds them."""
    rest = [column.name for column in report.features if column.name != name]
    if not rest:
        return "name another column by data.features"
    return f"data.features: [{', '.join(rest[:_NAMED])}{', …' if len(rest) > _NAMED else ''}]"


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f", … ({len(names)} in all)" if len(names) > _NAMED else "")


def _high(column: ColumnReport, fact: str, mend: str) -> QualityWarning:
    return QualityWarning("warning", column.name, fact, mend)
