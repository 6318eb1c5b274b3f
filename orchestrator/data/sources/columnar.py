"""Formats of files that hold columns: Parquet, Arrow and NumPy. Imports: numpy, pyarrow."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.sources.chunks import Faults
from orchestrator.data.sources.files import File
from orchestrator.data.sources.rows import to_table
from orchestrator.data.sources.tables import Format, Part, Slice, no_cut


def parquet() -> Format:
    """Large files are cut by row groups."""
    return Format(
        name="Parquet",
        unit="row groups",
        cut_key="",
        suffixes=(".parquet", ".pq"),
        cut=_cut_parquet,
        schema=_parquet_schema,
        read=_read_parquet,
        is_typed=True,
    )


def _cut_parquet(file: File, chunk_bytes: int) -> list[Part]:
    import pyarrow.parquet as pq

    with file.open() as stream:
        metadata = pq.ParquetFile(stream).metadata
    rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
    bytes_per_row = file.size_bytes / max(sum(rows), 1)
    return _cut_units([count * bytes_per_row for count in rows], chunk_bytes)


def _cut_units(sizes: Sequence[float], chunk_bytes: int) -> list[Part]:
    """Consecutive units of known sizes, as many together as make up a chunk."""
    ends, size = [0], 0.0
    for index, unit in enumerate(sizes):
        if size and size + unit > chunk_bytes:
            ends.append(index)
            size = 0.0
        size += unit
    return [(start, stop, "") for start, stop in pairwise([*ends, len(sizes)])]


def _parquet_schema(part: Slice) -> pa.Schema:
    import pyarrow.parquet as pq

    with part.file.open() as stream:
        return _named_schema(pq.ParquetFile(stream).schema_arrow)


def _read_parquet(part: Slice, schema: pa.Schema | None, faults: Faults) -> pa.Table:  # noqa: ARG001
    import pyarrow.parquet as pq

    with part.file.open() as stream:
        reader = pq.ParquetFile(stream, pre_buffer=part.file.filesystem is not None)
        names = reader.schema_arrow.names
        columns = None if schema is None else [name for name in schema.names if name in names]
        groups = range(reader.metadata.num_row_groups) if part.stop is None else range(part.start, part.stop)
        return _named_classes(reader.read_row_groups(list(groups), columns=columns))


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Hugging Face stores class labels as integers, and their names in the schema: the names by column."""
    stored = (schema.metadata or {}).get(b"huggingface")
    features = (json.loads(stored).get("info") or {}).get("features") or {} if stored else {}
    return {
        name: feature["names"]
        for name, feature in features.items()
        if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        if name in schema.names and pa.types.is_integer(schema.field(name).type)
    }


def _named_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of what `_named_classes` gives."""
    names = _class_names(schema)
    return pa.schema([(field.name, pa.string() if field.name in names else field.type) for field in schema])


def _named_classes(table: pa.Table) -> pa.Table:
    """The table with the names of classes in the place of their numbers."""
    for name, classes in _class_names(table.schema).items():
        known = pc.and_(pc.greater_equal(table[name], 0), pc.less(table[name], len(classes)))
        indices = pc.if_else(known, table[name], pa.scalar(None, table[name].type))  # -1 means: not labelled
        labels = pc.take(pa.array(classes, pa.string()), indices)
        table = table.set_column(table.column_names.index(name), name, labels)
    return table.replace_schema_metadata(None)


def arrow() -> Format:
    """Large files are cut by record batches. A stream has to be gone through to find them."""
    return Format(
        name="Arrow IPC or Feather",
        unit="record batches",
        cut_key="",
        suffixes=(".arrow", ".feather", ".ipc", ".arrows"),
        cut=_cut_arrow,
        schema=_arrow_schema,
        read=_read_arrow,
        is_typed=True,
    )


def _open_arrow(file: File) -> Any:
    """A reader of the file or stream format. Local files are mapped: what is not needed is not read."""
    stream = pa.memory_map(file.path) if file.filesystem is None and file.size_bytes else file.open()
    is_file = stream.read(6) == b"ARROW1"
    stream.seek(0)
    return pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)


def _cut_arrow(file: File, chunk_bytes: int) -> list[Part]:
    reader = _open_arrow(file)
    is_file = isinstance(reader, pa.ipc.RecordBatchFileReader)
    count = reader.num_record_batches if is_file else sum(1 for _ in reader)
    return _cut_units([file.size_bytes / max(count, 1)] * count, chunk_bytes)


def _arrow_schema(part: Slice) -> pa.Schema:
    return _named_schema(_open_arrow(part.file).schema)


def _read_arrow(part: Slice, schema: pa.Schema | None, faults: Faults) -> pa.Table:  # noqa: ARG001
    reader = _open_arrow(part.file)
    if part.stop is None:
        table = reader.read_all()
    elif isinstance(reader, pa.ipc.RecordBatchFileReader):
        batches = [reader.get_batch(index) for index in range(part.start, part.stop)]
        table = pa.Table.from_batches(batches, reader.schema)
    else:
        batches = [
            batch for index, batch in zip(range(part.stop), reader, strict=False) if index >= part.start
        ]
        table = pa.Table.from_batches(batches, reader.schema)
    table = _named_classes(table)
    return (
        table
        if schema is None
        else table.select([name for name in schema.names if name in table.column_names])
    )


def npz() -> Format:
    """Arrays of .npz files, by their keys."""
    return Format(
        name="NumPy arrays",
        unit="rows",
        cut_key="",
        suffixes=(".npz",),
        cut=no_cut,
        schema=_npz_schema,
        read=_read_npz,
        is_typed=False,
    )


def _npz_schema(part: Slice) -> pa.Schema:
    return _read_npz(part, None, None).schema


def _read_npz(part: Slice, schema: pa.Schema | None, faults: Faults) -> pa.Table:  # noqa: ARG001
    try:
        with np.load(io.BytesIO(part.file.read_bytes()), allow_pickle=False) as arrays:
            return array_table({name: arrays[name] for name in arrays.files})
    except Exception as error:  # zipfile and zlib raise errors of their own for damaged files
        raise ValueError(str(error)) from error


def load_array(file: File) -> Any:
    """The array of a .npy file. Raises OSError or ValueError where it is none, or holds Python objects."""
    return np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)


def array_table(arrays: Mapping[str, Any]) -> pa.Table:
    """Arrays with a row per sample as columns. Raises ValueError where they do not fit together."""
    lengths = {name: array.shape[0] if array.ndim else None for name, array in arrays.items()}
    if None in lengths.values() or len(set(lengths.values())) > 1:
        told = ", ".join(f"{name} {arrays[name].shape}" for name in lengths)
        raise ValueError(f"arrays do not have the same number of rows: {told}")
    return to_table(arrays)
