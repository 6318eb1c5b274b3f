"""Build prepared data: read, clean, split, fit, write. Imports: numpy, pyarrow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.data import transforms
from orchestrator.data.clean import Cleaned, Fill, clean, refit_fills
from orchestrator.data.columns import array_values
from orchestrator.data.features import array_matrix, describe_features, number_matrix, require_complete
from orchestrator.data.fingerprint import hash_file
from orchestrator.data.images import decode_images
from orchestrator.data.pipeline import Pipeline
from orchestrator.data.prepared import EXAMPLE, FORMAT_VERSION, MANIFEST, Manifest, Prepared
from orchestrator.data.sources import read_source
from orchestrator.data.split import split_rows
from orchestrator.data.target import Target, resolve_target
from orchestrator.errors import DataError, SourceError
from orchestrator.spec.data import DataSection, Standardize
from orchestrator.storage import Folder

_EXAMPLE_ROWS = 5


def build(
    section: DataSection, *, task: str, seed: int, key: str, fingerprint: str, folder: Path
) -> Manifest:
    """Prepare a section's data into an existing, empty folder; the manifest is written last.

    Raises SourceError where the data does not fit the section or the task, DataError where too many images
    are corrupt.
    """
    raw = read_source(section)
    schema = describe_features(raw, section)
    pipeline = Pipeline(schema, image_size=section.image.size, image_mode=section.image.mode)
    cleaned = clean(raw, section.clean, features=schema.columns, target=section.target)
    require_complete(cleaned.table, schema.columns, section.target)
    pixels: NDArray[Any] | None = None
    corrupt_images = 0
    if schema.kind == "encoded_image":
        before = cleaned.table.num_rows
        cleaned, pixels = _decoded(cleaned, pipeline, section)
        corrupt_images = before - len(pixels)
    target = resolve_target(cleaned.table[section.target], task, section.target)
    parts = split_rows(
        cleaned.table.num_rows, section.split, seed, target.values if target.classes is not None else None
    )
    table, fills = refit_fills(cleaned, parts["train"])
    features = pixels if pixels is not None else _features(table, pipeline)
    fitted = _fit(pipeline, section, fills, features[parts["train"]], target, parts["train"])
    files = [_write_part(folder, name, features, target, cleaned.rows, rows) for name, rows in parts.items()]
    files.append(_write_example(folder, raw.select(schema.columns), cleaned.rows[parts["train"]]))
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        key=key,
        fingerprint=fingerprint,
        task=target.task,
        target=section.target,
        classes=fitted.classes,
        num_outputs=target.num_outputs,
        feature_kind=schema.kind,
        input_shape=fitted.input_shape,
        stored_shape=fitted.stored_shape,
        rows_read=raw.num_rows,
        rows={name: len(rows) for name, rows in parts.items()},
        class_counts=_class_counts(target, parts),
        cleaning=list(cleaned.report),
        corrupt_images=corrupt_images,
        pipeline=fitted.to_dict(),
        files={file.name: _facts(file) for file in files},
    )
    Folder.at(folder).write_json(MANIFEST, manifest.to_dict())
    return manifest


def raw_rows(section: DataSection, prepared: Prepared, part: str) -> pa.Table:
    """The rows of a part as the source gives them, read anew, in the part's order: the feature columns only.

    What a user would send for prediction; `prepared.part(part).gather` holds the matching targets.
    """
    columns = list(prepared.pipeline.raw_schema.columns)
    return read_source(section).select(columns).take(pa.array(prepared.part(part).source_rows()))


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


def _fit(
    pipeline: Pipeline,
    section: DataSection,
    fills: Mapping[str, Fill],
    features: NDArray[Any],
    target: Target,
    train: NDArray[np.int64],
) -> Pipeline:
    """The pipeline with everything that is learned from the training part."""
    scaled = None
    if section.target_transform is not None:
        if target.task != "regression":
            raise SourceError(
                f"data.target_transform: the target '{section.target}' holds classes ({target.task})",
                "leave target_transform out",
            )
        # As float64, so that mean and deviation do not lose digits to the target's offset.
        scaled = transforms.fit([_STANDARDIZE], target.values[train].astype(np.float64)[:, None])[0]
    return replace(
        pipeline,
        fills={name: value for name, value in fills.items() if name in pipeline.raw_schema.columns},
        transforms=tuple(transforms.fit(section.transforms, features)),
        target_transform=scaled,
        classes=list(target.classes) if target.classes is not None else None,
    )


_STANDARDIZE = Standardize(kind="standardize")


def _write_part(
    folder: Path,
    name: str,
    features: NDArray[Any],
    target: Target,
    source_rows: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> Path:
    """One record batch, uncompressed, so that the columns can be read in place."""
    taken = np.ascontiguousarray(features[rows])
    width = int(np.prod(features.shape[1:]))
    batch = pa.record_batch(
        {
            "features": pa.FixedSizeListArray.from_arrays(pa.array(taken.reshape(-1)), width),
            "target": pa.array(target.values[rows]),
            "row": pa.array(source_rows[rows]),
        }
    )
    return _write_arrow(folder / f"{name}.arrow", batch)


def _write_example(folder: Path, raw: pa.Table, train_rows: NDArray[np.int64]) -> Path:
    example = raw.take(pa.array(train_rows[:_EXAMPLE_ROWS])).combine_chunks()
    return _write_arrow(folder / EXAMPLE, example.to_batches()[0])


def _write_arrow(file: Path, batch: pa.RecordBatch) -> Path:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return file


def _facts(file: Path) -> dict[str, Any]:
    stat = file.stat()
    return {"bytes": stat.st_size, "sha256": hash_file(file), "mtime_ns": stat.st_mtime_ns}


def _class_counts(target: Target, parts: Mapping[str, NDArray[np.int64]]) -> dict[str, dict[str, int]] | None:
    if target.classes is None:
        return None
    labels = [str(label) for label in target.classes]
    return {
        name: dict(zip(labels, np.bincount(target.values[rows], minlength=len(labels)).tolist(), strict=True))
        for name, rows in parts.items()
    }
