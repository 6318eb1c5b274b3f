"""What each pass does with one chunk: pure functions of picklable arguments, so that they run anywhere.

Imports: numpy, pyarrow.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.data.cleaning.cleaned import Cleaned
from orchestrator.data.cleaning.corrupt import CorruptLog, CorruptRecord
from orchestrator.data.cleaning.program import Program
from orchestrator.data.columns import array_values
from orchestrator.data.features.categories import fold_numbers
from orchestrator.data.features.documents import Piece as Document
from orchestrator.data.features.documents import fitting_texts, make_samples, part_documents
from orchestrator.data.features.images import decode_images
from orchestrator.data.features.pipeline import Pipeline
from orchestrator.data.features.schema import array_matrix, categorical_columns, require_complete
from orchestrator.data.features.survey import FeaturePartial, survey_features
from orchestrator.data.prepared.shards import MOST_PIECES, SHARD_BYTES, WrittenShard, write_shard
from orchestrator.data.preparing.earlier import Columns, KnownChunk, rows_of
from orchestrator.data.preparing.kept import Kept, Spooled
from orchestrator.data.quality.survey import QualityPartial, survey_quality
from orchestrator.data.sources.chunks import Chunk, Unreadable
from orchestrator.data.splitmix import place_keys
from orchestrator.data.splitting.rows import PARTS
from orchestrator.data.splitting.survey import split_survey
from orchestrator.errors import SourceError
from orchestrator.spec.data import DataSection
from orchestrator.storage import Folder

EXAMPLE_ROWS = 5


@dataclass(frozen=True)
class Numbered:
    """A chunk and its number among all chunks, and what an earlier preparation left of it."""

    index: int
    chunk: Chunk
    known: KnownChunk | None = None


@dataclass(frozen=True)
class CleanedChunk:
    """What the driver must know of a chunk that was cleaned: a few bytes for each row that is left."""

    num_read: int
    kept: Kept | Spooled
    target: pa.ChunkedArray | None
    split_columns: Mapping[str, NDArray[Any]]
    report: Sequence[Mapping[str, Any]]
    corrupt: CorruptLog
    learns: bool
    """Whether a step of cleaning has yet to learn from the training rows."""


@dataclass(frozen=True)
class Share:
    """A cleaned chunk, and what was decided of its rows: `parts` (rows,) as indices in PARTS (of a language model
    cut by position, documents are in every part: None); `targets` (rows,) or (rows, labels)."""

    numbered: Numbered
    first_row: int
    """Of the chunk, in the source."""
    kept: Kept | Spooled
    parts: NDArray[np.int8] | None
    targets: NDArray[Any] | None
    gives_example: bool = False
    """Its first training rows are the example of raw rows."""


@dataclass(frozen=True)
class Encoded:
    """The shards that a chunk gave, by part, and raw rows of its training part (at most five)."""

    shards: Mapping[str, Sequence[WrittenShard]]
    example: pa.Table | None


def survey_cleaning(program: Program, numbered: Numbered) -> Any:
    """Statistics for the next step of cleaning that needs them."""
    return program.survey(numbered.chunk.read([]), numbered.index)


def clean_chunk(
    section: DataSection, program: Program, pipeline: Pipeline, scratch: Folder | None, numbered: Numbered
) -> CleanedChunk:
    """Clean a chunk and decode its images; what is left is kept in `scratch`, or with None in memory."""
    unreadable: list[Unreadable] = []
    table = numbered.chunk.read(unreadable)
    cleaned = program.apply(table, numbered.index)
    pixels = None
    corrupt = [CorruptRecord(None, fault.place, fault.reason) for fault in unreadable]
    if pipeline.raw_schema.kind == "encoded_image":
        pixels, damaged = _decoded(pipeline, cleaned, numbered.known)
        if damaged:
            keep = ~rows_of(damaged, cleaned.rows)
            cleaned, pixels = cleaned.keep(keep), pixels[keep]
            corrupt += damaged
    categorical = categorical_columns(section, pipeline.raw_schema)
    complete = [name for name in pipeline.raw_schema.columns if name not in categorical]
    require_complete(cleaned.table, complete, section.target)
    target = cleaned.table[section.target] if section.target else None
    # A value that cleaning found by statistics would change as rows are appended, and so move its row.
    by = table.take(pa.array(cleaned.rows)) if section.split.kind == "hash" else cleaned.table
    columns = split_survey(section.split, by) | {"row": cleaned.rows}
    kept = Kept(cleaned, pixels)
    return CleanedChunk(
        num_read=table.num_rows,
        kept=kept if scratch is None else kept.spool(scratch, f"{numbered.index:05d}.arrow"),
        target=target,
        split_columns=columns,
        report=cleaned.report,
        corrupt=CorruptLog.of(table.num_rows + len(unreadable), corrupt),
        learns=bool(cleaned.learned),
    )


def _decoded(
    pipeline: Pipeline, cleaned: Cleaned, known: KnownChunk | None
) -> tuple[NDArray[np.uint8], list[CorruptRecord]]:
    """The images of a chunk (rows, *stored_shape), and those that are damaged."""
    found = known.pixels(cleaned.rows, pipeline.stored_shape) if known is not None else None
    if found is not None:
        return found
    column = cleaned.table[pipeline.raw_schema.columns[0]]
    pixels, damaged = decode_images(column, pipeline.image_size, pipeline.image_mode)
    return pixels, [CorruptRecord(int(cleaned.rows[one.row]), one.path, one.reason) for one in damaged]


def refit_chunk(program: Program, share: Share) -> Any:
    """What the training rows of a chunk say of the values that cleaning fills and clips by."""
    return program.refit_survey(share.kept.load().cleaned, _in_part(share, "train"))


def survey_chunk(
    section: DataSection, program: Program, pipeline: Pipeline, task: str, seed: int, share: Share
) -> tuple[FeaturePartial, QualityPartial | None]:
    """What a chunk's training rows say of the features, and all of its rows of the data's quality."""
    kept = share.kept.load()
    quality = None
    if section.quality.report:
        raw = share.numbered.chunk.read([])
        codes = np.full(raw.num_rows, -1, np.int8)
        codes[kept.cleaned.rows] = 0 if share.parts is None else share.parts
        quality = survey_quality(raw, codes, section, task=task, chunk=share.numbered.index)
    table = _finished(program, share, kept)
    if share.targets is None:
        assert section.text is not None
        texts = fitting_texts(_documents(table, pipeline, section, share)["train"], section.text)
        table = pa.table({pipeline.raw_schema.columns[0]: pa.array(texts, pa.large_string())})
        everything = np.ones(len(texts), dtype=bool)
        keys = np.zeros(len(texts), np.uint64)
        return survey_features(section, pipeline, table, everything, None, keys), quality
    features = survey_features(
        section,
        pipeline,
        table,
        _in_part(share, "train"),
        share.targets,
        _keys(share, kept, seed),
        encoded=_arrays(kept, table, pipeline),
    )
    return features, quality


def encode_chunk(
    section: DataSection, program: Program, pipeline: Pipeline, seed: int, folder: Folder, share: Share
) -> Encoded:
    """Write a chunk's rows as shards of each part that has some."""
    kept = share.kept.load()
    table = _finished(program, share, kept)
    shards: dict[str, list[WrittenShard]] = {}
    example = np.empty(0, np.int64)
    for part in PARTS:
        if share.targets is None:
            assert section.text is not None
            assert pipeline.tokenizer is not None
            documents = _documents(table, pipeline, section, share)[part]
            samples = make_samples(documents, pipeline.tokenizer, section.text)
            features, targets, rows = samples.features, samples.targets, samples.rows
        else:
            rows = np.flatnonzero(_in_part(share, part))
            features, targets = _encoded(pipeline, table, kept, share, seed, part, rows), share.targets[rows]
        if not len(features):
            continue
        source_rows = kept.cleaned.rows[rows]
        if part == "train":
            example = np.unique(source_rows)[:EXAMPLE_ROWS]
        columns = (features, targets, share.first_row + source_rows)
        with local_folder(folder) as place:
            shards[part] = list(_write(place, part, share.numbered, columns))
    names = list(pipeline.raw_schema.columns)
    raw = None
    if share.gives_example:
        raw = share.numbered.chunk.read([]).select(names).take(pa.array(example))
    return Encoded(shards, raw)


