"""A source as chunks: what each reads, and how tables of several files become one.

Imports: pyarrow.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from orchestrator.errors import SourceError

CHUNK_BYTES = 64 * 2**20
"""How much of a source, as it lies on disk, one chunk reads by default."""

PATH_FIELD = pa.field("__path__", pa.dictionary(pa.int32(), pa.string()))
"""The column that tells the file of each row, from the folder on that the source names; only where it is asked for."""


@dataclass(frozen=True)
class Unreadable:
    """A file, or a record of one, that cannot be read; `place` names it."""

    place: str
    reason: str

    def __str__(self) -> str:
        return f"{self.place}: {self.reason}"


Faults = list[Unreadable] | None
"""Where reading tells what it left out; None: it leaves out nothing, and raises SourceError instead."""

Load = Callable[[pa.Schema, Faults], pa.Table]
"""Reads a chunk: exactly the columns of a schema, in its types. Picklable."""


@dataclass(frozen=True)
class Chunk:
    """Some of a source's rows, to be read here or, pickled, on another machine that sees the same files.

    `name` is for messages. `fingerprint` (hex) is of the content that is read, not of the schema, which files
    that are added may widen.
    """

    name: str
    fingerprint: str
    schema: pa.Schema = field(repr=False, compare=False)
    load: Load = field(repr=False, compare=False)
    kept: pa.Table | None = field(default=None, repr=False, compare=False)
    """The rows, where they had to be read to learn the schema; never pickled."""

    def read(self, faults: Faults = None) -> pa.Table:
        """The rows, in the source's schema.

        Raises SourceError that names the file and the reason where something cannot be read. With `faults`,
        files and records that cannot be read are left out and told there instead.
        """
        return self.kept if self.kept is not None else self.load(self.schema, faults)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"kept": None}


@dataclass(frozen=True)
class Source:
    """A source that was looked at: its columns, and what is to be read, in order."""

    schema: pa.Schema
    chunks: tuple[Chunk, ...]


@dataclass(frozen=True)
class Piece:
    """A chunk to be, before the schema of the whole source is known."""

    name: str
    fingerprint: str
    load: Load = field(repr=False, compare=False)


@dataclass(frozen=True)
class Plan:
    """How a source is read in pieces."""

    pieces: tuple[Piece, ...]
    learn_schema: Callable[[Sequence[str] | None], tuple[pa.Schema, Sequence[str]]]
    """Takes the names of the columns to look at (None: all); gives these, and the names of all there are."""

    def open(self, wanted: Sequence[str] | None, *, paths: bool = False) -> tuple[Source, Sequence[str]]:
        """The source with the wanted of its columns in the wanted order (None: all), and the names of all
        columns that there are. Columns that are wanted and not there are left out. `paths` adds PATH_FIELD
        behind them.

        Raises SourceError where nothing of it can be read.
        """
        schema, names = self.learn_schema(wanted)
        schema = choose(schema, wanted)
        schema = schema.append(PATH_FIELD) if paths else schema
        return Source(schema, tuple(Chunk(p.name, p.fingerprint, schema, p.load) for p in self.pieces)), names


@dataclass(frozen=True)
class WholePlan:
    """A source that is read at once, and must be read to learn its columns."""

    name: str
    fingerprint: str
    read: Callable[[], pa.Table]
    """Picklable."""
    table: pa.Table | None = None
    """The rows, where they had to be read for the fingerprint."""

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return (Piece(self.name, self.fingerprint, partial(_load_whole, self.read)),)

    def open(self, wanted: Sequence[str] | None, *, paths: bool = False) -> tuple[Source, Sequence[str]]:  # noqa: ARG002
        """As that of `Plan`, but rows come from no files that could be told apart. The chunk keeps the rows."""
        table = self.table if self.table is not None else self.read()
        require_distinct(table.column_names, self.name)
        schema = choose(plain(table.schema), wanted)
        (piece,) = self.pieces
        chunk = Chunk(piece.name, piece.fingerprint, schema, piece.load, conform(table, schema))
        return Source(schema, (chunk,)), table.column_names


def _load_whole(read: Callable[[], pa.Table], schema: pa.Schema, faults: Faults) -> pa.Table:  # noqa: ARG001
    return conform(read(), schema)


def unreadable(fault: Unreadable) -> SourceError:
    return SourceError(
        f"data.source.path: {fault.place} cannot be read {fault.reason}",
        "mend or remove it, or name files of the right kind",
    )


def require_distinct(names: Sequence[str], place: str) -> None:
    """Raises SourceError where two columns have one name."""
    for name in names:
        if names.count(name) > 1:
            raise SourceError(
                f"data.source: {place} has several columns '{name}'", "give each column its own name"
            )


def choose(schema: pa.Schema, wanted: Sequence[str] | None) -> pa.Schema:
    """The wanted fields, in the wanted order; None for all."""
    if wanted is None:
        return schema
    return pa.schema([schema.field(name) for name in wanted if name in schema.names])


def plain(schema: pa.Schema) -> pa.Schema:
    """Names and types only."""
    return pa.schema([pa.field(column.name, column.type) for column in schema])


def unify(schemas: Iterable[tuple[str, pa.Schema]]) -> pa.Schema:
    """The columns of all files together: those of the first file, then those that later ones add, with numbers
    promoted to a type that holds both. Takes the name of each file with its schema.

    Raises SourceError that names file, column and both types where two types do not go together.
    """
    types: dict[str, Any] = {}
    seen_in: dict[str, str] = {}
    for place, schema in schemas:
        require_distinct(schema.names, place)
        for column in schema:
            before = types.get(column.name, pa.null())
            together = promote(before, column.type)
            if together is None:
                raise SourceError(
                    f"data.source.path: column '{column.name}' is {column.type} in {place}, and {before} in "
                    f"{seen_in[column.name]}",
                    "give it one type in all files, or name files of one data set",
                )
            types[column.name] = together
            if together != before or column.name not in seen_in:
                seen_in[column.name] = place
    return pa.schema(list(types.items()))


def promote(one: Any, other: Any) -> Any:
    """The type that holds the values of both; None where there is none."""
    if one == other:
        return one
    for dictionary, plain_one in ((one, other), (other, one)):
        if pa.types.is_dictionary(dictionary):
            return promote(dictionary.value_type, plain_one)
    if pa.types.is_null(one) or pa.types.is_null(other):
        return other if pa.types.is_null(one) else one
    try:
        both = pa.unify_schemas(
            [pa.schema([("x", one)]), pa.schema([("x", other)])], promote_options="permissive"
        )
    except pa.ArrowException:
        return None
    return both.field(0).type


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with exactly the columns of the schema: missing ones null, others in its types.

    Raises ArrowInvalid where a value does not fit.
    """
    if table.schema.equals(schema, check_metadata=True):
        return table
    names = set(table.column_names)
    return pa.table(
        [
            _cast(table[column.name], column.type) if column.name in names else _nulls(table, column.type)
            for column in schema
        ],
        schema=schema,
    )


def _cast(column: pa.ChunkedArray, kind: Any) -> pa.ChunkedArray:
    if column.type == kind:
        return column
    # A large whole number rounds when it meets fractions, as in every other tool.
    rounds = pa.types.is_integer(column.type) and pa.types.is_floating(kind)
    return column.cast(kind, safe=not rounds)


def _nulls(table: pa.Table, kind: Any) -> pa.Array:
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, pa.nulls(table.num_rows, kind.storage_type))
    return pa.nulls(table.num_rows, kind)


def with_paths(table: pa.Table, paths: Sequence[str], schema: pa.Schema) -> pa.Table:
    """The table with the files of its rows behind its columns, where the schema has them: the path of each row, or
    one of all."""
    if PATH_FIELD.name not in schema.names:
        return table
    texts = pa.array(paths, pa.string()) if len(paths) != 1 else pa.repeat(paths[0], table.num_rows)
    return table.append_column(PATH_FIELD, texts.dictionary_encode())


def concat(tables: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables(tables) if tables else pa.Table.from_batches([], schema)


def digest_lines(lines: Iterable[str]) -> str:
    """SHA-256 (hex) of lines of text."""
    return hashlib.sha256("\n".join(lines).encode("utf-8", errors="replace")).hexdigest()
