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
from orchestrator.data.cleaning.corrupt import CorruptLog, CorruptRecord
from orchestrator.data.columns import array_values
from orchestrator.data.features import transforms
from orchestrator.data.features.documents import cut_samples, joined, require_samples, split_documents
from orchestrator.data.features.images import decode_images
from orchestrator.data.features.pipeline import Pipeline
from orchestrator.data.features.schema import array_matrix, describe_features, number_matrix, require_complete
from orchestrator.data.features.target import Target, resolve_target
from orchestrator.data.features.tokens import fit_tokenizer
from orchestrator.data.features.transforms import Affine
from orchestrator.data.prepared.manifest import EXAMPLE, FORMAT_VERSION, MANIFEST, Manifest, file_facts
from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.prepared.shards import write_arrow, write_shard
from orchestrator.data.sources.read import read_source
from orchestrator.data.split import split_rows
from orchestrator.errors import SourceError
from orchestrator.spec.data import DataSection, Standardize
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
    require_complete(cleaned.table, schema.columns, section.target)
    pipeline = Pipeline(schema, image_size=section.image.size, image_mode=section.image.mode)
    if task == "language_modeling":
        samples = _stream_samples(cleaned, pipeline, section, seed)
    else:
        samples = _row_samples(cleaned, pipeline, section, task, seed)
    target, parts, fitted = samples.target, samples.parts, samples.pipeline
    counts = {name: target.class_counts(rows) for name, rows in parts.items()}
    values = (samples.features, target.values, samples.source_rows)
    shards = {
        name: [write_shard(folder, name, 0, *(column[rows] for column in values))] if len(rows) else []
        for name, rows in parts.items()
    }
    example = _write_example(folder, raw.select(schema.columns), samples.source_rows[parts["train"]])
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
        shards={name: [shard.entry for shard in written] for name, written in shards.items()},
        files={shard.file: shard.facts for written in shards.values() for shard in written}
        | {EXAMPLE: file_facts(example)},
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
        target_transform=_fit_target(section, target, train),
        classes=list(target.classes) if target.classes is not None else None,
    )
    if section.text is not None:
        texts = table[schema.columns[0]].to_pylist()
        tokenizer = fit_tokenizer(section.text, (texts[row] for row in train))
        pipeline = replace(pipeline, tokenizer=tokenizer)
        features = tokenizer.rows(texts, section.text.length)
    else:
        features = features if features is not None else _features(table, pipeline)
        pipeline = replace(pipeline, transforms=tuple(transforms.fit(section.transforms, features[train])))
    return _Samples(features, target, cleaned.rows, parts, pipeline, before - cleaned.table.num_rows)


def _stream_samples(cleaned: Cleaned, pipeline: Pipeline, section: DataSection, seed: int) -> _Samples:
    """Samples of a language model, cut from the stream of each part's texts."""
    if section.text is None or section.target is not None or section.target_transform is not None:
        raise SourceError(
            "train.task language_modeling learns the next token of a text column",
            "write data.text, and leave data.target and data.target_transform out",
        )
    length, name = section.text.length, pipeline.raw_schema.columns[0]
    table, fills = refit_fills(cleaned, np.arange(0))
    documents = split_documents(table[name].to_pylist(), section.split, seed)
    tokenizer = fit_tokenizer(section.text, joined(documents["train"]), keep_end=True)
    cut = {part: cut_samples(pieces, tokenizer, length) for part, pieces in documents.items()}
    require_samples(cut, section.split, length)
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
    # Rows are named as the source counts them, not as cleaning left them.
    records = [CorruptRecord(int(cleaned.rows[image.row]), image.path, image.reason) for image in corrupt]
    CorruptLog.of(len(pixels), records).require_share(section.max_corrupt_share, "images")
    keep = np.ones(len(pixels), dtype=bool)
    keep[[image.row for image in corrupt]] = False
    return (cleaned, pixels) if keep.all() else (cleaned.keep(keep), pixels[keep])


def _features(table: pa.Table, pipeline: Pipeline) -> NDArray[Any]:
    schema = pipeline.raw_schema
    if schema.kind == "table":
        return number_matrix(table, schema.columns)
    name = schema.columns[0]
    try:
        return array_matrix(array_values(table[name]), pipeline.stored_shape)
    except ValueError as error:
        raise SourceError(
            f"feature '{name}': {error}", "give every row an array of the same shape"
        ) from error


def _fit_target(section: DataSection, target: Target, train: NDArray[np.int64]) -> Affine | None:
    if section.target_transform is None:
        return None
    if target.task != "regression":
        raise SourceError(
            f"data.target_transform: the target '{section.target}' holds classes ({target.task})",
            "leave target_transform out",
        )
    # As float64, so that mean and deviation do not lose digits to the target's offset.
    return transforms.fit([_STANDARDIZE], target.values[train].astype(np.float64)[:, None])[0]


_STANDARDIZE = Standardize(kind="standardize")


def _write_example(folder: Path, raw: pa.Table, train_rows: NDArray[np.int64]) -> Path:
    """The first rows of the training part; of a text column, their beginnings."""
    example = raw.take(pa.array(np.unique(train_rows)[:_EXAMPLE_ROWS]))
    for index, field in enumerate(example.schema):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            cut = pc.utf8_slice_codeunits(example[field.name], 0, _EXAMPLE_CHARACTERS)
            example = example.set_column(index, field.name, cut)
    return write_arrow(folder / EXAMPLE, example.combine_chunks().to_batches()[0])
