"""Decode and resize encoded images, many at a time. Imports: numpy, Pillow, pyarrow."""

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
    from PIL import Image

    if not data:
        raise ValueError("no bytes")
    height, width = size
    with Image.open(io.BytesIO(data)) as image:
        # A JPEG is decoded at a fraction of its size, but at twice the wanted one at least, which cannot be told
        # from the whole after resizing (Pillow's own thumbnails are made so), and takes a fraction of the time.
        image.draft(_MODES[mode], (2 * width, 2 * height))
        converted = image.convert(_MODES[mode])
    if converted.size != (width, height):
        converted = converted.resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(converted, dtype=np.uint8).reshape(height, width, -1)


def _paths(column: pa.ChunkedArray) -> Sequence[Any]:
    if pa.types.is_struct(column.type) and column.type.get_field_index("path") >= 0:
        return pc.struct_field(column, "path").to_pylist()  # type: ignore[no-any-return]
    return [None] * len(column)
