"""Sources of images: folders of image files, and the original files of torchvision's data sets.

Imports: numpy, pyarrow; torchvision where it is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from orchestrator.data.sources.chunks import (
    Faults,
    Piece,
    Plan,
    Unreadable,
    WholePlan,
    concat,
    conform,
    digest_lines,
    unreadable,
    with_paths,
)
from orchestrator.data.sources.files import File, class_images
from orchestrator.data.sources.grouping import group_files
from orchestrator.data.sources.memo import Memo
from orchestrator.data.threads import in_threads
from orchestrator.errors import SourceError
from orchestrator.spec.data import ImageFolderSource, TorchvisionSource
from orchestrator.vision import import_torchvision

_READERS, _LOCAL_READERS = 8, 2
"""Threads that read image files: most of the time they wait."""
_SCHEMA = pa.schema(
    [
        ("image", pa.struct([("bytes", pa.large_binary()), ("path", pa.string())])),
        ("label", pa.string()),
    ]
)


def plan_image_folder(source: ImageFolderSource, chunk_bytes: int, memo: Memo) -> Plan:
    """Groups of image files, by class."""
    labels = {file: name for name, files in class_images(source.path).items() for file in files}
    try:
        hashes = dict(zip(labels, memo.hashes(list(labels)), strict=True))
    except OSError as error:
        raise SourceError(f"data.source.path: {error}", "check the rights of the file") from error
    pieces = []
    for group in group_files(list(labels), chunk_bytes):
        name = f"{group[0]} to {group[-1].relative} ({len(group)} images)"
        digest = digest_lines(f"{file.relative} {hashes[file]}" for file in group)
        pieces.append(Piece(name, digest, partial(_load_images, [(file, labels[file]) for file in group])))
    return Plan(tuple(pieces), lambda wanted: (_SCHEMA, _SCHEMA.names))  # noqa: ARG005


def _load_images(images: Sequence[tuple[File, str]], schema: pa.Schema, faults: Faults) -> pa.Table:
    def read(file: File) -> bytes | Unreadable:
        try:
            return file.read_bytes()
        except OSError as error:
            return Unreadable(str(file), f"as a file: {error.strerror or error}")

    local = all(file.filesystem is None for file, _ in images)
    contents = in_threads(read, [file for file, _ in images], _LOCAL_READERS if local else _READERS)
    bad = [content for content in contents if isinstance(content, Unreadable)]
    if bad and faults is None:
        raise unreadable(bad[0])
    if faults is not None:
        faults += bad
    good = [
        (content, file.relative, label)
        for content, (file, label) in zip(contents, images, strict=True)
        if not isinstance(content, Unreadable)
    ]
    encoded = pa.array([content for content, _, _ in good], pa.large_binary())
    paths = pa.array([path for _, path, _ in good], pa.string())
    labels = pa.array([label for _, _, label in good], pa.string())
    table = pa.table(
        [pa.StructArray.from_arrays([encoded, paths], ["bytes", "path"]), labels], schema=_SCHEMA
    )
    return conform(with_paths(table, [path for _, path, _ in good], schema), schema)


_CIFAR = {
    "CIFAR10": (
        "cifar-10-batches-py",
        {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]},
        "batches.meta",
    ),
    "CIFAR100": ("cifar-100-python", {"train": ["train"], "test": ["test"]}, "meta"),
}
_WITH_NAMES = ("FashionMNIST", "CIFAR10", "CIFAR100")
"""Data sets whose classes have telling names; labels of the others are numbers."""


def plan_torchvision(source: TorchvisionSource, memo: Memo) -> WholePlan:
    """Fingerprint: the content of the original files."""
    root = Path(source.path).expanduser().absolute()
    files = [root / name for name in _original_files(source)]
    if missing := [file for file in files if not file.is_file()]:
        packed = any(file.with_name(f"{file.name}.gz").is_file() for file in missing)
        raise SourceError(
            f"data.source.path: of {source.name} {', '.join(str(file) for file in missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing",
            f"unpack {missing[0].name}.gz and its like there"
            if packed
            else "copy the original files there, or fetch them where there is a network: python -c "
            f'"from torchvision.datasets import {source.name}; {_fetch(source)}"',
        )
    stats = [(file, file.stat()) for file in files]
    found = [File(str(file), file.name, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    lines = [f"{source.name} {source.part}", *memo.hashes(found)]
    return WholePlan(
        f"{source.name} in {root}", digest_lines(lines), partial(_read_torchvision, source, root)
    )


def _parts(source: TorchvisionSource) -> list[str]:
    return ["train", "test"] if source.part == "all" else [source.part]


def _original_files(source: TorchvisionSource) -> list[str]:
    """What torchvision reads, below its root."""
    if source.name == "SVHN":
        return [f"{part}_32x32.mat" for part in _parts(source)]
    if source.name in _CIFAR:
        folder, batches, meta = _CIFAR[source.name]
        return [f"{folder}/{name}" for part in _parts(source) for name in batches[part]] + [
            f"{folder}/{meta}"
        ]
    # torchvision opens the files of one part, but asks for those of both.
    return [
        f"{source.name}/raw/{part}-{what}-ubyte"
        for part in ("train", "t10k")
        for what in ("images-idx3", "labels-idx1")
    ]


def _fetch(source: TorchvisionSource) -> str:
    root = f"'{source.path}'"
    if source.name == "SVHN":
        return "; ".join(f"SVHN({root}, split='{part}', download=True)" for part in _parts(source))
    return f"{source.name}({root}, download=True)"


def _read_torchvision(source: TorchvisionSource, root: Path) -> pa.Table:
    datasets = import_torchvision().datasets
    kind = getattr(datasets, source.name)
    tables = []
    for part in _parts(source):
        try:
            if source.name == "SVHN":
                read = kind(str(root), split=part, download=False)
            else:
                read = kind(str(root), train=part == "train", download=False)
        except Exception as error:
            raise SourceError(
                f"data.source.path: torchvision cannot read {source.name} in {root}: {type(error).__name__}: {error}",
                "copy the original files there again",
            ) from error
        columns = {"image": _images(source, read.data), "label": _labels(source, read)}
        if source.part == "all":
            columns["part"] = pa.repeat(part, len(columns["label"]))
        tables.append(pa.table(columns))
    return concat(tables, tables[0].schema)


def _images(source: TorchvisionSource, data: Any) -> pa.Array:
    """Shape (rows, height, width) or, with colours, (rows, height, width, 3)."""
    pixels = np.asarray(data)
    if source.name == "SVHN":
        pixels = pixels.transpose(0, 2, 3, 1)
    return pa.FixedShapeTensorArray.from_numpy_ndarray(np.ascontiguousarray(pixels))


def _labels(source: TorchvisionSource, read: Any) -> pa.Array:
    numbers = pa.array(np.asarray(read.labels if source.name == "SVHN" else read.targets).astype(np.int64))
    return pa.array(list(read.classes)).take(numbers) if source.name in _WITH_NAMES else numbers
