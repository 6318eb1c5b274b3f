"""Fitted transforms of numbers against plain numpy, and that rows may come in any chunks."""

from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data import statistics
from orchestrator.data.features.categories import FOLDS, fold_numbers
from orchestrator.data.features.pipeline import Pipeline
from orchestrator.data.features.schema import RawSchema
from orchestrator.data.features.survey import fit_features, survey_features
from orchestrator.data.features.transforms import Spread
from orchestrator.data.splitmix import place_keys
from orchestrator.data.statistics import Moments, Sample
from orchestrator.errors import SourceError
from orchestrator.spec.data import DataSection

STANDARDIZE, MIN_MAX, ROBUST = {"kind": "standardize"}, {"kind": "min_max"}, {"kind": "robust"}


def _section(*steps: dict[str, Any], **more: Any) -> DataSection:
    source = {"kind": "linear", "coefficients": [1.0]}
    return DataSection.model_validate({"source": source, "target": "y", "transforms": list(steps), **more})


def _schema(x: np.ndarray) -> RawSchema:
    if x.ndim > 2:
        return RawSchema("array", ("image",), (x.dtype.name,), x.shape[1:])
    names = tuple(f"c{i}" for i in range(x.shape[1]))
    return RawSchema("table", names, ("float64",) * len(names))


def _rows(x: np.ndarray) -> pa.Table:
    if x.ndim > 2:
        return pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(x)})
    return pa.table({f"c{i}": x[:, i] for i in range(x.shape[1])})


def _fit(
    section: DataSection, x: np.ndarray, y: np.ndarray | None = None, chunk: int | None = None
) -> Pipeline:
    pipeline = Pipeline(_schema(x))
    keys = place_keys(np.arange(len(x)))
    step = chunk or len(x)
    partials = [
        survey_features(
            section,
            pipeline,
            _rows(x[start : start + step]),
            np.ones(len(x[start : start + step]), bool),
            None if y is None else y[start : start + step],
            keys[start : start + step],
        )
        for start in range(0, len(x), step)
    ]
    return fit_features(section, pipeline, partials)


def _fitted(x: np.ndarray, *steps: dict[str, Any]) -> np.ndarray:
    """The rows as they come out of a pipeline that was fitted on them."""
    pipeline = _fit(_section(*steps), x)
    return pipeline.transform(torch.tensor(pipeline.encode(_rows(x)))).numpy()


