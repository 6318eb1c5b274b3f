"""Build prepared data: pass by pass over the chunks of a source. Imports: numpy, pyarrow.

Clean, decide which row is in which part, fit on the training part, encode, write. What decides is a few bytes for each
row and stays here; rows themselves are read where a pass runs, and left where the next one finds them.
"""

from __future__ import annotations

import functools
import itertools
import secrets
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.data.cleaning.compile import compile_cleaning
from orchestrator.data.cleaning.corrupt import CorruptLog, merge_logs
from orchestrator.data.cleaning.program import Program, merge_reports
from orchestrator.data.cleaning.replay import value_changes
from orchestrator.data.features.documents import FEW_DOCUMENTS, require_samples
from orchestrator.data.features.pipeline import Pipeline
from orchestrator.data.features.schema import RawSchema, describe_features, dtype_name
from orchestrator.data.features.survey import FeaturePartial, fit_features
from orchestrator.data.features.target import Target, resolve_target
from orchestrator.data.prepared.manifest import (
    EXAMPLE,
    FORMAT_VERSION,
    MANIFEST,
    Manifest,
    file_facts,
)
from orchestrator.data.prepared.shards import write_arrow
from orchestrator.data.preparing import passes
from orchestrator.data.preparing.earlier import ChunkRecord, Earlier
from orchestrator.data.preparing.mapper import Mapper, closing_all
from orchestrator.data.preparing.passes import CleanedChunk, Encoded, Numbered, Share
from orchestrator.data.preparing.reports import Looks, write_reports
from orchestrator.data.preparing.room import explain, not_shared
from orchestrator.data.sources.read import Chunk, Unreadable, open_source
from orchestrator.data.splitting.rows import PARTS, part_codes, split_rows
from orchestrator.errors import SourceError
from orchestrator.spec.data import DataSection
from orchestrator.storage import Folder

_EXAMPLE_CHARACTERS = 1000


def build(
    section: DataSection,
    *,
    task: str,
    seed: int,
    named: Mapping[str, str],
    folder: Folder,
    mapper: Callable[[int], Mapper],
    memo: Path | None = None,
    earlier: Earlier | None = None,
    stop: threading.Event | None = None,
) -> Manifest:
    """Prepare a section's data into an empty folder; the manifest is written last.

    `named` are the key, the fingerprint and the lineage, `memo` is that of the fingerprint, `earlier` what the same
    settings prepared before. `mapper` chooses, by the number of chunks, where passes run; elsewhere than in this
    process they must see the folder. Raises SourceError where the data does not fit the section or the task,
    DataError where too much of it is corrupt, or the folder cannot take it, KeyboardInterrupt soon after `stop` is
    set; then no pass runs any more.
    """
    source = open_source(section, section.preparation.chunk_size, search_paths=sys.path, memo=memo)
    if not source.chunks:
        raise _no_rows(section)
    chunks = source.chunks if len(source.chunks) > 1 else [_held(chunk) for chunk in source.chunks]
    numbered = [
        Numbered(index, chunk, earlier.known(chunk.fingerprint) if earlier else None)
        for index, chunk in enumerate(chunks)
    ]
    scratch = _scratch(folder) if len(numbered) > 1 else None
    try:
        section = section.model_copy(update={"features": feature_names(section, source.schema)})
        with closing_all(mapper(len(numbered)), stop) as run:
            return _Build(section, task, seed, named, folder, run, scratch, earlier).manifest(
                source.schema, numbered
            )
    except OSError as error:
        explained = explain(error, folder, scratch, len(numbered))
        if explained is None:
            raise
        raise explained from error
    finally:
        if scratch is not None:
            scratch.remove()


def _held(chunk: Chunk) -> Chunk:
    """A source's only chunk is read once for all passes, if all of it can be read."""
    faults: list[Unreadable] = []
    table = chunk.read(faults)
    return chunk if faults else replace(chunk, kept=table)


def _scratch(folder: Folder) -> Folder:
    """For what passes leave each other. On remote storage two nodes may build the same, each with its own."""
    if folder.is_local:
        return folder / "scratch"
    return replace(folder, path=f"{folder.path}.tmp-{secrets.token_hex(4)}")


@dataclass(frozen=True)
class CleaningFacts:
    """What the manifest says of reading and cleaning: of all chunks together, and what was corrupt in each."""

    rows_read: int
    report: list[dict[str, Any]]
    corrupt: CorruptLog
    by_chunk: Sequence[CorruptLog]


