"""Fit a pipeline on training rows that come in chunks.

Each chunk gives a small partial result (`survey_features`, on any machine), these are merged in any grouping
(`FeaturePartial.merge`), and `fit_features` makes the fitted pipeline of them. What is fitted does not depend on
how rows are parted into chunks: counts are exact, means and deviations to rounding, quantiles exact up to
1,000,000 training rows and beyond from a sample of so many, drawn by the rows' keys. Imports: numpy, pyarrow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.data.features import transforms
from orchestrator.data.features.categories import CategoryStats, category_values, fold_numbers
from orchestrator.data.features.encoders import Encoder, fit_encoder
from orchestrator.data.features.pipeline import Pipeline
from orchestrator.data.features.plan import Plan, plan_channels, plan_table
from orchestrator.data.features.schema import number_matrix
from orchestrator.data.features.tokens import count_tokens, fit_vocabulary, merge_counts
from orchestrator.data.features.transforms import Affine, Spread
from orchestrator.data.statistics import Moments, Sample
from orchestrator.errors import SourceError
from orchestrator.spec.data import DataSection, Hashing, Robust, Standardize, TargetEncoding

_NUMBERS = "numbers"


@dataclass(frozen=True)
class FeaturePartial:
    """What the training rows of a chunk tell: as much as the section needs, None for all else. Bounded, however
    many rows there are.

    `numbers` and `sample` are of the columns that are not encoded, in their order, or of channels; `categories`
    by column; `tokens` counts of a vocabulary's candidates; `target` is a regression's.
    """

    numbers: Moments | None = None
    sample: Sample | None = None
    categories: Mapping[str, CategoryStats] | None = None
    tokens: Counter[str] | None = None
    target: Moments | None = None

    def merge(self, other: FeaturePartial) -> FeaturePartial:
        return FeaturePartial(
            _merged(self.numbers, other.numbers),
            _merged(self.sample, other.sample),
            None
            if self.categories is None or other.categories is None
            else {name: stats.merge(other.categories[name]) for name, stats in self.categories.items()},
            None if self.tokens is None or other.tokens is None else merge_counts(self.tokens, other.tokens),
            _merged(self.target, other.target),
        )


def survey_features(
    section: DataSection,
    pipeline: Pipeline,
    table: pa.Table,
    train: NDArray[np.bool_],
    target_values: NDArray[Any] | None,
    keys: NDArray[np.uint64],
    *,
    encoded: NDArray[Any] | None = None,
) -> FeaturePartial:
    """What a cleaned chunk's training rows tell.

    `table` holds the feature columns, nulls filled; `train` (rows,) marks the training rows, `target_values`
    (rows,) are class indices or numbers (None for a language model), `keys` (rows,) the rows' own, as
    `place_keys` gives them. `encoded` is what is stored of the rows, where it is known already: images are decoded
    but once. `pipeline` has the raw schema and the classes. Raises SourceError where transforms do not fit.
    """
    schema = pipeline.raw_schema
    target = _target_moments(section, pipeline, target_values, train)
    if schema.kind == "text":
        assert section.text is not None
        texts = table[schema.columns[0]].filter(pa.array(train)).to_pylist()
        return FeaturePartial(tokens=count_tokens(section.text, texts), target=target)
    plan = _plan(section, pipeline)
    steps = [step for step, _ in plan.numbers]
    if schema.kind != "table":
        if not transforms.looks_at_rows(steps):
            return FeaturePartial(target=target)
        stored = (pipeline.encode(table) if encoded is None else encoded)[train]
        return FeaturePartial(Moments.of(stored), _sample(steps, keys[train], stored), target=target)
    rows = table.filter(pa.array(train))
    plain = tuple(name for name in schema.columns if name not in plan.encoders)
    numbers, sample = None, None
    if plain and transforms.looks_at_rows(steps):
        matrix = number_matrix(rows, plain)
        numbers, sample = Moments.of(matrix), _sample(steps, keys[train], matrix)
    known = None if target_values is None else target_values[train]
    categories = _categories(plan, pipeline, rows, known, fold_numbers(keys[train]))
    return FeaturePartial(numbers, sample, categories, target=target)


def fit_features(section: DataSection, pipeline: Pipeline, partials: Iterable[FeaturePartial]) -> Pipeline:
    """The pipeline, fitted: tokenizer, encoders, transforms and target transform. `partials` are merged one by
    one. Raises SourceError where there is nothing to fit on, or too much."""
    partial = _merged_all(partials, section, pipeline)
    if partial.target is not None:
        # As float64, so that mean and deviation do not lose digits to the target's offset.
        step = Standardize(kind="standardize")
        pipeline = replace(
            pipeline, target_transform=transforms.fit([(step, None)], Spread.of(partial.target))[0]
        )
    if partial.tokens is not None:
        assert section.text is not None
        return replace(
            pipeline,
            tokenizer=fit_vocabulary(section.text, partial.tokens, language_model=section.target is None),
        )
    plan = _plan(section, pipeline)
    if pipeline.raw_schema.kind != "table":
        channels = pipeline.stored_shape[-1]
        spread = _spread(partial, channels)
        return replace(
            pipeline, transforms=tuple(transforms.fit([(step, None) for step, _ in plan.numbers], spread))
        )
    dtypes = _dtypes(pipeline)
    stats = partial.categories or {}
    encoders = {
        name: fit_encoder(step, stats.get(name), dtypes[name], name) for name, step in plan.encoders.items()
    }
    pipeline = replace(pipeline, encoders=encoders)
    return replace(pipeline, transforms=tuple(_fit_columns(plan, pipeline, partial)))


def _fit_columns(plan: Plan, pipeline: Pipeline, partial: FeaturePartial) -> list[Affine]:
    """The transforms of numbers, over the columns of the model's input."""
    if not plan.numbers:
        return []
    columns = pipeline.layout.raw_columns
    names = pipeline.raw_schema.columns
    places = {name: np.flatnonzero(columns == i) for i, name in enumerate(names)}
    spread = Spread.unknown(len(columns))
    plain = [name for name in names if name not in plan.encoders]
    if partial.numbers is not None:
        spread.put(np.concatenate([places[name] for name in plain]), _spread(partial, len(plain)))
    for name, stats in (partial.categories or {}).items():
        if _is_scaled(plan, name):
            for place, column in zip(
                places[name], _encoded_spreads(pipeline.encoders[name], stats), strict=True
            ):
                spread.put(np.array([place]), column)
    masks = [np.isin(columns, [names.index(name) for name in named or ()]) for _, named in plan.numbers]
    return transforms.fit([(step, mask) for (step, _), mask in zip(plan.numbers, masks, strict=True)], spread)