def _write(folder: Path, part: str, numbered: Numbered, columns: Columns) -> Iterator[WrittenShard]:
    """Rows as shards of a size that streaming can hold several of; those that an earlier preparation has, linked."""
    rows_per_shard = max(1, SHARD_BYTES // max(1, columns[0][0].nbytes + columns[1][0].nbytes + 8))
    for piece, start in enumerate(range(0, len(columns[2]), rows_per_shard)):
        features, targets, rows = (column[start : start + rows_per_shard] for column in columns)
        index = numbered.index * MOST_PIECES + piece
        cut = (features, targets, rows)
        known = numbered.known
        yield (known and known.link(folder, part, piece, index, cut)) or write_shard(
            folder, part, index, *cut
        )


@contextlib.contextmanager
def local_folder(folder: Folder) -> Iterator[Path]:
    """The folder itself where it is local; else a temporary one, whose files are uploaded at the end."""
    if folder.is_local:
        yield folder.local_path()
        return
    with tempfile.TemporaryDirectory(prefix="orchestrator-shards-") as place:
        yield Path(place)
        folder.upload(Path(place))


def _finished(program: Program, share: Share, kept: Kept) -> pa.Table:
    """The chunk's rows with the values that were learned from the training rows."""
    if program.refitted is None:
        return kept.cleaned.table
    again = program.apply(share.numbered.chunk.read([]), share.numbered.index)
    if len(again.rows) != len(kept.cleaned.rows):  # corrupt images have been left out since
        again = again.keep(np.isin(again.rows, kept.cleaned.rows))
    return again.table


def _in_part(share: Share, part: str) -> NDArray[np.bool_]:
    assert share.parts is not None
    chosen: NDArray[np.bool_] = share.parts == PARTS.index(part)
    return chosen


def _keys(share: Share, kept: Kept, seed: int) -> NDArray[np.uint64]:
    return place_keys(kept.cleaned.rows, chunk=share.numbered.index, seed=seed)


def _encoded(
    pipeline: Pipeline,
    table: pa.Table,
    kept: Kept,
    share: Share,
    seed: int,
    part: str,
    rows: NDArray[np.int64],
) -> NDArray[Any]:
    """What is stored of these rows of a chunk, all of one part."""
    arrays = _arrays(kept, table, pipeline)
    if arrays is not None:
        return arrays[rows]
    chosen = table.take(pa.array(rows))
    if part == "train":
        return pipeline.encode_training(chosen, fold_numbers(_keys(share, kept, seed)[rows]))
    return pipeline.encode(chosen)


def _arrays(kept: Kept, table: pa.Table, pipeline: Pipeline) -> NDArray[Any] | None:
    """The chunk's images or arrays as they are stored; None for tables and text."""
    if kept.pixels is not None:
        return kept.pixels
    if pipeline.raw_schema.kind != "array":
        return None
    name = pipeline.raw_schema.columns[0]
    try:
        return array_matrix(array_values(table[name]), pipeline.stored_shape)
    except ValueError as error:
        raise SourceError(
            f"feature '{name}': {error}", "give every row an array of the same shape"
        ) from error


def _documents(
    table: pa.Table, pipeline: Pipeline, section: DataSection, share: Share
) -> dict[str, list[Document]]:
    """The documents of each part, or pieces of them where they are cut by position."""
    texts = table[pipeline.raw_schema.columns[0]].to_pylist()
    return part_documents(texts, section.split, share.parts)
