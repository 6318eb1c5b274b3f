"""Decode and resize encoded images, many at a time. Imports: numpy, Pillow, pyarrow, simplejpeg, torch."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.data.columns import image_bytes
from orchestrator.data.threads import in_threads

_CHANNELS = {"rgb": 3, "grayscale": 1}
_MODES = {"rgb": "RGB", "grayscale": "L"}
"""What Pillow calls them."""
_JPEG = b"\xff\xd8\xff"
_FEWEST, _MOST_PIXELS = 16, 80_000_000
"""On a side, and in all, of a JPEG that is decoded past Pillow, which warns of larger ones."""
_VECTORS = ("AVX2", "AVX512")
"""Processors for which torch resizes fast."""


@dataclass(frozen=True)
class CorruptImage:
    """An image that could not be decoded: its row, counted from 0, its path where known, and why."""

    row: int
    path: str
    reason: str

    def __str__(self) -> str:
        return f"row {self.row}{f' ({self.path})' if self.path else ''}: {self.reason}"


def decode_images(
    column: pa.ChunkedArray, size: tuple[int, int], mode: Literal["rgb", "grayscale"]
) -> tuple[NDArray[np.uint8], list[CorruptImage]]:
    """Pixels of shape (rows, height, width, channels), resized bilinearly, and the images that are damaged.

    The pixels of a damaged image are zero. `size` is (height, width); decoding runs on all cores.
    """
    # Here too: where one is missing, the images are not the damaged ones.
    import simplejpeg  # noqa: F401
    import torch  # noqa: F401
    from PIL import UnidentifiedImageError

    encoded = image_bytes(column)
    pixels = np.zeros((len(column), *size, _CHANNELS[mode]), dtype=np.uint8)

    def decode(row: int) -> str:
        try:
            pixels[row] = _decode(encoded[row].as_py(), size, mode)
        except UnidentifiedImageError:
            return "no known image format"  # Pillow's message names a Python object
        except Exception as error:  # noqa: BLE001 - decoders raise whatever a damaged file leads them to
            return f"{type(error).__name__}: {error}"
        return ""

    reasons = in_threads(decode, range(len(column)), os.cpu_count() or 1)
    paths = _paths(column)
    corrupt = [CorruptImage(row, paths[row] or "", reason) for row, reason in enumerate(reasons) if reason]
    return pixels, corrupt


def _decode(data: bytes | None, size: tuple[int, int], mode: str) -> NDArray[np.uint8]:
    """One image, shape (height, width, channels). A truncated file raises, as Pillow does by default."""
    if not data:
        raise ValueError("no bytes")
    pixels = _jpeg(data, size, mode)
    return _resize(_any_image(data, size, mode) if pixels is None else pixels, size)


def _any_image(data: bytes, size: tuple[int, int], mode: str) -> NDArray[np.uint8]:
    """Decoded by Pillow, not yet of the wanted size."""
    from PIL import Image

    height, width = size
    with Image.open(io.BytesIO(data)) as image:
        # A JPEG is decoded at a fraction of its size, but at twice the wanted one at least, which cannot be told
        # from the whole after resizing (Pillow's own thumbnails are made so), and takes a fraction of the time.
        image.draft(_MODES[mode], (2 * width, 2 * height))
        return np.atleast_3d(np.array(image.convert(_MODES[mode])))


def _jpeg(data: bytes, size: tuple[int, int], mode: str) -> NDArray[np.uint8] | None:
    """The same pixels as `_any_image` gives, by the same library (libjpeg-turbo), but without Python's lock, so that
    threads decode side by side.

    None for what Pillow has to decide: other formats, other ways to store colors, damaged files, and sizes that are
    suspicious, or so small that a fraction could be mistaken for the next one.
    """
    import simplejpeg

    if not data.startswith(_JPEG):
        return None
    try:
        height, width, colors, _ = simplejpeg.decode_jpeg_header(data)
        if colors not in ("YCbCr", "Gray") or min(height, width) < _FEWEST or height * width > _MOST_PIXELS:
            return None
        whole = min(width // (2 * size[1]), height // (2 * size[0]))
        part = next((fraction for fraction in (8, 4, 2) if whole >= fraction), 1)  # as Pillow's draft
        smallest = {"min_height": -(-height // part), "min_width": -(-width // part)}
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            data, "RGB" if mode == "rgb" else "GRAY", **smallest
        )
    except ValueError:
        return None
    return pixels


def _resize(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Bilinear, antialiased: each new value is a weighted mean of all that it covers.

    By torch, whose kernel is Pillow's algorithm in vector instructions: a third of the time, values equal or one level
    (of 255) apart. It has none for other processors, and its general one is ten times as slow as Pillow, so there it
    is Pillow. Both work in one thread, without Python's lock.
    """
    import torch
    from PIL import Image

    if pixels.shape[:2] == size:
        return pixels
    if torch.backends.cpu.get_cpu_capability() in _VECTORS:
        images = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)  # a view: channels stay last in memory
        images = torch.nn.functional.interpolate(images, size, mode="bilinear", antialias=True)
        return images[0].permute(1, 2, 0).numpy()
    image = Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels)
    return np.atleast_3d(np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR)))


def _paths(column: pa.ChunkedArray) -> Sequence[Any]:
    if pa.types.is_struct(column.type) and column.type.get_field_index("path") >= 0:
        return pc.struct_field(column, "path").to_pylist()  # type: ignore[no-any-return]
    return [None] * len(column)