def _encoded_spreads(encoder: Encoder, stats: CategoryStats) -> list[Spread]:
    """Of each input column of an encoded column, over the training rows as they are encoded."""
    stats = stats.in_order()
    counts = stats.count.sum(axis=1)
    if encoder.kind == "hashing":
        by_bucket = np.zeros(encoder.buckets)
        by_bucket[np.asarray(stats.values.to_numpy(zero_copy_only=False), dtype=np.int64)] = counts
        counts = by_bucket
    if encoder.is_indicator:
        total = counts.sum()
        return [Spread.of_counts(np.array([0.0, 1.0]), np.array([total - count, count])) for count in counts]
    if encoder.kind == "ordinal":
        return [Spread.of_counts(np.arange(len(counts), dtype=np.float64), counts)]
    assert encoder.out_of_fold is not None
    values = encoder.out_of_fold[:, :-1]  # (folds, categories, numbers)
    return [Spread.of_counts(values[..., i].T.ravel(), stats.count.ravel()) for i in range(values.shape[2])]


def _categories(
    plan: Plan,
    pipeline: Pipeline,
    rows: pa.Table,
    target_values: NDArray[Any] | None,
    folds: NDArray[np.int64],
) -> dict[str, CategoryStats]:
    found: dict[str, CategoryStats] = {}
    dtypes = _dtypes(pipeline)
    for name, step in plan.encoders.items():
        if isinstance(step, Hashing) and not _is_scaled(plan, name):
            continue  # nothing is fitted
        values = category_values(rows[name], dtypes[name], name)
        if isinstance(step, TargetEncoding):
            targets = _target_columns(pipeline, target_values, rows.num_rows)
            found[name] = CategoryStats.of(values, targets, folds)
        elif isinstance(step, Hashing):
            buckets = Encoder("hashing", dtypes[name], buckets=step.buckets).encode(values)
            found[name] = CategoryStats.of(pa.array(buckets[:, 0].astype(np.int64)))
        else:
            found[name] = CategoryStats.of(values)
        found[name].require_few(name, step.kind)
    return found


