"""Build prepared data: read, clean, split, fit, write. Imports: numpy, pyarrow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.data.cleaning.clean import Cleaned, clean, refit_fills
from orchestrator.data.columns import array_values
from orchestrator.data.features.documents import fitting_texts, make_samples, require_samples, split_documents
from orchestrator.data.features.images import decode_images
from orchestrator.data.features.pipeline import Pipeline
from orchestrator.data.features.schema import (
    array_matrix,
    categorical_columns,
    describe_features,
    require_complete,
)
from orchestrator.data.features.statistics import fold_numbers, row_keys
from orchestrator.data.features.survey import fit_features, survey_features
from orchestrator.data.features.target import Target, resolve_target
from orchestrator.data.features.tokens import fit_tokenizer
from orchestrator.data.prepared.prepared import EXAMPLE, FORMAT_VERSION, MANIFEST, Manifest, Prepared
from orchestrator.data.sources.fingerprint import hash_file
from orchestrator.data.sources.read import read_source
from orchestrator.data.split import split_rows
from orchestrator.errors import DataError, SourceError
from orchestrator.spec.data import DataSection
from orchestrator.storage import Folder

_EXAMPLE_ROWS = 5
_EXAMPLE_CHARACTERS = 1000


@dataclass(frozen=True)
class _Samples:
    """What models learn from, all parts together: `features` (n, *stored_shape), the target, `source_rows`
    (n,), and the positions that make up each part; with the pipeline fitted on the training part."""

    features: NDArray[Any]
    target: Target
    source_rows: NDArray[np.int64]
    parts: Mapping[str, NDArray[np.int64]]
    pipeline: Pipeline
    corrupt_images: int = 0


def build(
    section: DataSection, *, task: str, seed: int, key: str, fingerprint: str, folder: Path
) -> Manifest:
    """Prepare a section's data into an existing, empty folder; the manifest is written last.

    Raises SourceError where the data does not fit the section or the task, DataError where too many images
    are corrupt.
    """
    raw = read_source(section)
    schema = describe_features(raw, section)
    cleaned = clean(raw, section.clean, features=schema.columns, target=section.target)
    categorical = categorical_columns(section, schema)
    require_complete(
        cleaned.table, [name for name in schema.columns if name not in categorical], section.target
    )
    pipeline = Pipeline(schema, image_size=section.image.size, image_mode=section.image.mode)
    if task == "language_modeling":
        samples = _stream_samples(cleaned, pipeline, section, seed)
    else:
        samples = _row_samples(cleaned, pipeline, section, task, seed)
    target, parts, fitted = samples.target, samples.parts, samples.pipeline
    counts = {name: target.class_counts(rows) for name, rows in parts.items()}
    files = [_write_part(folder, name, samples) for name in parts]
    files.append(_write_example(folder, raw.select(schema.columns), samples.source_rows[parts["train"]]))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        key=key,
        fingerprint=fingerprint,
        task=target.task,
        target=section.target,
        classes=fitted.classes,
        num_outputs=target.num_outputs,
        feature_kind=schema.kind,
        vocab_size=fitted.vocab_size,
        input_shape=fitted.input_shape,
        stored_shape=fitted.stored_shape,
        rows_read=raw.num_rows,
        rows={name: len(rows) for name, rows in parts.items()},
        class_counts={name: count for name, count in counts.items() if count is not None} or None,
        cleaning=list(cleaned.report),
        corrupt_images=samples.corrupt_images,
        pipeline=fitted.to_dict(),
        files={file.name: _facts(file) for file in files},
    )
    Folder.at(folder).write_json(MANIFEST, manifest.to_dict())
    return manifest


def raw_rows(section: DataSection, prepared: Prepared, part: str) -> pa.Table:
    """The rows of a part as the source gives them, read anew, in the part's order: the feature columns only.

    What a user would send for prediction; `prepared.part(part).gather` holds the matching targets. Of a
    language model, the documents in which the samples begin.
    """
    columns = list(prepared.pipeline.raw_schema.columns)
    return read_source(section).select(columns).take(pa.array(prepared.part(part).source_rows()))


def _row_samples(
    cleaned: Cleaned, pipeline: Pipeline, section: DataSection, task: str, seed: int
) -> _Samples:
    """A sample per row, for every task that has a target."""
    schema, before = pipeline.raw_schema, cleaned.table.num_rows
    features: NDArray[Any] | None = None
    if schema.kind == "encoded_image":
        cleaned, features = _decoded(cleaned, pipeline, section)
    if section.target is None:
        raise SourceError(
            "data.target is missing", "name the column to learn, or write train.task: language_modeling"
        )
    target = resolve_target(cleaned.table[section.target], task, section.target)
    parts = split_rows(cleaned.table.num_rows, section.split, seed, target.class_indices)
    train = parts["train"]
    table, fills = refit_fills(cleaned, train)
    pipeline = replace(
        pipeline,
        fills={name: value for name, value in fills.items() if name in schema.columns},
        classes=list(target.classes) if target.classes is not None else None,
    )
    if schema.kind == "array":
        features = _arrays(table, pipeline)
    is_train = np.isin(np.arange(table.num_rows), train)
    keys = row_keys(cleaned.rows, seed=seed)
    partial = survey_features(section, pipeline, table, is_train, target.values, keys, encoded=features)
    pipeline = fit_features(section, pipeline, [partial])
    if features is None:
        features = pipeline.encode_training(table, np.where(is_train, fold_numbers(keys), -1))
    return _Samples(features, target, cleaned.rows, parts, pipeline, before - cleaned.table.num_rows)


def _stream_samples(cleaned: Cleaned, pipeline: Pipeline, section: DataSection, seed: int) -> _Samples:
    """Samples of a language model, cut from the stream of each part's texts."""
    if section.text is None or section.target is not None or section.target_transform is not None:
        raise SourceError(
            "train.task language_modeling learns the next token of a text column",
            "write data.text, and leave data.target and data.target_transform out",
        )
    name = pipeline.raw_schema.columns[0]
    table, fills = refit_fills(cleaned, np.arange(0))
    documents = split_documents(table[name].to_pylist(), section.split, seed)
    tokenizer = fit_tokenizer(
        section.text, fitting_texts(documents["train"], section.text), language_model=True
    )
    cut = {part: make_samples(pieces, tokenizer, section.text) for part, pieces in documents.items()}
    require_samples(cut, section.split, section.text)
    ends = np.cumsum([0, *(len(samples.rows) for samples in cut.values())])
    values = np.concatenate([samples.targets for samples in cut.values()])
    return _Samples(
        features=np.concatenate([samples.features for samples in cut.values()]),
        target=Target("language_modeling", None, values, tokenizer.vocab_size),
        source_rows=cleaned.rows[np.concatenate([samples.rows for samples in cut.values()])],
        parts={part: np.arange(start, stop) for part, (start, stop) in zip(cut, pairwise(ends), strict=True)},
        pipeline=replace(pipeline, fills=fills, tokenizer=tokenizer),
    )