@dataclass(frozen=True)
class _Build:
    """What all passes share."""

    section: DataSection
    task: str
    seed: int
    named: Mapping[str, str]
    """Key, fingerprint and lineage."""
    folder: Folder
    run: Mapper
    scratch: Folder | None
    earlier: Earlier | None

    def manifest(self, schema: pa.Schema, numbered: Sequence[Numbered]) -> Manifest:
        section = self.section
        program = self._fitted_program(schema, numbered)
        raw_schema = describe_features(program.apply(numbered[0].chunk.read([]), 0).table, section)
        names = raw_schema.columns
        pipeline = Pipeline(raw_schema, image_size=section.image.size, image_mode=section.image.mode)
        clean = functools.partial(passes.clean_chunk, section, program, pipeline, self.scratch)
        chunks = list(self.run(clean, numbered, "cleaning"))
        cleaning = _facts(section, program, raw_schema, chunks)
        target, shares = self._shared_out(numbered, chunks)
        if any(chunk.learns for chunk in chunks):
            refit = functools.partial(passes.refit_chunk, program)
            program, _ = program.refit(self.run(refit, shares, "learning fills"))
        pipeline = replace(
            pipeline,
            classes=list(target.classes) if target is not None and target.classes is not None else None,
        )
        features, looks = self._surveyed(program, pipeline, shares)
        pipeline = fit_features(section, pipeline, [features])
        # Rows that are read for prediction are cleaned as these have been.
        saved = replace(
            pipeline, changes=tuple(value_changes(program, names)), sent=_sent(schema, raw_schema)
        )
        encode = functools.partial(passes.encode_chunk, section, program, pipeline, self.seed, self.folder)
        encoded = list(self.run(encode, shares, "encoding"))
        return self._written(saved, target, shares, encoded, looks, cleaning)

    def _fitted_program(self, schema: pa.Schema, numbered: Sequence[Numbered]) -> Program:
        section = self.section
        program = compile_cleaning(section.clean, schema, section.features or (), section.target)
        while program.pending:
            survey = functools.partial(passes.survey_cleaning, program)
            program = program.fit(self.run(survey, numbered, "looking at rows to clean"))
        return program

    def _surveyed(
        self, program: Program, pipeline: Pipeline, shares: Sequence[Share]
    ) -> tuple[FeaturePartial, Looks]:
        """What all chunks say, merged as they come: a single survey may have 10 MB."""
        survey = functools.partial(passes.survey_chunk, self.section, program, pipeline, self.task, self.seed)
        features: FeaturePartial | None = None
        looks = Looks()
        for share, (more, look) in zip(shares, self.run(survey, shares, "fitting transforms"), strict=True):
            features = more if features is None else features.merge(more)
            looks = looks.add(look, new=share.numbered.known is None)
        assert features is not None
        return features, looks

    def _shared_out(
        self, numbered: Sequence[Numbered], chunks: Sequence[CleanedChunk]
    ) -> tuple[Target | None, list[Share]]:
        """Every row's part, and its target; of a language model, every document's part."""
        section, counts = self.section, [len(chunk.split_columns["row"]) for chunk in chunks]
        total = sum(counts)
        target: Target | None = None
        labels = None
        if self.task == "language_modeling":
            _require_language(section, total)
        else:
            if section.target is None:
                raise SourceError(
                    "data.target is missing",
                    "name the column to learn, or write train.task: language_modeling",
                )
            columns = [piece for chunk in chunks if chunk.target is not None for piece in chunk.target.chunks]
            target = resolve_target(pa.chunked_array(columns), self.task, section.target)
            labels = target.class_indices
        parts: NDArray[np.int8] | None = None
        if target is not None or total >= FEW_DOCUMENTS or section.split.kind == "given":
            split_columns = {
                name: np.concatenate([chunk.split_columns[name] for chunk in chunks])
                for name in chunks[0].split_columns
            }
            parts = part_codes(split_rows(total, section.split, self.seed, labels, split_columns), total)
        first_rows = np.cumsum([0, *(chunk.num_read for chunk in chunks)]).tolist()
        ends = np.cumsum([0, *counts]).tolist()
        shares = [
            Share(
                piece,
                first_row,
                chunk.kept,
                None if parts is None else parts[start:stop],
                None if target is None else target.values[start:stop],
            )
            for piece, chunk, first_row, (start, stop) in zip(
                numbered, chunks, first_rows[:-1], itertools.pairwise(ends), strict=True
            )
        ]
        first = next(i for i, share in enumerate(shares) if share.parts is None or (share.parts == 0).any())
        shares[first] = replace(shares[first], gives_example=True)
        return target, shares

    def _written(
        self,
        pipeline: Pipeline,
        target: Target | None,
        shares: Sequence[Share],
        encoded: Sequence[Encoded],
        looks: Looks,
        cleaning: CleaningFacts,
    ) -> Manifest:
        """The manifest, and the files beside the shards."""
        section, folder = self.section, self.folder
        shards = {part: [shard for one in encoded for shard in one.shards.get(part, ())] for part in PARTS}
        rows = {part: sum(shard.rows for shard in written) for part, written in shards.items()}
        if target is None:
            assert section.text is not None
            require_samples(rows, section.split, section.text)
        files = {shard.file: shard.facts for written in shards.values() for shard in written}
        if files.keys() - set(folder.names()):
            raise not_shared(folder)
        with passes.local_folder(folder) as place:
            example = write_arrow(place / EXAMPLE, _example(encoded))
            files[EXAMPLE] = file_facts(example)
            names = write_reports(
                place, looks, cleaning.corrupt, self.earlier.folder if self.earlier else None
            )
            files |= {name: file_facts(place / name) for name in names}
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            **self.named,
            task="language_modeling" if target is None else target.task,
            target=section.target,
            classes=pipeline.classes,
            num_outputs=(pipeline.vocab_size or 0) if target is None else target.num_outputs,
            feature_kind=pipeline.raw_schema.kind,
            vocab_size=pipeline.vocab_size,
            input_shape=pipeline.input_shape,
            stored_shape=pipeline.stored_shape,
            rows_read=cleaning.rows_read,
            rows=rows,
            class_counts=_class_counts(target, shares),
            cleaning=cleaning.report,
            corrupt=cleaning.corrupt.count,
            pipeline=pipeline.to_dict(),
            shards={part: [shard.entry for shard in written] for part, written in shards.items()},
            files=files,
            chunks=[record.to_dict() for record in _records(shares, encoded, cleaning)],
        )
        folder.write_json(MANIFEST, manifest.to_dict())
        return manifest


