"""Sources of table files: which chunk reads what of which file, and the columns of all files together.

A `Format` tells how one kind of file is cut, described and read; all else is here. Imports: pyarrow.
"""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa

from orchestrator.data.sources.chunks import (
    PATH_FIELD,
    Faults,
    Piece,
    Plan,
    Unreadable,
    choose,
    concat,
    conform,
    digest_lines,
    plain,
    promote,
    require_distinct,
    unify,
    unreadable,
    with_paths,
)
from orchestrator.data.sources.files import File
from orchestrator.data.sources.grouping import group_files
from orchestrator.data.sources.memo import Memo
from orchestrator.errors import SourceError

_NULL_PARTITION = "__HIVE_DEFAULT_PARTITION__"
_READ_ERRORS = (pa.ArrowException, OSError, ValueError)


@dataclass(frozen=True)
class Slice:
    """What is read of a file: from `start` to `stop` in the units that its format cuts by; a `stop` of None
    is for all of the file."""

    file: File
    start: int = 0
    stop: int | None = None

    def __str__(self) -> str:
        return str(self.file)


Part = tuple[int, int, str]
"""A slice as cutting gives it: start, stop, and a hash of its content; an empty one where only the file has one."""


@dataclass(frozen=True)
class Format:
    """How one kind of table file is read. Functions raise ArrowException, OSError or ValueError where a file cannot
    be read. They, and their bound arguments, can be pickled."""

    name: str
    """For messages."""
    unit: str
    """What slices count."""
    cut_key: str
    """What besides the size of chunks decides how a file is cut."""
    suffixes: tuple[str, ...]
    cut: Callable[[File, int], list[Part]]
    """A large file in slices of about so many bytes; nothing where it cannot be cut."""
    schema: Callable[[Slice], pa.Schema]
    read: Callable[[Slice, pa.Schema | None, Faults], pa.Table]
    """The columns of the schema that the file has, preferably in its types; all of them for None."""
    is_typed: bool
    """Files tell their own types. Else they are inferred from the content, and all of it must be read for that."""


def no_cut(file: File, chunk_bytes: int) -> list[Part]:  # noqa: ARG001
    """For formats whose files are always read whole."""
    return []


def plan_tables(
    form: Format, files: Sequence[File], chunk_bytes: int, memo: Memo, *, paths: bool = False
) -> Plan:
    """How files of a format are read: small ones in groups, large ones in slices. With `paths`, the names of files
    count as content."""
    partitions = _partition_schema(files)
    groups = group_files(files, chunk_bytes)
    cuts = _cut_large(form, groups, chunk_bytes, memo)
    hashes = _hash_files([file for file in files if not _is_hashed(cuts.get(file, []))], memo)
    pieces: list[Piece] = []
    slices: list[Slice] = []
    for group in groups:
        parts = cuts.get(group[0], [])
        cut = [[Slice(group[0], start, stop)] for start, stop, _ in parts] or [list(map(Slice, group))]
        for index, chunk in enumerate(cut):
            told = [
                f"{_content(part, parts[index] if parts else None, hashes)} "
                f"{part.file.relative if paths else _partition_path(part.file)}"
                for part in chunk
            ]
            load = partial(_load, form, chunk, partitions)
            pieces.append(Piece(_name(form, chunk), digest_lines(told), load))
            slices += chunk
    return Plan(tuple(pieces), partial(_learn_schema, form, slices, partitions))


def _cut_large(
    form: Format, groups: Sequence[Sequence[File]], chunk_bytes: int, memo: Memo
) -> dict[File, list[Part]]:
    """The slices of each file that is large enough to be cut, and can be."""

    def cut(file: File) -> list[Part]:
        try:
            return form.cut(file, chunk_bytes)
        except _READ_ERRORS:  # reading it will tell
            return []

    large = [group[0] for group in groups if len(group) == 1 and group[0].size_bytes >= chunk_bytes]
    # Cutting lines holds some chunks in memory: few files at once.
    found = memo.facts(large, f"|{form.name}|{form.cut_key}|{chunk_bytes}", cut, threads=2)
    return {file: parts for file, parts in zip(large, found, strict=True) if len(parts) > 1}


def _is_hashed(parts: Sequence[Part]) -> bool:
    return bool(parts) and all(digest for _, _, digest in parts)


def _content(part: Slice, cut: Part | None, hashes: Mapping[File, str]) -> str:
    """Tells the content of a slice."""
    if cut is None:
        return hashes[part.file]
    start, stop, digest = cut
    return digest or f"{hashes[part.file]} {start} {stop}"


def _hash_files(files: Sequence[File], memo: Memo) -> dict[File, str]:
    try:
        return dict(zip(files, memo.hashes(files), strict=True))
    except OSError as error:
        raise SourceError(f"data.source.path: {error}", "check the rights of the file") from error


def _load(
    form: Format, slices: Sequence[Slice], partitions: pa.Schema, schema: pa.Schema, faults: Faults
) -> pa.Table:
    tables = []
    for part in slices:
        found: Faults = None if faults is None else []
        try:
            table = form.read(part, _own_columns(schema, part.file), found)
            table = _with_partitions(table, part.file, partitions)
            tables.append(conform(with_paths(table, [part.file.relative], schema), schema))
        except _READ_ERRORS as error:
            found = [_fault(form, part, error)]
            if faults is None:
                raise unreadable(found[0]) from error
        if faults is not None:
            faults += found or []
    return concat(tables, schema)


