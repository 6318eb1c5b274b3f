"""Fitted transforms against plain numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.features import transforms
from orchestrator.data.features.pipeline import Pipeline
from orchestrator.data.features.schema import RawSchema
from orchestrator.data.features.transforms import fit
from orchestrator.spec.data import MinMax, Scale, Standardize

STANDARDIZE, MIN_MAX = Standardize(kind="standardize"), MinMax(kind="min_max")


def _table(columns: int) -> RawSchema:
    names = tuple(f"c{i}" for i in range(columns))
    return RawSchema("table", names, ("float64",) * columns)


def _apply(schema: RawSchema, chain: list[transforms.Affine], features: np.ndarray) -> np.ndarray:
    return Pipeline(schema, transforms=tuple(chain)).transform(torch.from_numpy(features)).numpy()


@given(st.integers(2, 60), st.integers(1, 5), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_tables_are_scaled_per_column(rows: int, columns: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(rows, columns)) * rng.uniform(0.1, 50, columns) + 5).astype(np.float32)
    wide = x.astype(np.float64)
    low, high = wide.min(axis=0), wide.max(axis=0)
    standardized = _apply(_table(columns), fit([STANDARDIZE], x), x)
    np.testing.assert_allclose(
        standardized, (wide - wide.mean(axis=0)) / wide.std(axis=0), rtol=1e-3, atol=1e-4
    )
    np.testing.assert_allclose(
        _apply(_table(columns), fit([MIN_MAX], x), x), (wide - low) / (high - low), rtol=1e-3, atol=1e-5
    )


def test_images_are_scaled_per_channel_and_channels_come_first() -> None:
    x = np.random.default_rng(0).integers(0, 256, (20, 5, 4, 3), dtype=np.uint8)
    schema = RawSchema("array", ("image",), ("uint8",), (5, 4, 3))
    got = _apply(schema, fit([Scale(kind="scale", by=255), STANDARDIZE], x), x)
    scaled = (x / 255.0).transpose(0, 3, 1, 2)
    expected = (scaled - scaled.mean(axis=(0, 2, 3), keepdims=True)) / scaled.std(
        axis=(0, 2, 3), keepdims=True
    )
    assert got.shape == (20, 3, 5, 4)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_moments_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(1).normal(1000, 0.5, (101, 3))
    monkeypatch.setattr(transforms, "_CHUNK_VALUES", 21)
    got = transforms.moments(x)
    np.testing.assert_allclose(got.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(got.std, x.std(axis=0), rtol=1e-9)
    np.testing.assert_array_equal(got.low, x.min(axis=0))
    np.testing.assert_array_equal(got.high, x.max(axis=0))


@pytest.mark.parametrize("step", [STANDARDIZE, MIN_MAX])
@pytest.mark.parametrize("constant", [0.0, 0.1, 1e6])
def test_a_constant_column_becomes_zero(step: Standardize | MinMax, constant: float) -> None:
    x = np.full((50, 1), constant, dtype=np.float32)
    np.testing.assert_allclose(_apply(_table(1), fit([step], x), x), 0, atol=1e-6)


def test_without_transforms_values_stay() -> None:
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert np.array_equal(_apply(_table(2), [], x), x)


def test_the_stored_rows_are_not_written_to() -> None:
    x = torch.arange(6, dtype=torch.float32).reshape(3, 2)
    pipeline = Pipeline(_table(2), transforms=tuple(fit([STANDARDIZE], x.numpy())))
    before = x.clone()
    pipeline.transform(x)
    assert torch.equal(x, before)


def test_targets_come_back() -> None:
    fitted = fit([STANDARDIZE], np.array([[100.0], [120.0], [80.0]]))[0]
    pipeline = Pipeline(_table(1), target_transform=fitted)
    targets = torch.tensor([100.0, 120.0, 80.0])
    learned = pipeline.transform_targets(targets)
    assert learned.mean().abs() < 1e-6
    assert torch.allclose(learned.std(correction=0), torch.tensor(1.0))
    assert torch.allclose(pipeline.inverse_targets(learned), targets)
    assert torch.equal(targets, torch.tensor([100.0, 120.0, 80.0]))
