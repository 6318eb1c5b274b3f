"""Look at one chunk of rows for the quality report; partials of chunks merge. Imports: numpy, pillow, pyarrow."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.data.columns import (
    array_values,
    image_bytes,
    is_array,
    is_encoded_image,
    is_list,
    is_number,
    is_text,
    null_rows,
    numbers,
    require_columns,
)
from orchestrator.data.hashing import Hashes, hash_column, join_hashes
from orchestrator.data.quality.report import Kind
from orchestrator.data.quality.sketches import MAX_VALUES, Distinct, Rows, Values
from orchestrator.data.splitmix import place_keys
from orchestrator.data.statistics import Moments, Sample
from orchestrator.spec.data import DataSection

_SAMPLE_ROWS = 10_000
_SAMPLE_NUMBERS = 5_000_000
_IMAGES_LOOKED_AT = 200
_LONGEST_TEXT = 200
_BLOCK = 1 << 20


@dataclass(frozen=True)
class ColumnPartial:
    """What a chunk says of one column. `moments` are of the finite numbers (of text, of its lengths in characters;
    of times, in seconds since 1970; of arrays, of all their elements)."""

    kind: Kind
    type: str
    nulls: int
    infinite: int
    moments: Moments
    distinct: Distinct
    values: Values
    """Of texts, booleans and numbers; of images their sizes and modes, of arrays their shapes."""

    def merge(self, other: ColumnPartial) -> ColumnPartial:
        return ColumnPartial(
            self.kind,
            self.type,
            self.nulls + other.nulls,
            self.infinite + other.infinite,
            self.moments.merge(other.moments),
            self.distinct.merge(other.distinct),
            self.values.merge(other.values),
        )


@dataclass(frozen=True)
class QualityPartial:
    """What chunks say of the rows. Bounded, whatever the number of rows."""

    target: str | None
    task: str
    text: bool
    """The features are one column of free text."""
    filled: tuple[str, ...] | None
    """The columns whose nulls cleaning fills; None: all numeric ones."""
    rows: NDArray[np.int64]
    """Of train, val and test, and those that were dropped, shape (4,)."""
    columns: dict[str, ColumnPartial]
    classes: tuple[Values, Values, Values]
    """The target's values in train, val and test."""
    duplicates: Rows
    sample: Sample
    """Its columns are, by `("hash", name)`, the values' hashes and, by `("number", name)`, numbers, NaN where there is
    none; each (rows,)."""

    def join(self, other: QualityPartial) -> QualityPartial:
        """What both say together; the chunk of `self` comes first."""
        train, val, test = (
            mine.merge(others) for mine, others in zip(self.classes, other.classes, strict=True)
        )
        return QualityPartial(
            self.target,
            self.task,
            self.text,
            self.filled,
            self.rows + other.rows,
            {name: column.merge(other.columns[name]) for name, column in self.columns.items()},
            (train, val, test),
            self.duplicates.merge(other.duplicates),
            self.sample.merge(other.sample),
        )


def survey_quality(
    table: pa.Table, parts: NDArray[np.int8], section: DataSection, *, task: str = "auto", chunk: int = 0
) -> QualityPartial:
    """Look at the features and the target of a chunk.

    `parts` (rows,) say where each row goes: 0 train, 1 val, 2 test, −1 dropped; what is dropped is only counted.
    `task` is the spec's `train.task`; `chunk` is the chunk's number, by which rows are drawn for the sample. Raises
    SourceError where a column of the section is missing.
    """
    known = [name for name in table.column_names if not name.startswith("__")]
    features = section.features or [name for name in known if name != section.target]
    names = [*features, *([section.target] if section.target else [])]
    require_columns(known, names, "data.features")
    table = pa.table({name: _computable(table[name]) for name in names})
    dropped = int((parts < 0).sum())
    place = np.flatnonzero(parts >= 0)
    if dropped:
        table = table.filter(pa.array(parts >= 0))
    parts = parts[place]
    hashes = {name: hash_column(table[name]) for name in names}
    again = {name: hash_column(table[name], seed=1) for name in features}
    rows = np.stack(
        [join_hashes({name: hashes[name] for name in features}, len(parts)), join_hashes(again, len(parts))],
        axis=1,
    )
    looks = {name: _look(table[name], hashes[name]) for name in names}
    return QualityPartial(
        section.target,
        task,
        section.text is not None,
        _filled(section),
        np.array([*np.bincount(parts, minlength=3), dropped], np.int64),
        {name: look[0] for name, look in looks.items()},
        _classes(table, section.target, parts),
        Rows.of(rows, parts),
        _sample(place, chunk, {name: look[1] for name, look in looks.items()}, hashes),
    )


def kind_of(kind: Any) -> Kind:
    """What a column of this Arrow type is to the report."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_boolean(kind) or is_text(kind):
        return "text" if is_text(kind) else "boolean"
    if is_number(kind):
        return "number"
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return "time"
    if is_encoded_image(kind):
        return "image"
    return "array" if is_array(kind) else "other"


def _computable(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Arrow has types that it can hold but hardly compute with."""
    if column.type == pa.float16():
        return column.cast(pa.float32())
    if pa.types.is_string_view(column.type):
        return column.cast(pa.large_string())
    return column.cast(pa.large_binary()) if pa.types.is_binary_view(column.type) else column


