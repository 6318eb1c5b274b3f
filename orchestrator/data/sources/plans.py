"""How each kind of source is read: the one place that knows them all. Imports: pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from orchestrator.data.sources import columnar, lines
from orchestrator.data.sources.chunks import (
    CHUNK_BYTES,
    Plan,
    Unreadable,
    WholePlan,
    digest_lines,
    unreadable,
)
from orchestrator.data.sources.databases import plan_mongodb, plan_sql
from orchestrator.data.sources.files import File, find_files
from orchestrator.data.sources.images import plan_image_folder, plan_torchvision
from orchestrator.data.sources.made import plan_linear, plan_python, plan_sklearn
from orchestrator.data.sources.memo import Memo
from orchestrator.data.sources.tables import Format, plan_tables
from orchestrator.errors import SourceError
from orchestrator.spec.data import (
    ArrowSource,
    CsvSource,
    DataSection,
    ImageFolderSource,
    JsonSource,
    LinearSource,
    MongodbSource,
    NumpySource,
    ParquetSource,
    PythonSource,
    SklearnSource,
    SqlSource,
    TextSource,
    TorchvisionSource,
)


def plan_source(
    section: DataSection,
    chunk_bytes: int = CHUNK_BYTES,
    search_paths: Sequence[str] = (),
    memo: Path | None = None,
    *,
    paths: bool = False,
) -> Plan | WholePlan:
    """What is to be read, with fingerprints. Of most sources nothing is read for it but the hashes of files. With
    `paths`, the names of files count as content.

    Raises SourceError where a path does not exist or holds no data.
    """
    source, hashes = section.source, Memo(memo)
    match source:
        case SklearnSource():
            return plan_sklearn(source)
        case LinearSource():
            return plan_linear(source)
        case PythonSource():
            return plan_python(source, search_paths)
        case ImageFolderSource():
            return plan_image_folder(source, chunk_bytes, hashes)
        case TorchvisionSource():
            return plan_torchvision(source, hashes)
        case SqlSource():
            return plan_sql(source, hashes)
        case MongodbSource():
            return plan_mongodb(source)
        case NumpySource():
            return _plan_numpy(source, chunk_bytes, hashes, paths=paths)
    form = _format(source)
    return plan_tables(form, find_files(source.path, form.suffixes), chunk_bytes, hashes, paths=paths)


def _format(source: ParquetSource | ArrowSource | CsvSource | JsonSource | TextSource) -> Format:
    match source:
        case ParquetSource():
            return columnar.parquet()
        case ArrowSource():
            return columnar.arrow()
        case CsvSource():
            return lines.csv(source.delimiter)
        case JsonSource():
            return lines.json_lines()
        case TextSource():
            return lines.text(source.rows)


def _plan_numpy(source: NumpySource, chunk_bytes: int, memo: Memo, *, paths: bool) -> Plan | WholePlan:
    files = find_files(source.path, (".npz", ".npy"))
    single = [file for file in files if file.name.lower().endswith(".npy")]
    if not single:
        return plan_tables(columnar.npz(), files, chunk_bytes, memo, paths=paths)
    if len(single) < len(files):
        raise SourceError(
            "data.source.path: there are .npy and .npz files",
            "name one sort of them by a glob, as in data/*.npz",
        )
    lines_ = [f"{file.name} {digest}" for file, digest in zip(files, memo.hashes(files), strict=True)]
    return WholePlan(
        f"{files[0]} and its like ({len(files)} arrays)", digest_lines(lines_), partial(_read_arrays, files)
    )


def _read_arrays(files: Sequence[File]) -> pa.Table:
    arrays = {}
    for file in files:
        try:
            arrays[file.name.rpartition(".")[0]] = columnar.load_array(file)
        except (OSError, ValueError) as error:
            raise unreadable(Unreadable(str(file), f"as a NumPy array: {error}")) from error
    try:
        return columnar.array_table(arrays)
    except ValueError as error:
        raise SourceError(
            f"data.source.path: {error}", "give each array a row per sample, as x.npy and y.npy"
        ) from error
