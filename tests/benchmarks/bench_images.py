"""How fast a folder of pictures is decoded and resized, and read again: against DataLoader with Pillow, and Ray Data.

    IMAGE_FOLDER=cats_and_dogs_filtered/train python tests/benchmarks/bench_images.py [--runs 5] [--size 96]

The folder has a subfolder per class. Decoding is once through all pictures: ours as preparation does it (the work of
`decode_images`, files read), a DataLoader whose workers decode and resize by Pillow (best of 0, 1 and 2 workers), Ray
Data's `read_images` with a size (its start not counted: it goes through the folder once before). Then epochs: ours
from prepared data, the DataLoader decoding anew, as it does in every epoch. Contestants take turns.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from orchestrator.data.features.images import decode_images
from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.preparing.prepare import prepare
from orchestrator.data.sources.read import open_source
from orchestrator.spec.data import DataSection
from orchestrator.storage import Folder
from tests.benchmarks.machine import describe_machine

WORKERS = (0, 1, 2)
DECODING, EPOCHS = 1.0, 10.0
"""Targets: times as many pictures per second. An epoch from memory must be nowhere near decoding."""
BATCH_SIZE = 64


class Pictures(Dataset[NDArray[np.uint8]]):
    """As tutorials do it: a file is opened, decoded and resized when it is asked for."""

    def __init__(self, files: list[Path], size: int) -> None:
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> NDArray[np.uint8]:
        with Image.open(self.files[index]) as image:
            small = image.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        return np.asarray(small)


def section(folder: Path, size: int) -> DataSection:
    return DataSection.model_validate(
        {
            "source": {"kind": "image_folder", "path": str(folder)},
            "target": "label",
            "image": {"size": [size, size]},
            "max_corrupt_share": 0.05,
            "quality": {"report": False},
        }
    )


def ours(folder: Path, size: int) -> int:
    """Read and decode all pictures, chunk by chunk."""
    count = 0
    for chunk in open_source(section(folder, size)).chunks:
        table = chunk.read([])
        pixels, _ = decode_images(table["image"], (size, size), "rgb")
        count += len(pixels)
    return count


def loader(files: list[Path], size: int, num_workers: int) -> int:
    batches = DataLoader(Pictures(files, size), batch_size=BATCH_SIZE, num_workers=num_workers)
    return sum(len(batch) for batch in batches)


def by_ray(folder: Path, size: int) -> int:
    import ray.data

    images = ray.data.read_images(str(folder), size=(size, size), mode="RGB")
    return sum(len(batch["image"]) for batch in images.iter_batches(batch_size=BATCH_SIZE))


def epoch(prepared: Prepared) -> int:
    """All training pictures in random order, as a model takes them."""
    part, order = (
        prepared.part("train"),
        np.random.default_rng(0).permutation(prepared.manifest.rows["train"]),
    )
    for rows in np.array_split(order, max(1, len(order) // BATCH_SIZE)):
        prepared.pipeline.transform(part.gather(rows).features)
    return len(order)


def per_s(work: Callable[[], int]) -> float:
    began = time.perf_counter()
    return work() / (time.perf_counter() - began)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--size", type=int, default=96)
    arguments = parser.parse_args()
    if "IMAGE_FOLDER" not in os.environ:
        print("left out: set IMAGE_FOLDER to a folder that has one subfolder of JPEG files per class")
        return 0
    warnings.simplefilter("ignore")
    folder, size = Path(os.environ["IMAGE_FOLDER"]), arguments.size
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png"))
    print(describe_machine("torch", "pillow", "simplejpeg", "ray"))
    print(f"{len(files)} pictures to {size}×{size}, {arguments.runs} rounds in turns")
    torch.set_num_threads(2)
    import ray

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    with tempfile.TemporaryDirectory(prefix="bench-") as place:
        prepared = prepare(section(folder, size), task="auto", seed=0, storage=Folder.at(place))
        ways: dict[str, Callable[[], int]] = {
            "ours": partial(ours, folder, size),
            **{f"DataLoader, {count} workers": partial(loader, files, size, count) for count in WORKERS},
            "Ray Data": partial(by_ray, folder, size),
            "ours, a later epoch": partial(epoch, prepared),
        }
        for work in ways.values():
            work()
        speeds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(arguments.runs):
            for way, work in ways.items():
                speeds[way].append(per_s(work))
    ray.shutdown()
    return 0 if report(speeds) else 1


def report(speeds: dict[str, list[float]]) -> bool:
    for way, values in speeds.items():
        print(f"{way:<24} {statistics.median(values):>10.0f} pictures/s")
    peers = [way for way in speeds if not way.startswith("ours")]
    best = max(peers, key=lambda way: statistics.median(speeds[way]))
    good = True
    for way, target in (("ours", DECODING), ("ours, a later epoch", EPOCHS)):
        ratio = statistics.median(a / b for a, b in zip(speeds[way], speeds[best], strict=True))
        good &= ratio >= target
        print(
            f"{way} / {best}: {ratio:.2f} (target at least {target}): {'met' if ratio >= target else 'MISSED'}"
        )
    return good


if __name__ == "__main__":
    sys.exit(main())