def _decoded(cleaned: Cleaned, pipeline: Pipeline, section: DataSection) -> tuple[Cleaned, NDArray[np.uint8]]:
    """Decode the image column, skipping corrupt images up to the share that the section allows."""
    column = cleaned.table[pipeline.raw_schema.columns[0]]
    pixels, corrupt = decode_images(column, pipeline.image_size, pipeline.image_mode)
    allowed = section.image.max_corrupt_share
    if len(corrupt) == len(pixels) or len(corrupt) > allowed * len(pixels):
        # Rows are named as the source counts them, not as cleaning left them.
        named = [str(replace(image, row=int(cleaned.rows[image.row]))) for image in corrupt[:3]]
        raise DataError(
            f"{len(corrupt)} of {len(pixels)} images cannot be decoded, and data.image.max_corrupt_share is "
            f"{allowed:g}: {'; '.join(named)}{'; …' if len(corrupt) > 3 else ''}",
            "replace these images, or allow a share of them to be skipped",
        )
    keep = np.ones(len(pixels), dtype=bool)
    keep[[image.row for image in corrupt]] = False
    return (cleaned, pixels) if keep.all() else (cleaned.keep(keep), pixels[keep])


def _arrays(table: pa.Table, pipeline: Pipeline) -> NDArray[Any]:
    name = pipeline.raw_schema.columns[0]
    try:
        return array_matrix(array_values(table[name]), pipeline.stored_shape)
    except ValueError as error:
        raise SourceError(
            f"feature '{name}': {error}", "give every row an array of the same shape"
        ) from error


def _write_part(folder: Path, name: str, samples: _Samples) -> Path:
    """One record batch, uncompressed, so that the columns can be read in place."""
    rows = samples.parts[name]
    batch = pa.record_batch(
        {
            "features": _fixed_width(samples.features[rows]),
            "target": _fixed_width(samples.target.values[rows]),
            "row": pa.array(samples.source_rows[rows]),
        }
    )
    return _write_arrow(folder / f"{name}.arrow", batch)


def _fixed_width(values: NDArray[Any]) -> pa.Array:
    """A column of numbers, or of fixed-size lists where there is more than one number per row."""
    if values.ndim == 1:
        return pa.array(values)
    flat = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, int(np.prod(values.shape[1:])))


def _write_example(folder: Path, raw: pa.Table, train_rows: NDArray[np.int64]) -> Path:
    """The first rows of the training part; of a text column, their beginnings."""
    example = raw.take(pa.array(np.unique(train_rows)[:_EXAMPLE_ROWS]))
    for index, field in enumerate(example.schema):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            cut = pc.utf8_slice_codeunits(example[field.name], 0, _EXAMPLE_CHARACTERS)
            example = example.set_column(index, field.name, cut)
    return _write_arrow(folder / EXAMPLE, example.combine_chunks().to_batches()[0])


def _write_arrow(file: Path, batch: pa.RecordBatch) -> Path:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return file


def _facts(file: Path) -> dict[str, Any]:
    stat = file.stat()
    return {"bytes": stat.st_size, "sha256": hash_file(file), "mtime_ns": stat.st_mtime_ns}