def _look(column: pa.ChunkedArray, hashes: Hashes) -> tuple[ColumnPartial, NDArray[np.float64] | None]:
    """A column's figures, and its numbers (rows,) where it has one per row."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind, infinite, values = kind_of(column.type), 0, Values()
    per_row = _numbers(column, kind)
    moments, distinct = Moments.none(), Distinct.of(hashes)
    if per_row is not None:
        finite = per_row[np.isfinite(per_row)]
        moments, infinite = Moments.of(finite[:, None]), int(np.isinf(per_row).sum())
    if kind == "number" and distinct.count > MAX_VALUES:
        values = Values(complete=False)  # a measure: none of its values matters
    elif kind in ("number", "boolean", "text"):
        values = _counted(column)
    elif kind == "image":
        values = _image_sizes(image_bytes(column))
    nulls = int(column.null_count)
    if kind == "number":
        nulls = int(null_rows(column).sum())
    elif kind == "array":
        moments, infinite, values = _elements(column)
    return ColumnPartial(kind, str(column.type), nulls, infinite, moments, distinct, values), per_row


def _numbers(column: pa.ChunkedArray, kind: Kind) -> NDArray[np.float64] | None:
    """One number per row, NaN where it is null; None for kinds that have none."""
    if kind in ("number", "boolean"):
        return numbers(column)
    if kind == "text":
        return numbers(pc.utf8_length(column))
    if kind == "time":
        stamps = column.cast(pa.timestamp("us", getattr(column.type, "tz", None)), safe=False).cast(
            pa.int64()
        )
        return numbers(stamps) / 1e6
    return None


def _counted(column: pa.ChunkedArray) -> Values:
    """The values' counts; of very many values those of the most frequent ones."""
    counts = pc.value_counts(column)
    complete = len(counts) <= MAX_VALUES + 2  # a null and a NaN are none
    if not complete:
        order = np.argsort(-np.asarray(counts.field("counts")), kind="stable")[:MAX_VALUES]
        counts = counts.take(pa.array(order))
    pairs = zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True)
    return Values.of(_by_text(pairs), complete)


def _by_text(pairs: Any) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for value, count in pairs:
        if value is not None and value == value:  # NaN is not
            counts[value_text(value)] += count
    return dict(counts)


def value_text(value: object) -> str:
    """How the report writes a value: whole numbers without a point, long text cut."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2.0**53:
        return str(int(value))
    text = str(value)
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}…"


def _image_sizes(column: pa.ChunkedArray) -> Values:
    """Sizes and modes of the first images, by their headers alone."""
    from PIL import Image, UnidentifiedImageError

    counts: Counter[str] = Counter()
    for item in column[:_IMAGES_LOOKED_AT]:
        if (data := item.as_py()) is None:
            continue
        try:
            with Image.open(io.BytesIO(data)) as image:
                counts[f"{image.width}×{image.height} {image.mode}"] += 1
        except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
            counts["not an image"] += 1
    return Values.of(counts, complete=len(column) <= _IMAGES_LOOKED_AT)


def _elements(column: pa.ChunkedArray) -> tuple[Moments, int, Values]:
    """Of all elements of the arrays of equal shape; nothing, where shapes differ."""
    if column.null_count:
        column = column.filter(pc.is_valid(column))
    if not len(column):
        return Moments.none(), 0, Values()
    try:
        values = array_values(column)
    except ValueError:
        return Moments.none(), 0, Values.of({"shapes differ": len(column)})
    shape = "×".join(map(str, values.shape[1:]))
    flat, moments, infinite = values.reshape(-1), Moments.none(), 0
    for start in range(
        0, len(flat), _BLOCK
    ):  # as float64 all at once, pictures would take eight times their bytes
        block = flat[start : start + _BLOCK].astype(np.float64)
        moments = moments.merge(Moments.of(block[np.isfinite(block)][:, None]))
        infinite += int(np.isinf(block).sum())
    return moments, infinite, Values.of({shape: len(column)})


def _classes(table: pa.Table, target: str | None, parts: NDArray[np.int8]) -> tuple[Values, Values, Values]:
    """The target's values, counted per part; of lists, their elements."""
    if target is None:
        return Values(), Values(), Values()
    column, counted = table[target], []
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type.value_type if is_list(column.type) else column.type
    if kind_of(kind) not in ("number", "boolean", "text") or not len(column):
        return Values(), Values(), Values()
    for part in range(3):
        chosen = column.filter(pa.array(parts == part))
        if is_list(chosen.type):
            chosen = pc.list_flatten(chosen)
        if pa.types.is_dictionary(chosen.type):
            chosen = chosen.cast(chosen.type.value_type)
        counted.append(_counted(chosen))
    return counted[0], counted[1], counted[2]


def _sample(
    place: NDArray[np.int64],
    chunk: int,
    per_row: dict[str, NDArray[np.float64] | None],
    hashes: dict[str, Hashes],
) -> Sample:
    limit = max(1000, min(_SAMPLE_ROWS, _SAMPLE_NUMBERS // max(1, len(hashes))))
    columns: dict[tuple[str, str], NDArray[Any]] = {("hash", name): values for name, values in hashes.items()}
    columns |= {("number", name): values for name, values in per_row.items() if values is not None}
    return Sample.of(place_keys(place, chunk=chunk), columns, limit)


def _filled(section: DataSection) -> tuple[str, ...] | None:
    """The columns that cleaning fills, None for all numeric ones."""
    steps: Sequence[Any] = [step for step in section.clean if step.kind.startswith("fill")]
    named: list[list[str]] = [getattr(step, "columns", None) or [] for step in steps]
    if not all(named):
        return None
    return tuple(name for columns in named for name in columns)
