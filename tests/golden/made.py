"""Data for the ready jobs that ship none, and what makes the largest of them small enough for a test."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sklearn import datasets

VARIABLES = {
    "cats_dogs_vgg16": "IMAGE_FOLDER",
    "image_folder": "IMAGE_FOLDER",
    "mnist": "MNIST",
    "parquet_images": "PARQUET_IMAGES",
}
"""Jobs on data of the user's own, and the variable that names it."""
LARGE = ("cats_dogs_vgg16",)
"""Jobs whose tests take half a minute, made small as they are."""
SMALL_VGG: dict[str, Any] = {
    # Plain SGD keeps the checkpoint of 134 million weights as small as they are.
    "data.image.size": [32, 32],
    "train.max_epochs": 1,
    "train.optimizer": {"kind": "sgd", "lr": 0.001, "momentum": 0.0},
}


def made_data(folder: Path) -> dict[str, Path]:
    """Write the data for the jobs of `VARIABLES` into `folder`; where it is, by job."""
    images, table = folder / "stripes", folder / "digits.parquet"
    write_stripes(images)
    write_digits(table)
    return {"cats_dogs_vgg16": images, "image_folder": images, "mnist": table, "parquet_images": table}


def write_stripes(folder: Path) -> None:
    """Upright and lying stripes of any colour, width and phase, with noise, as JPEG and PNG."""
    from PIL import Image

    random = np.random.default_rng(0)
    for label in ("lying", "upright"):
        (folder / label).mkdir(parents=True)
        for i in range(80):
            wave = np.sin(np.arange(60) / random.uniform(1.5, 4) + random.uniform(0, 6))
            picture = np.broadcast_to(wave[:, None] if label == "lying" else wave, (60, 60))
            colours = 128 + 100 * picture[:, :, None] * random.uniform(-1, 1, 3)
            noisy = colours + random.normal(0, 10, (60, 60, 3))
            image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
            image.save(folder / label / f"{i}.{'jpg' if i % 2 else 'png'}")


def write_digits(file: Path) -> None:
    """scikit-learn's digits as PNG bytes, in Hugging Face's layout with the names of the classes."""
    from PIL import Image

    images, labels = datasets.load_digits(return_X_y=True)
    rows = []
    for i, pixels in enumerate(images.reshape(-1, 8, 8)):
        buffer = io.BytesIO()
        Image.fromarray((pixels * 15).astype(np.uint8)).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": f"{i}.png"})
    features = {
        "image": {"_type": "Image"},
        "label": {"_type": "ClassLabel", "names": [f"digit {n}" for n in range(10)]},
    }
    table = pa.table({"image": rows, "label": labels.astype(np.int64)})
    described = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(table.replace_schema_metadata(described), file)
