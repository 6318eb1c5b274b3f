"""Formats of files that hold lines: CSV, JSON lines and text. Imports: pyarrow."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, Literal

import pyarrow as pa

from orchestrator.data.sources.chunks import Faults, Unreadable
from orchestrator.data.sources.cutting import csv_header, cut_csv, cut_lines
from orchestrator.data.sources.files import File, with_compressed
from orchestrator.data.sources.tables import Format, Part, Slice, no_cut


def csv(delimiter: str) -> Format:
    """Large files are cut between records. Types are inferred from all of a file."""
    read = partial(_read_csv, delimiter)
    return Format(
        name="CSV",
        unit="bytes",
        cut_key=delimiter,
        suffixes=with_compressed((".csv", ".tsv", ".txt")),
        cut=partial(_cut_csv, delimiter),
        schema=partial(_inferred, read),
        read=read,
        is_typed=False,
    )


def _inferred(read: Any, part: Slice) -> pa.Schema:
    # Records that cannot be read are left out here: reading the chunk tells of them.
    return read(part, None, []).schema


def _cut_csv(delimiter: str, file: File, chunk_bytes: int) -> list[Part]:
    if file.is_compressed:
        return []
    with file.open() as stream:
        return cut_csv(stream, chunk_bytes, delimiter)


def _read_csv(delimiter: str, part: Slice, schema: pa.Schema | None, faults: Faults) -> pa.Table:
    import pyarrow.csv as pcsv

    data = _content(part)
    if part.start:
        with part.file.open() as stream:
            data = csv_header(stream) + data
    if not data.strip():
        return pa.table({})
    types = {} if schema is None else dict(zip(schema.names, schema.types, strict=True))
    bad: list[Unreadable] = []

    def skip(row: Any) -> str:
        reason = f"expected {row.expected_columns} columns, got {row.actual_columns}: {row.text[:80]}"
        bad.append(Unreadable(str(part), f"as CSV: {reason}"))
        return "skip"

    def read(block_bytes: int) -> pa.Table:
        bad.clear()
        return pcsv.read_csv(
            pa.BufferReader(data),
            read_options=pcsv.ReadOptions(block_size=block_bytes),
            parse_options=pcsv.ParseOptions(
                delimiter=delimiter,
                newlines_in_values=True,
                invalid_row_handler=None if faults is None else skip,
            ),
            convert_options=pcsv.ConvertOptions(strings_can_be_null=True, column_types=types),
        )

    table = _in_blocks(read, len(data))
    if faults is not None:
        faults += bad
    return table


def _in_blocks(read: Any, size_bytes: int) -> pa.Table:
    """Read text in blocks, of which pyarrow parses several at once. A record that is longer than a block needs
    one block for all."""
    try:
        return read(2**20)
    except pa.ArrowInvalid as error:
        if "straddl" not in str(error) and "block size" not in str(error):
            raise
    return read(size_bytes + 1)


def _content(part: Slice) -> bytes:
    return part.file.read_plain() if part.stop is None else part.file.read_bytes(part.start, part.stop)


def json_lines() -> Format:
    """Large files are cut between lines. Types are inferred from all of a file."""
    return Format(
        name="JSON lines",
        unit="bytes",
        cut_key="",
        suffixes=with_compressed((".jsonl", ".ndjson", ".json")),
        cut=_cut_lines,
        schema=partial(_inferred, _read_json),
        read=_read_json,
        is_typed=False,
    )


def _cut_lines(file: File, chunk_bytes: int) -> list[Part]:
    if file.is_compressed:
        return []
    with file.open() as stream:
        return cut_lines(stream, chunk_bytes)


def _read_json(part: Slice, schema: pa.Schema | None, faults: Faults) -> pa.Table:
    data = _content(part).removeprefix(b"\xef\xbb\xbf")
    if data.lstrip()[:1] == b"[":
        raise ValueError("it holds an array, and must hold one object per line")
    try:
        return _parse_json(data, schema)
    except pa.ArrowInvalid:
        if faults is None:
            raise
    lines = []
    for number, line in enumerate(data.split(b"\n"), 1):
        try:
            fault = "" if not line.strip() or isinstance(json.loads(line), dict) else "it is no object"
        except ValueError as error:
            fault = str(error)
        if fault:
            where = f"line {number}" if part.start == 0 else f"line {number} from byte {part.start} on"
            faults.append(Unreadable(str(part), f"as JSON lines: {where}: {fault}"))
        else:
            lines.append(line)
    return _parse_json(b"\n".join(lines), schema)


def _parse_json(data: bytes, schema: pa.Schema | None) -> pa.Table:
    import pyarrow.json as pjson

    if not data.strip():
        return pa.table({})
    options = pjson.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior="infer" if schema is None else "ignore"
    )

    def read(block_bytes: int) -> pa.Table:
        return pjson.read_json(
            pa.BufferReader(data), pjson.ReadOptions(block_size=block_bytes), parse_options=options
        )

    return _in_blocks(read, len(data))


def text(rows: Literal["file", "line"]) -> Format:
    """One column `text`. Where rows are lines, large files are cut between them."""
    return Format(
        name="UTF-8 text",
        unit="bytes",
        cut_key=rows,
        suffixes=with_compressed((".txt", ".text", ".md")),
        cut=_cut_lines if rows == "line" else no_cut,
        schema=_text_schema,
        read=partial(_read_text, rows),
        is_typed=True,
    )


def _text_schema(part: Slice) -> pa.Schema:  # noqa: ARG001
    return pa.schema([("text", pa.large_string())])


def _read_text(rows: str, part: Slice, schema: pa.Schema | None, faults: Faults) -> pa.Table:  # noqa: ARG001
    content = _content(part).decode("utf-8" if part.start else "utf-8-sig")
    content = content.replace("\r\n", "\n").replace("\r", "\n")
    values = content.removesuffix("\n").split("\n") if rows == "line" else [content]
    return pa.table({"text": pa.array(values, pa.large_string())})
