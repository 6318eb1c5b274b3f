"""What a split must know of each row: a few bytes a row, taken chunk by chunk. Imports: numpy, pyarrow."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.data.columns import is_number, is_text, require_columns
from orchestrator.data.hashing import hash_column, hash_rows
from orchestrator.errors import SourceError
from orchestrator.spec.data.split import PATH_COLUMN, GivenFiles, GivenValues, Split

_PARTS = ("train", "val", "test")
_SHOWN = 5


def split_survey(
    split: Split, table: pa.Table, labels: NDArray[np.int64] | None = None
) -> dict[str, NDArray[Any]]:
    """The per-row columns that `split_rows` needs, each of shape (rows,); of several chunks, joined by name.

    `label` (int64) of a stratified split, as given in `labels`; `group` (uint64) and `key` (uint64), hashes of the
    values; `time` (int64 or float64); `part` (int8), the index in train, val, test. A random split needs none.
    For `hash` give the rows as the source has them: a value filled in from statistics would change as rows are
    appended, and move its row. Raises SourceError where a column is missing, null, or does not say what it should.
    """
    if split.kind == "stratified":
        return {} if labels is None else {"label": labels}
    if split.kind == "random":
        return {}
    known = [name for name in table.column_names if not name.startswith("__")]
    if split.files is not None:
        return {"part": _parts_of_files(table, split.files)}
    require_columns(known, split.columns, "data.split.by")
    if split.kind == "hash":
        return {"key": hash_rows(table, split.columns or known)}
    name = split.columns[0]
    column = table[name]
    missing = np.asarray(pc.is_null(column, nan_is_null=pa.types.is_floating(column.type)))
    if missing.any():
        raise SourceError(
            f"data.split.by: '{name}' is null in {int(missing.sum())} of {len(column)} rows",
            f"add a step to data.clean: {{kind: drop_nulls, columns: ['{name}']}}",
        )
    if split.kind == "grouped":
        return {"group": hash_column(column)}
    if split.kind == "time":
        return {"time": _times(column, name)}
    return {"part": _parts_of_values(column, name, split.values)}


def _times(column: pa.ChunkedArray, name: str) -> NDArray[Any]:
    """Numbers that grow with time; in the column's own unit, microseconds where it holds text."""
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if is_text(kind):
        column, kind = _parsed(column, name)
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind) or kind == pa.uint64():
        return np.asarray(column.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    if pa.types.is_date32(kind) or pa.types.is_time32(kind):
        column = column.cast(pa.int32())
    elif not (is_number(kind) or pa.types.is_temporal(kind)):
        raise SourceError(
            f"data.split.by: '{name}' has the type {kind}, which has no order in time",
            "name a column of dates, timestamps or numbers",
        )
    return np.asarray(column.cast(pa.int64()).to_numpy(), np.int64)


def _parsed(column: pa.ChunkedArray, name: str) -> tuple[pa.ChunkedArray, Any]:
    """Text as times in ISO 8601, with a zone or without."""
    if pa.types.is_string_view(column.type):
        column = column.cast(pa.large_string())
    for kind in (pa.timestamp("us"), pa.timestamp("us", "UTC")):
        try:
            return column.cast(kind), kind
        except pa.ArrowInvalid:
            continue
    example = column[0].as_py() if len(column) else ""
    raise SourceError(
        f"data.split.by: '{name}' holds text that is no date or time, as {example!r}",
        "write it as 2024-01-31 or 2024-01-31T12:00:00, or name a column of dates or numbers",
    )


def _parts_of_values(column: pa.ChunkedArray, name: str, values: GivenValues | None) -> NDArray[np.int8]:
    """The part that each row's value means."""
    codes: dict[object, int] = {}
    for code, part in enumerate(_PARTS):
        for value in getattr(values, part) if values else (part,):
            if codes.setdefault(value, code) != code or codes.setdefault(str(value), code) != code:
                raise SourceError(
                    f"data.split.values: {value!r} stands for two parts", "name each value under one part"
                )
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    found = np.empty(len(column), np.int8)
    start = 0
    for chunk in column.chunks:
        known = [codes.get(value, codes.get(str(value))) for value in chunk.dictionary.to_pylist()]
        indices = np.asarray(chunk.indices, np.int64)
        strange = [i for i in np.unique(indices).tolist() if known[i] is None]
        if strange:
            shown = ", ".join(repr(chunk.dictionary[i].as_py()) for i in strange[:_SHOWN])
            raise SourceError(
                f"data.split.by: '{name}' holds {shown}{', …' if len(strange) > _SHOWN else ''}, "
                "which names no part",
                "say by data.split.values which values are train, val and test"
                + (", or drop these rows in data.clean" if values else ""),
            )
        table = np.array([-1 if code is None else code for code in known], np.int8)
        found[start : start + len(chunk)] = table[indices]
        start += len(chunk)
    return found


def _parts_of_files(table: pa.Table, files: GivenFiles) -> NDArray[np.int8]:
    """The part whose patterns each row's file matches."""
    if PATH_COLUMN not in table.column_names:
        raise SourceError(
            "data.split.files: rows of this source come from no files", "name a column by data.split.by"
        )
    patterns = [[_pattern(text) for text in getattr(files, part)] for part in _PARTS]
    column = table[PATH_COLUMN]
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    pieces = [np.empty(0, np.int8)]
    for chunk in column.chunks:
        names = chunk.dictionary.to_pylist()
        codes = np.array([_part_of(name, patterns) for name in names], np.int8)
        pieces.append(codes[np.asarray(chunk.indices, np.int64)])
    return np.concatenate(pieces)


def _part_of(path: str, patterns: list[list[re.Pattern[str]]]) -> int:
    matching = [
        code for code, part in enumerate(patterns) if any(pattern.fullmatch(path) for pattern in part)
    ]
    if len(matching) == 1:
        return matching[0]
    if not matching:
        raise SourceError(
            f"data.split.files: no pattern matches the file '{path}'",
            "add one, or name fewer files by data.source.path",
        )
    raise SourceError(
        f"data.split.files: '{path}' matches patterns of {' and '.join(_PARTS[code] for code in matching)}",
        "let each file match the patterns of one part",
    )


def _pattern(text: str) -> re.Pattern[str]:
    """A glob as an expression: `**/` any folders, `*` and `?` within a name; a folder means all below it."""
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", text.strip("/"))
    wild = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(wild.get(piece, re.escape(piece)) for piece in pieces) + "(?:/.*)?", re.DOTALL)
