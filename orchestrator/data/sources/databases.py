"""Rows of databases: SQLite by the standard library, PostgreSQL by ADBC, MongoDB by pymongo.

Passwords come from an environment variable when a connection is opened; they are in no fingerprint and no
pickle, and errors are cleared of them. Imports: pyarrow; adbc_driver_postgresql and pymongo where they are
needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import urllib.parse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from orchestrator.data.sources.chunks import WholePlan, digest_lines
from orchestrator.data.sources.files import File
from orchestrator.data.sources.memo import Memo
from orchestrator.errors import SourceError
from orchestrator.imports import import_optional
from orchestrator.spec.data import MongodbSource, SqlSource

_FETCH_ROWS = 50_000


def plan_sql(source: SqlSource, memo: Memo) -> WholePlan:
    """Fingerprint: of SQLite the query and the content of the file; of PostgreSQL the rows themselves, which are
    read for it."""
    if source.url.startswith("sqlite"):
        file = Path(source.url.removeprefix("sqlite:///")).expanduser().absolute()
        if not file.is_file():
            raise SourceError(
                f"data.source.url: {file} does not exist", "name the database's file: sqlite:///FILE"
            )
        log = file.with_name(f"{file.name}-wal")  # what was written last may be there only
        lines = [source.query, *memo.hashes([_as_file(path) for path in (file, log) if path.is_file()])]
        return WholePlan(
            f"{source.url}: {_short(source.query)}",
            digest_lines(lines),
            partial(_read_sqlite, source.query, file),
        )
    table = _read_postgresql(source)
    return WholePlan(
        f"{source.url}: {_short(source.query)}",
        _hash_rows(table),
        partial(_read_postgresql, source),
        table,
    )


def plan_mongodb(source: MongodbSource) -> WholePlan:
    """Fingerprint: the documents themselves, which are read for it."""
    table = _read_mongodb(source)
    name = f"{source.url}: {source.database}.{source.collection}"
    return WholePlan(name, _hash_rows(table), partial(_read_mongodb, source), table)


def _as_file(path: Path) -> File:
    stat = path.stat()
    return File(str(path), path.name, stat.st_size, stat.st_mtime_ns)


def _short(query: str) -> str:
    line = " ".join(query.split())
    return line if len(line) <= 60 else f"{line[:59]}…"


def _hash_rows(table: pa.Table) -> str:
    """SHA-256 (hex) of the values, in order, and their types."""
    digest = hashlib.sha256()
    with pa.PythonFile(_HashSink(digest), "w") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in table.combine_chunks().to_batches(max_chunksize=_FETCH_ROWS):
            writer.write_batch(batch)
    return digest.hexdigest()


class _HashSink:
    """A file that only hashes what is written."""

    closed = False

    def __init__(self, digest: Any) -> None:
        self._digest = digest

    def write(self, data: Any) -> int:
        self._digest.update(data)
        return len(data)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


def _read_sqlite(query: str, file: Path) -> pa.Table:
    with contextlib.closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as connection:
        try:
            cursor = connection.execute(query)
            if cursor.description is None:
                raise SourceError("data.source.query gives no rows to read", "write a SELECT")
            names = [column[0] for column in cursor.description]
            batches = list(_column_batches(cursor, len(names)))
        except sqlite3.Error as error:
            raise SourceError(f"data.source.query: {file}: {error}", "correct the query") from error
    columns = [[value for batch in batches for value in batch[index]] for index in range(len(names))]
    return pa.Table.from_arrays(
        [_column(name, column) for name, column in zip(names, columns, strict=True)], names
    )


def _column_batches(cursor: sqlite3.Cursor, columns: int) -> Iterator[list[tuple[Any, ...]]]:
    while rows := cursor.fetchmany(_FETCH_ROWS):
        yield list(zip(*rows, strict=True)) if columns else []


def _column(name: str, values: Sequence[Any]) -> pa.Array:
    """Here each value has a type of its own."""
    try:
        return pa.array(values)
    except (pa.ArrowException, OverflowError) as error:
        raise SourceError(
            f"data.source: column '{name}' holds values of several types: {error}",
            "give them one type, in SQL by CAST(… AS REAL), or leave the column out",
        ) from error


def _read_postgresql(source: SqlSource) -> pa.Table:
    dbapi = import_optional(
        "adbc_driver_postgresql.dbapi", extra="sql", purpose="data.source.url postgresql://"
    )
    url, password = _with_password(source.url, source.password_env)
    try:
        with dbapi.connect(url) as connection, connection.cursor() as cursor:
            cursor.execute(source.query)
            table = cursor.fetch_arrow_table()
    except dbapi.Error as error:
        raise SourceError(
            f"data.source: {source.url}: {_cleared(str(error), password)}",
            "correct the query, the address or the password (data.source.password_env names its variable)",
        ) from None  # what caused it may hold the password
    return pa.table([_known(column) for column in table.columns], names=table.column_names)


def _known(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Types that only PostgreSQL knows come as text; its exact decimals become float64."""
    kind = column.type
    if not isinstance(kind, pa.OpaqueType):
        return column
    column = pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type)
    return column.cast(pa.float64()) if kind.type_name == "numeric" else column


def _read_mongodb(source: MongodbSource) -> pa.Table:
    pymongo = import_optional("pymongo", extra="mongodb", purpose="data.source.kind mongodb")
    url, password = _with_password(source.url, source.password_env)
    try:
        with pymongo.MongoClient(url) as client:
            found = client[source.database][source.collection].find(
                source.filter, {"_id": 0}, sort=[("_id", 1)]
            )
            documents = list(found)
    except (pymongo.errors.PyMongoError, ValueError) as error:
        raise SourceError(
            f"data.source: {source.url}: {_cleared(str(error), password)}",
            "correct the address, the filter or the password (data.source.password_env names its variable)",
        ) from None  # what caused it may hold the password
    names = dict.fromkeys(name for document in documents for name in document)
    columns = {name: [_plain(document.get(name)) for document in documents] for name in names}
    return pa.table({name: _column(name, values) for name, values in columns.items()})


def _plain(value: Any) -> Any:
    """A value without types that only MongoDB knows: decimals become float, ids and the like text."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not type(value).__module__.startswith("bson") or isinstance(value, int | str | bytes):
        return value
    return float(value.to_decimal()) if hasattr(value, "to_decimal") else str(value)


def _with_password(url: str, variable: str | None) -> tuple[str, str]:
    """The URL as a driver takes it, and the password. Raises SourceError where the variable is not set."""
    if variable is None:
        return url, ""
    password = os.environ.get(variable)
    if not password:
        raise SourceError(
            f"data.source.password_env: the environment variable {variable} is not set",
            f"write secrets: {{{variable}: ${{env:{variable}}}}}, and set it where you start the job",
        )
    scheme, _, rest = url.partition("://")
    user, at, place = rest.partition("@")
    if not at:
        raise SourceError("data.source.url names no user", f"write {scheme}://USER@{rest}")
    return f"{scheme}://{user}:{urllib.parse.quote(password, safe='')}@{place}", password


def _cleared(text: str, password: str) -> str:
    for form in (password, urllib.parse.quote(password, safe="")):
        text = text.replace(form, "***") if form else text
    return text
