"""Decoding and resizing: size, mode, and what damaged files do. Values are within one level (of 255) of Pillow's."""

import io
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from orchestrator.data.features import images
from orchestrator.data.features.images import decode_images


def _encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def _levels_apart(pixels: np.ndarray, others: np.ndarray) -> int:
    return int(np.abs(pixels.astype(int) - others.reshape(pixels.shape)).max())


GRAY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5
RGB = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)


def test_lossless_images_come_back_as_they_were() -> None:
    pixels, corrupt = decode_images(pa.chunked_array([[_encode(RGB)]]), (6, 8), "rgb")
    assert not corrupt
    assert np.array_equal(pixels, RGB[None])
    pixels, _ = decode_images(
        pa.chunked_array([[{"bytes": _encode(GRAY), "path": None}]]), (6, 8), "grayscale"
    )
    assert np.array_equal(pixels, GRAY[None, :, :, None])


def test_all_modes_and_sizes_end_up_equal() -> None:
    files = [_encode(RGB), _encode(GRAY), _encode(RGB, "JPEG"), _encode(np.dstack([RGB, GRAY]))]
    pixels, corrupt = decode_images(pa.chunked_array([files]), (5, 9), "rgb")
    assert not corrupt
    assert (pixels.shape, pixels.dtype) == ((4, 5, 9, 3), np.uint8)
    expected = np.asarray(Image.fromarray(RGB).resize((9, 5), Image.Resampling.BILINEAR))
    assert _levels_apart(pixels[0], expected) <= 1


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_damaged_images_are_named(kind: str) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = _encode(noise, kind)
    rows = [
        {"bytes": whole, "path": "good"},
        {"bytes": whole[: len(whole) // 2], "path": "cut"},
        {"bytes": b"not an image", "path": "text"},
        {"bytes": b"", "path": "empty"},
    ]
    pixels, corrupt = decode_images(pa.chunked_array([rows]), (4, 4), "rgb")
    assert [(image.row, image.path) for image in corrupt] == [(1, "cut"), (2, "text"), (3, "empty")]
    assert all(image.reason for image in corrupt)
    assert pixels[0].any()
    assert not pixels[1:].any()
    assert "row 1 (cut): " in str(corrupt[0])
    assert str(corrupt[1]) == "row 2 (text): no known image format"


@pytest.mark.parametrize(("mode", "name"), [("RGB", "rgb"), ("L", "grayscale")])
def test_a_jpeg_decoded_at_a_fraction_looks_like_the_whole(mode: str, name: Any) -> None:
    """A photograph-like picture, eight times as large as wanted, against decoding all of it."""
    coarse = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    large = Image.fromarray(coarse).resize((512, 384), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    large.save(buffer, "JPEG", quality=90)
    pixels, _ = decode_images(pa.chunked_array([[buffer.getvalue()]]), (48, 64), name)
    whole = Image.open(buffer).convert(mode).resize((64, 48), Image.Resampling.BILINEAR)
    difference = np.abs(pixels[0].astype(int) - np.asarray(whole, int).reshape(48, 64, -1))
    assert difference.mean() < 1
    assert difference.max() < 12


@pytest.mark.parametrize("levels", [1, 0], ids=["resized by torch", "resized by Pillow"])
@pytest.mark.parametrize("mode", ["rgb", "grayscale"])
@pytest.mark.parametrize(
    "stored",
    [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"keep_rgb": True}, {"gray": True}],
    ids=str,
)
def test_every_jpeg_comes_to_the_pixels_that_pillow_gives(
    stored: dict[str, Any], mode: Any, levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit by bit where nothing is resized or Pillow does it, as on some processors, and within one level otherwise;
    whether the file is decoded at its size or at a fraction, in a way of its own or by Pillow."""
    if not levels:
        monkeypatch.setattr(images, "_VECTORS", ())
    settings = dict(stored)
    gray = settings.pop("gray", False)
    coarse = Image.fromarray(np.random.default_rng(2).integers(0, 256, (30, 20, 3), dtype=np.uint8))
    for width, height in [(1, 1), (7, 15), (16, 17), (61, 90), (203, 160), (640, 333)]:
        picture = coarse.resize((width, height), Image.Resampling.BICUBIC)
        buffer = io.BytesIO()
        (picture.convert("L") if gray else picture).save(buffer, "JPEG", quality=80, **settings)
        for size in [(40, 30), (10, 12), (3, 3), (1, 1), (height, width)]:
            pixels, corrupt = decode_images(pa.chunked_array([[buffer.getvalue()]]), size, mode)
            assert not corrupt
            with Image.open(buffer) as image:
                image.draft("RGB" if mode == "rgb" else "L", (2 * size[1], 2 * size[0]))
                whole = image.convert("RGB" if mode == "rgb" else "L")
            expected = np.asarray(whole.resize(size[::-1], Image.Resampling.BILINEAR))
            allowed = 0 if whole.size == (size[1], size[0]) else levels
            assert _levels_apart(pixels[0], expected) <= allowed, (width, height, size)


@pytest.mark.parametrize("name", ["rgb", "grayscale"])
@pytest.mark.parametrize("size", [(1, 1), (96, 96), (33, 500), (224, 700)])
def test_resizing_is_within_a_level_of_pillow(size: tuple[int, int], name: Any) -> None:
    """Noise, which is the hardest, shrunk up to 2000 times and enlarged up to 33 times, by other factors per side."""
    for shape in [(900, 1200), (2000, 21), (7, 2000), (3, 21)]:
        noise = Image.fromarray(np.random.default_rng(3).integers(0, 256, (*shape, 3), dtype=np.uint8))
        pixels, _ = decode_images(pa.chunked_array([[_encode(np.asarray(noise))]]), size, name)
        expected = noise.convert("RGB" if name == "rgb" else "L").resize(
            size[::-1], Image.Resampling.BILINEAR
        )
        assert _levels_apart(pixels[0], np.asarray(expected)) <= 1, shape


def test_a_cmyk_jpeg_is_left_to_pillow() -> None:
    picture = Image.fromarray(RGB).resize((64, 64)).convert("CMYK")
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    pixels, corrupt = decode_images(pa.chunked_array([[buffer.getvalue()]]), (64, 64), "rgb")
    assert not corrupt
    with Image.open(buffer) as image:
        assert np.array_equal(pixels[0], np.asarray(image.convert("RGB")))