def _facts(
    section: DataSection, program: Program, schema: RawSchema, chunks: Sequence[CleanedChunk]
) -> CleaningFacts:
    """What all chunks report together. Raises DataError for too many corrupt records, SourceError where cleaning
    leaves no row."""
    first_rows = np.cumsum([0, *(chunk.num_read for chunk in chunks)]).tolist()
    corrupt = merge_logs(
        replace(
            chunk.corrupt,
            records=tuple(record.moved(first) for record in chunk.corrupt.records),
        )
        for chunk, first in zip(chunks, first_rows[:-1], strict=True)
    )
    corrupt.require_share(
        section.max_corrupt_share, "images" if schema.kind == "encoded_image" else "records"
    )
    if not first_rows[-1]:
        raise _no_rows(section)
    report = merge_reports(chunk.report for chunk in chunks)
    program.require_rows(report, first_rows[-1])
    return CleaningFacts(first_rows[-1], report, corrupt, [chunk.corrupt for chunk in chunks])


def _class_counts(target: Target | None, shares: Sequence[Share]) -> dict[str, dict[str, int]] | None:
    """Rows of each class in each part; None where there are no classes."""
    parts = [share.parts for share in shares if share.parts is not None]
    if target is None or target.classes is None:
        return None
    codes = np.concatenate(parts)
    counts = {name: target.class_counts(np.flatnonzero(codes == code)) for code, name in enumerate(PARTS)}
    return {name: count for name, count in counts.items() if count is not None}


def _records(
    shares: Sequence[Share], encoded: Sequence[Encoded], cleaning: CleaningFacts
) -> Iterator[ChunkRecord]:
    """What the next preparation wants to know of each chunk."""
    for share, one, corrupt in zip(shares, encoded, cleaning.by_chunk, strict=True):
        shards = list(itertools.chain.from_iterable(one.shards.values()))
        yield ChunkRecord(
            fingerprint=share.numbered.chunk.fingerprint,
            first_row=share.first_row,
            shards={part: [shard.file for shard in written] for part, written in one.shards.items()},
            corrupt=corrupt.records,
            linked=bool(shards) and all(shard.linked for shard in shards),
        )


def _no_rows(section: DataSection) -> SourceError:
    return SourceError(f"the source ({section.source.kind}) has no rows", "look at data.source")


def feature_names(section: DataSection, schema: pa.Schema) -> list[str]:
    """The columns to learn from: those the section names, else all but the target and what the split goes by."""
    if section.features:
        return section.features
    others = {section.target, *section.split.columns}
    return [name for name in schema.names if name not in others and not name.startswith("__")]


def _sent(schema: pa.Schema, features: RawSchema) -> dict[str, str]:
    """The dtypes of the columns of a table whose types cleaning changes, as the source has them."""
    if features.kind != "table":
        return {}
    raw = {name: dtype_name(schema.field(name).type) for name in features.columns}
    return {
        name: raw[name]
        for name, dtype in zip(features.columns, features.dtypes, strict=True)
        if raw[name] != dtype
    }


def _require_language(section: DataSection, num_documents: int) -> None:
    if section.text is None or section.target is not None or section.target_transform is not None:
        raise SourceError(
            "train.task language_modeling learns the next token of a text column",
            "write data.text, and leave data.target and data.target_transform out",
        )
    if section.split.kind == "stratified":
        raise SourceError(
            "data.split: 'stratified' needs classes, and a language model has none",
            "write data.split.kind: random",
        )
    cut = num_documents < FEW_DOCUMENTS and section.split.kind != "given"
    if cut and (section.split.kind != "random" or section.split.folds):
        raise SourceError(
            f"data.split: the {num_documents} documents are too few to be parted whole, and a cut by position "
            f"is no {section.split.kind} split{' with folds' if section.split.folds else ''}",
            f"give {FEW_DOCUMENTS} documents or more, or write data.split.kind: random without folds",
        )


def _example(encoded: Sequence[Encoded]) -> pa.RecordBatch:
    """The first raw training rows; of long texts the beginning."""
    example = next(one.example for one in encoded if one.example is not None)
    for index, field in enumerate(example.schema):
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            cut = pc.utf8_slice_codeunits(example[field.name], 0, _EXAMPLE_CHARACTERS)
            example = example.set_column(index, field.name, cut)
    return example.combine_chunks().to_batches()[0]