def _fault(form: Format, part: Slice, error: Exception) -> Unreadable:
    return Unreadable(str(part), f"as {form.name}: {error}")


def _learn_schema(
    form: Format, slices: Sequence[Slice], partitions: pa.Schema, wanted: Sequence[str] | None
) -> tuple[pa.Schema, list[str]]:
    """The wanted columns of all files, and the names of all columns. Files that cannot be read are left out, as
    long as there are others: reading them raises."""
    if form.is_typed:
        slices = list({part.file.path: Slice(part.file) for part in slices}.values())

    def look(part: Slice) -> pa.Schema | Unreadable:
        try:
            return _with_partition_fields(form.schema(part), part.file, partitions)
        except _READ_ERRORS as error:
            return _fault(form, part, error)

    # What is inferred is read whole: one at a time, pyarrow uses all cores for each.
    with ThreadPoolExecutor(8 if form.is_typed else 1) as pool:
        found = list(pool.map(look, slices))
    by_file: dict[str, pa.Schema] = {}
    names: dict[str, None] = {}
    for part, schema in zip(slices, found, strict=True):
        if not isinstance(schema, Unreadable):
            require_distinct(schema.names, str(part))
            names |= dict.fromkeys(schema.names)
            schema = choose(plain(schema), wanted)
            before = by_file.get(str(part))
            by_file[str(part)] = schema if before is None else _within_file(before, schema)
    if not by_file:
        raise unreadable(next(fault for fault in found if isinstance(fault, Unreadable)))
    return unify(by_file.items()), list(names)


def _within_file(one: pa.Schema, other: pa.Schema) -> pa.Schema:
    """Types that were inferred from two slices of one file. As with all of it at once, what is of no common
    type is text."""
    types = {column.name: column.type for column in one}
    for column in other:
        before = types.get(column.name, pa.null())
        types[column.name] = promote(before, column.type) or _moment(before, column.type) or pa.string()
    return pa.schema(list(types.items()))


def _moment(one: Any, other: Any) -> Any:
    """The type of two columns of dates or times of different resolution; None where they are no such."""
    both = (one, other)
    if not all(pa.types.is_date(kind) or (pa.types.is_timestamp(kind) and kind.tz is None) for kind in both):
        return None
    units = [kind.unit if pa.types.is_timestamp(kind) else "s" for kind in both]
    return pa.timestamp("ns" if "ns" in units else "s")


def _name(form: Format, slices: Sequence[Slice]) -> str:
    first = slices[0]
    if first.stop is not None:
        return f"{first} ({form.unit} {first.start} to {first.stop})"
    return str(first) if len(slices) == 1 else f"{first} to {slices[-1].file.relative} ({len(slices)} files)"


def _partition_path(file: File) -> str:
    """The folders of a file that stand for columns: `year=2026/month=11`."""
    return "/".join(part for part in file.relative.split("/")[:-1] if "=" in part)


def _partition_values(file: File) -> dict[str, str | None]:
    pairs = [part.partition("=") for part in _partition_path(file).split("/") if part]
    return {
        name: None if value == _NULL_PARTITION else urllib.parse.unquote(value) for name, _, value in pairs
    }


def _partition_schema(files: Sequence[File]) -> pa.Schema:
    """The columns that folders stand for, int64 where all values are whole numbers, else strings."""
    values: dict[str, set[str]] = {}
    for path in dict.fromkeys(map(_partition_path, files)):
        for part in filter(None, path.split("/")):
            name, _, value = part.partition("=")
            values.setdefault(name, set()).update({value} - {_NULL_PARTITION})
    return pa.schema(
        [
            (name, pa.int64() if found and all(map(_is_whole, found)) else pa.string())
            for name, found in values.items()
        ]
    )


def _is_whole(text: str) -> bool:
    return re.fullmatch(r"-?[0-9]{1,18}", text) is not None


def _own_columns(schema: pa.Schema | None, file: File) -> pa.Schema | None:
    """The columns to read from a file, without those that its folders stand for; None for all of them."""
    others = {*_partition_values(file), PATH_FIELD.name}
    own = [column for column in schema or () if column.name not in others]
    return pa.schema(own) if own else None


def _with_partitions(table: pa.Table, file: File, partitions: pa.Schema) -> pa.Table:
    """The table with its folders' columns behind its own, in the place of its own of the same name."""
    for name, value in _partition_values(file).items():
        column = partitions.field(name)
        scalar = pa.scalar(int(value) if value and pa.types.is_integer(column.type) else value, column.type)
        if name in table.column_names:
            table = table.drop_columns(name)
        table = table.append_column(column, pa.repeat(scalar, table.num_rows))
    return table


def _with_partition_fields(schema: pa.Schema, file: File, partitions: pa.Schema) -> pa.Schema:
    """The schema of what `_with_partitions` gives."""
    names = _partition_values(file)
    return pa.schema(
        [*(column for column in schema if column.name not in names), *map(partitions.field, names)]
    )
