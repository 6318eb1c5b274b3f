"""Read a source into a pyarrow Table of raw rows: one function per kind.

Images lie in one column: arrays as fixed-shape tensors, files as Hugging Face's `{bytes, path}` structs.
Imports: numpy, pyarrow; scikit-learn and pandas where a source needs them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from orchestrator.data.columns import require_columns
from orchestrator.data.sources.files import TEXT_SUFFIXES, class_images, data_files, existing_path
from orchestrator.errors import SourceError, UserCodeError
from orchestrator.imports import load_object
from orchestrator.spec.data import (
    CsvSource,
    DataSection,
    ImageFolderSource,
    LinearSource,
    ParquetSource,
    PythonSource,
    SklearnSource,
    TextSource,
)

PARQUET_SUFFIXES = (".parquet", ".pq")
CSV_SUFFIXES = (".csv", ".tsv", ".txt")


def read_source(section: DataSection) -> pa.Table:
    """The raw rows, with at least the columns that the section names, in the order of the source.

    Raises SourceError where it cannot be read, has no rows or lacks a named column, and UserCodeError where
    the user's own function raises.
    """
    source = section.source
    table = _READERS[source.kind](source, _wanted_columns(section))
    _require_distinct(table.column_names)
    if not table.num_rows:
        raise SourceError(f"the source ({source.kind}) has no rows", "look at data.source")
    require_columns(table.column_names, [section.target] if section.target else [], "data.target")
    require_columns(table.column_names, section.features or [], "data.features")
    return table


def _require_distinct(names: Sequence[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise SourceError(f"the source has several columns '{name}'", "give each column its own name")


def _wanted_columns(section: DataSection) -> list[str] | None:
    """The columns to read; None for all of them."""
    if section.features is None:
        return None
    named = [name for step in section.clean for name in step.columns or []]
    return list(dict.fromkeys([*section.features, *([section.target] if section.target else []), *named]))


def _read_sklearn(source: SklearnSource, wanted: Sequence[str] | None) -> pa.Table:  # noqa: ARG001
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{source.name}")()
    if source.name == "digits":
        images = pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(bunch.images))
        return pa.table({"image": images, "label": pa.array(bunch.target.astype(np.int64))})
    columns = {str(name): pa.array(bunch.data[:, i]) for i, name in enumerate(bunch.feature_names)}
    if "target_names" in bunch:
        columns["target"] = pa.array([str(name) for name in bunch.target_names]).take(pa.array(bunch.target))
    else:
        columns["target"] = pa.array(bunch.target)
    return pa.table(columns)


def _read_linear(source: LinearSource, wanted: Sequence[str] | None) -> pa.Table:  # noqa: ARG001
    generator = np.random.default_rng(source.seed)
    x = generator.standard_normal((source.rows, len(source.coefficients)))
    y = x @ np.array(source.coefficients) + generator.normal(0.0, source.noise, source.rows)
    return pa.table({**{f"x{i + 1}": x[:, i] for i in range(x.shape[1])}, "y": y})


def _read_image_folder(source: ImageFolderSource, wanted: Sequence[str] | None) -> pa.Table:  # noqa: ARG001
    images = class_images(source.path)
    root = existing_path(source.path)
    files = [file for group in images.values() for file in group]
    labels = [name for name, group in images.items() for _ in group]
    encoded = pa.array([_file_bytes(file) for file in files], pa.large_binary())
    paths = pa.array([file.relative_to(root).as_posix() for file in files])
    return pa.table(
        {"image": pa.StructArray.from_arrays([encoded, paths], ["bytes", "path"]), "label": labels}
    )


def _file_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise SourceError(
            f"data.source.path: {file} cannot be read: {error.strerror}", "check its rights"
        ) from error


def _read_parquet(source: ParquetSource, wanted: Sequence[str] | None) -> pa.Table:
    import pyarrow.parquet as pq

    def read(file: Path) -> pa.Table:
        reader = pq.ParquetFile(file)
        require_columns(reader.schema_arrow.names, wanted or [], f"data ({file.name})")
        return _named_classes(reader.read(columns=wanted))

    return _read_files(data_files(source.path, PARQUET_SUFFIXES), read, "Parquet")


def _read_csv(source: CsvSource, wanted: Sequence[str] | None) -> pa.Table:
    import pyarrow.csv as pcsv

    def read(file: Path) -> pa.Table:
        table = pcsv.read_csv(
            file,
            parse_options=pcsv.ParseOptions(delimiter=source.delimiter, newlines_in_values=True),
            convert_options=pcsv.ConvertOptions(strings_can_be_null=True),
        )
        require_columns(table.column_names, wanted or [], f"data ({file.name})")
        return table.select(wanted) if wanted else table

    return _read_files(data_files(source.path, CSV_SUFFIXES), read, "CSV")


def _read_text(source: TextSource, wanted: Sequence[str] | None) -> pa.Table:  # noqa: ARG001
    def read(file: Path) -> pa.Table:
        text = file.read_text(encoding="utf-8-sig")
        rows = text.removesuffix("\n").split("\n") if source.rows == "line" else [text]
        return pa.table({"text": pa.array(rows, pa.large_string())})

    return _read_files(data_files(source.path, TEXT_SUFFIXES), read, "UTF-8 text")


def _read_files(files: Sequence[Path], read: Callable[[Path], pa.Table], what: str) -> pa.Table:
    tables = []
    for file in files:
        try:
            tables.append(read(file))
        except (pa.ArrowException, OSError, ValueError) as error:
            raise SourceError(
                f"data.source.path: {file} cannot be read as {what}: {error}", "name files of the right kind"
            ) from error
    for table in tables:
        _require_distinct(table.column_names)
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except pa.ArrowException as error:
        raise SourceError(
            f"data.source.path: the {len(files)} files do not have the same columns: {error}",
            "name files of one data set",
        ) from error


def _named_classes(table: pa.Table) -> pa.Table:
    """Hugging Face stores class labels as integers, their names in the schema: make them strings."""
    stored = (table.schema.metadata or {}).get(b"huggingface")
    features = (json.loads(stored).get("info") or {}).get("features") or {} if stored else {}
    for name, feature in features.items():
        is_label = isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        if not is_label or name not in table.column_names or not pa.types.is_integer(table[name].type):
            continue
        known = pc.and_(pc.greater_equal(table[name], 0), pc.less(table[name], len(feature["names"])))
        indices = pc.if_else(known, table[name], pa.scalar(None, table[name].type))  # -1 means: not labelled
        labels = pa.chunked_array([pa.array(feature["names"]).take(indices.combine_chunks())])
        table = table.set_column(table.column_names.index(name), name, labels)
    return table.replace_schema_metadata(None)


def _read_python(source: PythonSource, wanted: Sequence[str] | None) -> pa.Table:  # noqa: ARG001
    function = load_object(source.function)
    try:
        result = function(**source.args)
    except Exception as error:
        raise UserCodeError(
            f"data.source.function: {source.function} raised {type(error).__name__}: {error}",
            "mend the function, or its data.source.args",
        ) from error
    try:
        return to_table(result)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise SourceError(
            f"data.source.function: what {source.function} returned is no table: {error}",
            "return a pyarrow Table, a pandas DataFrame, or a dict of arrays of equal length",
        ) from error


def to_table(rows: object) -> pa.Table:
    """A pyarrow Table of a Table, a pandas DataFrame, a dict of arrays or a list of row dicts.

    Arrays of two or more dimensions become fixed-shape tensor columns. Raises TypeError for anything else,
    ValueError and ArrowException for columns that do not fit together.
    """
    if isinstance(rows, pa.Table):
        return rows
    if isinstance(rows, pa.RecordBatch):
        return pa.Table.from_batches([rows])
    pandas = sys.modules.get("pandas")  # a DataFrame cannot come from anywhere else
    if pandas is not None and isinstance(rows, pandas.DataFrame):
        rows = {name: rows[name] for name in rows.columns}
    if isinstance(rows, Mapping):
        return pa.table({str(name): _column(values) for name, values in rows.items()})
    if isinstance(rows, list) and rows and all(isinstance(row, Mapping) for row in rows):
        return pa.Table.from_pylist([dict(row) for row in rows])
    raise TypeError(f"a {type(rows).__name__} is neither a table, a DataFrame nor a dict of arrays")


def _column(values: Any) -> Any:
    if isinstance(values, pa.Array | pa.ChunkedArray):
        return values
    if isinstance(values, list) and values and isinstance(values[0], np.ndarray):
        values = np.stack(values)
    array = values if isinstance(values, list | tuple) else np.asarray(values)
    if isinstance(array, np.ndarray) and array.dtype == object and array.size:
        if isinstance(array.flat[0], np.ndarray):  # a DataFrame holds arrays as objects
            array = np.stack(list(array))
        else:
            return pa.array(array, from_pandas=True)
    if isinstance(array, np.ndarray) and array.ndim > 1:
        return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(array))
    return pa.array(array)


_READERS: dict[str, Callable[[Any, Sequence[str] | None], pa.Table]] = {
    "sklearn": _read_sklearn,
    "linear": _read_linear,
    "image_folder": _read_image_folder,
    "parquet": _read_parquet,
    "csv": _read_csv,
    "text": _read_text,
    "python": _read_python,
}
