"""Raw rows in the forms a user has them, and what does not fit."""

import io
import json
import pickle
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from PIL import Image

from orchestrator.data.features.pipeline import Pipeline
from orchestrator.data.features.schema import RawSchema
from orchestrator.data.features.transforms import Affine
from orchestrator.errors import DataError

DIGITS = Pipeline(RawSchema("array", ("image",), ("float64",), (8, 8)))
COLORS = Pipeline(RawSchema("array", ("image",), ("uint8",), (4, 5, 3)))
FILES = Pipeline(RawSchema("encoded_image", ("image",), ("bytes",)), image_size=(4, 6))
TABLE = Pipeline(
    RawSchema("table", ("a", "b"), ("float64", "int64")),
    changes=({"do": "fill", "column": "b", "value": 7.0},),
)
PIXELS = np.random.default_rng(0).uniform(0, 16, (3, 8, 8))


@pytest.mark.parametrize(
    "rows",
    [
        PIXELS,
        PIXELS[..., None],
        list(PIXELS),
        PIXELS.tolist(),
        {"image": PIXELS},
        pd.DataFrame({"image": list(PIXELS), "more": "x"}),
        pd.DataFrame({"image": PIXELS.tolist()}),
        pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(PIXELS)}),
        [{"image": pixels.tolist()} for pixels in PIXELS],
    ],
)
def test_arrays(rows: object) -> None:
    got = DIGITS.encode(rows)
    assert (got.shape, got.dtype) == ((3, 8, 8, 1), np.float32)
    assert np.array_equal(got[..., 0], PIXELS.astype(np.float32))


def test_arrays_keep_eight_bits() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
    assert COLORS.encode(pixels).dtype == np.uint8
    widened = COLORS.encode(pixels.astype(np.int64))
    assert torch.equal(
        COLORS.transform(torch.from_numpy(COLORS.encode(pixels))), COLORS.transform(torch.from_numpy(widened))
    )
    assert COLORS.input_shape == (3, 4, 5)


@pytest.mark.parametrize(
    "rows",
    [
        PIXELS[:, :7],
        PIXELS[0],
        np.full((1, 8, 8), np.nan),
        np.full((1, 8, 8), "x"),
        [PIXELS[0], PIXELS[0, :3]],
        {"picture": PIXELS},
        {"image": [1, 2]},
        pd.DataFrame({"image": [PIXELS[0], None]}),
        7,
    ],
)
def test_arrays_that_do_not_fit(rows: object) -> None:
    with pytest.raises(DataError):
        DIGITS.encode(rows)


def _png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (shade, 0, 255)).save(buffer, "PNG")
    return buffer.getvalue()


IMAGES = [_png(10), _png(20)]
STRUCTS = [{"bytes": data, "path": "p.png"} for data in IMAGES]


@pytest.mark.parametrize(
    "rows",
    [
        IMAGES,
        np.array(IMAGES, dtype=object),
        {"image": IMAGES},
        pd.DataFrame({"image": IMAGES}),
        pd.DataFrame({"image": STRUCTS}),
        pa.table({"image": STRUCTS}),
        pa.table({"image": pa.array(IMAGES, pa.large_binary())}),
        [{"image": data} for data in IMAGES],
    ],
)
def test_encoded_images(rows: object) -> None:
    got = FILES.encode(rows)
    assert (got.shape, got.dtype) == ((2, 4, 6, 3), np.uint8)
    assert got[:, 0, 0].tolist() == [[10, 0, 255], [20, 0, 255]]


def test_encoded_images_that_do_not_fit() -> None:
    for rows, message in (
        ([*IMAGES, b"junk"], "1 of 3 images cannot be decoded: row 2"),
        (["a.png"], "must be the bytes"),
        ({"image": ["a.png"]}, "not string"),
        ({"img": IMAGES}, "no column 'image'"),
    ):
        with pytest.raises(DataError, match=message):
            FILES.encode(rows)


NUMBERS = [[1.5, 2.0], [3.5, 4.0]]


@pytest.mark.parametrize(
    "rows",
    [
        np.array(NUMBERS),
        NUMBERS,
        {"b": [2, 4], "a": [1.5, 3.5]},
        pd.DataFrame({"b": [2, 4], "name": ["x", "y"], "a": [1.5, 3.5]}),
        pa.table({"b": [2, 4], "a": [1.5, 3.5]}),
        pa.record_batch({"b": [2, 4], "a": [1.5, 3.5]}),
        [{"b": 2, "a": 1.5}, {"a": 3.5, "b": 4}],
    ],
)
def test_tables(rows: object) -> None:
    got = TABLE.encode(rows)
    assert got.dtype == np.float32
    assert got.tolist() == NUMBERS


def test_gaps_are_filled_as_in_training() -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [None, 4.0]})
    assert TABLE.encode(frame).tolist() == [[1.0, 7.0], [2.0, 4.0]]
    assert TABLE.encode([{"a": 1.0, "b": None}]).tolist() == [[1.0, 7.0]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (pd.DataFrame({"a": [1.0], "c": [2]}), "no column 'b'"),
        (pd.DataFrame({"a": ["x"], "b": [2]}), "'a' must hold numbers"),
        (pd.DataFrame({"a": [1.0, None], "b": [2, 2]}), "'a' is null.* in 1 of 2 rows, first in row 1"),
        ({"a": [np.inf], "b": [1]}, "infinite"),
        (np.zeros((2, 3)), r"shape \(2, 3\)"),
        (np.zeros(2), "shape"),
        ([[1.0], [1.0, 2.0]], "all of one length"),
        ({"a": [1.0], "b": [1, 2]}, "do not make a table"),
        ("text", "rows are a str"),
    ],
)
def test_tables_that_do_not_fit(rows: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        TABLE.encode(rows)


@pytest.mark.parametrize(
    "copy",
    [
        lambda p: Pipeline.from_dict(json.loads(json.dumps(p.to_dict()))),
        lambda p: pickle.loads(pickle.dumps(p)),
    ],
)
def test_a_pipeline_travels_with_all_it_learned(copy: Any) -> None:
    pipeline = Pipeline(
        COLORS.raw_schema,
        image_size=(3, 4),
        image_mode="grayscale",
        changes=({"do": "fill", "column": "x", "value": 1.5},),
        transforms=(Affine("standardize", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0)),),
        target_transform=Affine("standardize", (1.0,), (2.0,)),
        classes=["a", "b"],
    )
    x = torch.zeros(2, 4, 5, 3, dtype=torch.uint8)
    pipeline.transform(x)  # what is cached must not travel
    assert copy(pipeline) == pipeline
    assert torch.equal(copy(pipeline).transform(x), pipeline.transform(x))