@given(st.integers(2, 60), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_tables_are_scaled_per_column(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(rows, columns)) * rng.uniform(0.1, 50, columns) + 5).astype(np.float32)
    wide = x.astype(np.float64)
    low, high = wide.min(axis=0), wide.max(axis=0)
    standardized = (wide - wide.mean(axis=0)) / wide.std(axis=0)
    np.testing.assert_allclose(_fitted(x, STANDARDIZE), standardized, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(_fitted(x, MIN_MAX), (wide - low) / (high - low), rtol=1e-3, atol=1e-5)


def test_images_are_scaled_per_channel_and_channels_come_first() -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 5, 4, 3), dtype=np.uint8)
    got = _fitted(x, {"kind": "scale", "by": 255}, STANDARDIZE)
    scaled = (x / 255.0).transpose(0, 3, 1, 2)
    expected = (scaled - scaled.mean(axis=(0, 2, 3), keepdims=True)) / scaled.std(
        axis=(0, 2, 3), keepdims=True
    )
    assert got.shape == (20, 3, 5, 4)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_moments_do_not_depend_on_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(1).normal(1000, 0.5, (101, 3))
    monkeypatch.setattr(statistics, "_PIECE_VALUES", 21)
    got = Moments.of(x)
    np.testing.assert_allclose(got.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(got.std, x.std(axis=0), rtol=1e-9)
    np.testing.assert_array_equal(got.low, x.min(axis=0))
    np.testing.assert_array_equal(got.high, x.max(axis=0))


@given(st.integers(1, 80), st.integers(1, 3), st.integers(1, 80), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_what_is_fitted_does_not_depend_on_chunks(rows: int, columns: int, chunk: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(rows, columns)) * rng.uniform(0.1, 50, columns) + 1000).astype(np.float32)
    y = rng.normal(size=rows).astype(np.float32)
    section = _section(STANDARDIZE, ROBUST, MIN_MAX, target_transform="standardize")
    whole, parted = _fit(section, x, y), _fit(section, x, y, chunk)
    for one, other in zip(whole.transforms, parted.transforms, strict=True):
        # Relative to the values as they are: the first step takes the offset of 1000 away.
        np.testing.assert_allclose(one.shift, other.shift, rtol=1e-12, atol=1e-11)
        np.testing.assert_allclose(one.divide, other.divide, rtol=1e-11)
    assert whole.target_transform is not None
    assert parted.target_transform is not None
    np.testing.assert_allclose(
        whole.target_transform.shift, y.astype(np.float64).mean(), rtol=1e-12, atol=1e-15
    )
    np.testing.assert_allclose(
        whole.target_transform.shift, parted.target_transform.shift, rtol=1e-12, atol=1e-15
    )


def test_arrays_of_one_axis_are_scaled_per_place() -> None:
    x = np.random.default_rng(0).normal(5, 3, (40, 6)).astype(np.float32)
    pipeline = Pipeline(RawSchema("array", ("steps",), ("float32",), (6,)))
    table = pa.table({"steps": pa.FixedShapeTensorArray.from_numpy_ndarray(x)})
    section, keys = _section(ROBUST), place_keys(np.arange(40))
    partial = survey_features(section, pipeline, table, np.ones(40, bool), None, keys)
    (fitted,) = fit_features(section, pipeline, [partial]).transforms
    np.testing.assert_allclose(fitted.shift, np.median(x, axis=0), rtol=1e-6)


def test_images_in_chunks_are_surveyed_as_they_are_decoded_already() -> None:
    x = np.random.default_rng(0).integers(0, 256, (30, 5, 4, 3), dtype=np.uint8)
    section, pipeline = _section(STANDARDIZE), Pipeline(_schema(x))
    train = np.arange(30) % 3 > 0
    keys = place_keys(np.arange(30))
    partials = [
        survey_features(section, pipeline, pa.table({}), train[rows], None, keys[rows], encoded=x[rows])
        for rows in (slice(0, 7), slice(7, 30))
    ]
    (fitted,) = fit_features(section, pipeline, partials).transforms
    np.testing.assert_allclose(fitted.shift, x[train].mean(axis=(0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(fitted.divide, x[train].std(axis=(0, 1, 2)), rtol=1e-12)


def test_only_training_rows_are_looked_at() -> None:
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    section, pipeline = _section(STANDARDIZE), Pipeline(_schema(x))
    train = np.arange(10) < 4
    keys = place_keys(np.arange(10))
    fitted = fit_features(
        section, pipeline, [survey_features(section, pipeline, _rows(x), train, None, keys)]
    )
    np.testing.assert_allclose(fitted.transforms[0].shift, x[:4].mean(axis=0))


def test_a_sample_of_many_rows_is_one_that_no_chunk_changes() -> None:
    x = np.random.default_rng(0).normal(size=(30_000, 2)).astype(np.float32)
    keys = place_keys(np.arange(len(x)))

    def sample(step: int) -> Sample:
        pieces = [slice(i, i + step) for i in range(0, len(x), step)]
        samples = [Sample.of(keys[rows], {"x": x[rows]}, 2000) for rows in pieces]
        one_by_one, at_once = reduce(Sample.merge, samples), samples[0].merge(*samples[1:])
        np.testing.assert_array_equal(one_by_one.columns["x"], at_once.columns["x"])
        return at_once

    kept = sample(700)
    np.testing.assert_array_equal(kept.columns["x"], sample(30_000).columns["x"])
    np.testing.assert_array_equal(kept.columns["x"], x[np.sort(np.argsort(keys)[:2000])])
    quartiles = np.quantile(kept.columns["x"], [0.25, 0.5, 0.75], axis=0)
    np.testing.assert_allclose(quartiles.T, [[-0.674, 0, 0.674]] * 2, atol=0.1)
    shuffled = kept.shuffled()
    assert (np.diff(shuffled.keys.astype(object)) > 0).all()
    assert sorted(map(tuple, shuffled.columns["x"])) == sorted(map(tuple, kept.columns["x"]))


def test_moments_of_no_rows_and_of_huge_numbers() -> None:
    none, huge = Moments.of(np.zeros((0, 1))), Moments.of(np.array([[1e308], [5e307], [-1e308]]))
    assert none.count == 0
    assert none.merge(huge) is huge
    assert huge.merge(none) is huge
    assert (huge.low[0], huge.high[0]) == (-1e308, 1e308)
    assert np.isinf(huge.merge(huge).std[0])


def test_keys_are_all_different_and_folds_equal_in_size() -> None:
    keys = np.concatenate([place_keys(np.arange(20_000), chunk=chunk, seed=3) for chunk in range(5)])
    assert len(np.unique(keys)) == len(keys)
    shares = np.bincount(fold_numbers(keys)) / len(keys)
    np.testing.assert_allclose(shares, [1 / FOLDS] * FOLDS, atol=0.01)
    assert place_keys(np.array([7]))[0] == place_keys(np.arange(10))[7]
    assert not np.array_equal(
        fold_numbers(place_keys(np.arange(50))), fold_numbers(place_keys(np.arange(50), seed=1))
    )


@given(
    st.lists(
        st.tuples(st.integers(-9, 9), st.integers(1, 7)), min_size=1, max_size=9, unique_by=lambda v: v[0]
    )
)
@settings(max_examples=100, deadline=None)
def test_counted_values_are_as_the_values_themselves(counted: list[tuple[int, int]]) -> None:
    values, counts = np.array(counted, dtype=np.float64).T
    spread = Spread.of_counts(values, counts)
    every = np.repeat(values, counts.astype(int))
    np.testing.assert_allclose(spread.mean[0], every.mean(), atol=1e-12)
    np.testing.assert_allclose(spread.std[0], every.std(), atol=1e-12)
    assert (spread.low[0], spread.high[0]) == (every.min(), every.max())
    np.testing.assert_allclose(spread.quartiles[:, 0], np.quantile(every, [0.25, 0.5, 0.75]), atol=1e-12)


@pytest.mark.parametrize("step", [STANDARDIZE, MIN_MAX, ROBUST])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_a_constant_column_becomes_zero(step: dict[str, Any], constant: float) -> None:
    np.testing.assert_allclose(_fitted(np.full((50, 1), constant, dtype=np.float32), step), 0, atol=1e-6)


def test_without_transforms_values_stay() -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert np.array_equal(_fitted(x), x)


def test_the_stored_rows_are_not_written_to() -> None:
    x = torch.arange(6, dtype=torch.float32).reshape(3, 2)
    pipeline = _fit(_section(STANDARDIZE), x.numpy())
    before = x.clone()
    pipeline.transform(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (ROBUST, "not for images"),
        (
            {"kind": "standardize", "columns": ["image"]},
            r"transforms\[0\] \(standardize\).*leave 'columns' out",
        ),
        ({"kind": "one_hot"}, "is for the columns of a table"),
    ],
)
def test_what_images_cannot_use(step: dict[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        _fit(_section(step), np.zeros((4, 3, 3, 1), np.uint8))


def test_targets_come_back() -> None:
    y = np.array([100.0, 120.0, 80.0], np.float32)
    pipeline = _fit(_section(target_transform="standardize"), np.zeros((3, 1), np.float32), y)
    targets = torch.tensor([100.0, 120.0, 80.0])
    learned = pipeline.transform_targets(targets)
    assert learned.mean().abs() < 1e-6
    assert torch.allclose(learned.std(correction=0), torch.tensor(1.0))
    assert torch.allclose(pipeline.inverse_targets(learned), targets)
    assert torch.equal(targets, torch.tensor([100.0, 120.0, 80.0]))