def _target_columns(
    pipeline: Pipeline, target_values: NDArray[Any] | None, num_rows: int
) -> NDArray[np.float64]:
    """Whose means a category takes, shape (rows, targets): the numbers of a regression, 0 or 1 for the second of
    two classes, and for each of more classes (or labels)."""
    if target_values is None:
        raise SourceError("data.transforms (target) needs a target", "write one_hot, ordinal or hashing")
    classes = pipeline.classes
    if target_values.ndim == 2 or classes is None or len(classes) == 2:
        return target_values.astype(np.float64).reshape(num_rows, -1)
    return np.asarray(target_values[:, None] == np.arange(len(classes)), dtype=np.float64)


def _target_moments(
    section: DataSection, pipeline: Pipeline, values: NDArray[Any] | None, train: NDArray[np.bool_]
) -> Moments | None:
    if section.target_transform is None:
        return None
    if values is None or pipeline.classes is not None:
        raise SourceError(
            f"data.target_transform: the target '{section.target}' holds classes",
            "leave target_transform out",
        )
    return Moments.of(values[train].astype(np.float64)[:, None])


def _plan(section: DataSection, pipeline: Pipeline) -> Plan:
    if pipeline.raw_schema.kind == "table":
        return plan_table(section.transforms, _dtypes(pipeline))
    return plan_channels(section.transforms, pipeline.stored_shape)


def _dtypes(pipeline: Pipeline) -> dict[str, str]:
    schema = pipeline.raw_schema
    return dict(zip(schema.columns, schema.dtypes, strict=True))


def _is_scaled(plan: Plan, name: str) -> bool:
    """Whether a transform of numbers names an encoded column."""
    return any(name in (columns or ()) for _, columns in plan.numbers)


def _sample(steps: list[Any], keys: NDArray[np.uint64], values: NDArray[Any]) -> Sample | None:
    needed = any(isinstance(step, Robust) for step in steps)
    return Sample.of(keys, {_NUMBERS: values.astype(np.float32)}) if needed else None


def _spread(partial: FeaturePartial, columns: int) -> Spread:
    if partial.numbers is None:
        return Spread.unknown(columns)
    return Spread.of(partial.numbers, _quartiles(partial.sample) if partial.sample else None)


def _quartiles(sample: Sample) -> NDArray[np.float64]:
    """25 %, 50 % and 75 % of each column, between values where need be, shape (3, columns)."""
    values = sample.columns[_NUMBERS].astype(np.float64)
    return np.asarray(np.quantile(values, [0.25, 0.5, 0.75], axis=0))


def _merged_all(
    partials: Iterable[FeaturePartial], section: DataSection, pipeline: Pipeline
) -> FeaturePartial:
    steps = _plan(section, pipeline).encoders if pipeline.raw_schema.kind == "table" else {}
    waiting = iter(partials)
    merged = next(waiting)
    for partial in waiting:
        merged = merged.merge(partial)
        for name, stats in (merged.categories or {}).items():
            stats.require_few(name, steps[name].kind)
    return merged


def _merged(one: Any, other: Any) -> Any:
    return None if one is None or other is None else one.merge(other)
