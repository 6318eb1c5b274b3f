"""Images and arrays: folders of image files, torchvision's original files, NumPy files."""

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.data.columns import array_values
from orchestrator.data.sources.chunks import Unreadable
from orchestrator.data.sources.fingerprint import fingerprint
from orchestrator.data.sources.read import open_source, read_source
from orchestrator.errors import SourceError
from tests.unit.source_cases import BY_FILES, opened, rows_of, section


def put(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode() * 100)


def labels(folder: Path) -> dict[str, str]:
    table = rows_of(opened("image_folder", folder))
    return {
        image["path"]: label
        for image, label in zip(table["image"].to_pylist(), table["label"].to_pylist(), strict=True)
    }


def test_classes_may_lie_in_folders_of_parts(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.jpg", "train/dog/x/2.jpg", "test/cat/3.jpg", "train/notes.txt")
    assert labels(tmp_path) == {"test/cat/3.jpg": "cat", "train/cat/1.jpg": "cat", "train/dog/x/2.jpg": "dog"}


def test_folders_that_are_called_like_parts_may_be_classes(tmp_path: Path) -> None:
    put(tmp_path, "train/1.jpg", "bus/2.jpg", "bus/.hidden.jpg")
    assert labels(tmp_path) == {"bus/2.jpg": "bus", "train/1.jpg": "train"}
    source = open_source(section({"kind": "image_folder", "path": str(tmp_path)}, "label", split=BY_FILES))
    assert rows_of(source)["__path__"].to_pylist() == ["bus/2.jpg", "train/1.jpg"]


def test_chunks_of_an_image_folder(tmp_path: Path) -> None:
    put(tmp_path, *(f"{name}/{n:03}.jpg" for name in ("cat", "dog") for n in range(100)))
    whole, cut = opened("image_folder", tmp_path), opened("image_folder", tmp_path, 20_000)
    assert len(whole.chunks) == 1
    assert len(cut.chunks) >= 10
    assert rows_of(cut).equals(rows_of(whole))
    assert rows_of(pickle.loads(pickle.dumps(cut))).equals(rows_of(whole))
    before = [chunk.fingerprint for chunk in cut.chunks]
    put(tmp_path, "cat/100.jpg")
    after = [chunk.fingerprint for chunk in opened("image_folder", tmp_path, 20_000).chunks]
    assert len(set(after) - set(before)) <= 5


def test_an_image_that_cannot_be_read_names_itself(tmp_path: Path) -> None:
    put(tmp_path, "cat/1.jpg", "cat/2.jpg")
    source = opened("image_folder", tmp_path)
    (tmp_path / "cat/2.jpg").unlink()
    with pytest.raises(SourceError, match=r"cat/2.jpg cannot be read"):
        source.chunks[0].read()
    faults: list[Unreadable] = []
    assert source.chunks[0].read(faults).num_rows == 1
    assert [Path(fault.place).name for fault in faults] == ["2.jpg"]


def idx(array: np.ndarray[Any, Any]) -> bytes:
    """The format of MNIST's files."""
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_mnist(folder: Path, name: str = "MNIST") -> dict[str, tuple[Any, Any]]:
    generator = np.random.default_rng(0)
    parts = {}
    (folder / name / "raw").mkdir(parents=True)
    for part, rows in (("train", 30), ("t10k", 10)):
        images = generator.integers(0, 256, (rows, 28, 28), dtype=np.uint8)
        digits = generator.integers(0, 10, rows, dtype=np.uint8)
        (folder / name / "raw" / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / name / "raw" / f"{part}-labels-idx1-ubyte").write_bytes(idx(digits))
        parts[part] = images, digits
    return parts


def torchvision(folder: Path, name: str = "MNIST", **more: Any) -> Any:
    return section({"kind": "torchvision", "name": name, "path": str(folder), **more}, "label")


def test_mnist_from_its_original_files(tmp_path: Path) -> None:
    parts = write_mnist(tmp_path)
    for part, stored in (("train", "train"), ("test", "t10k")):
        table = read_source(torchvision(tmp_path, part=part))
        assert table.column_names == ["image", "label"]
        np.testing.assert_array_equal(array_values(table["image"]), parts[stored][0])
        assert table["label"].to_pylist() == parts[stored][1].tolist()
    table = read_source(torchvision(tmp_path, part="all"))
    assert table["part"].to_pylist() == ["train"] * 30 + ["test"] * 10
    first = fingerprint(torchvision(tmp_path))
    file = tmp_path / "MNIST/raw/train-labels-idx1-ubyte"
    file.write_bytes(
        file.read_bytes()[:-1] + b"\x00" if file.read_bytes()[-1] else file.read_bytes()[:-1] + b"\x01"
    )
    assert fingerprint(torchvision(tmp_path)) != first


def test_fashion_has_names_for_labels(tmp_path: Path) -> None:
    parts = write_mnist(tmp_path, "FashionMNIST")
    table = read_source(torchvision(tmp_path, "FashionMNIST"))
    boots = [row for row, digit in enumerate(parts["train"][1]) if digit == 9]
    assert [row for row, name in enumerate(table["label"].to_pylist()) if name == "Ankle boot"] == boots


def test_cifar_from_its_original_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written as the original's pickles are; only their checksums are not looked at."""
    from orchestrator.vision import import_torchvision

    cifar = import_torchvision().datasets.cifar
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: Path(path).is_file())
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (60, 3, 32, 32), dtype=np.uint8)
    names = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
    for n, name in enumerate(names):
        rows = pixels[10 * n : 10 * n + 10].reshape(10, -1)
        (folder / name).write_bytes(pickle.dumps({"data": rows, "labels": list(range(10))}))
    classes = [f"class{n}" for n in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": classes}))
    table = read_source(torchvision(tmp_path, "CIFAR10", part="all"))
    np.testing.assert_array_equal(array_values(table["image"]), pixels.transpose(0, 2, 3, 1))
    assert table["label"].to_pylist() == classes * 6
    assert table["part"].to_pylist() == ["train"] * 50 + ["test"] * 10


def test_svhn_from_its_original_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written as MATLAB would; only the checksum is not looked at."""
    import scipy.io

    from orchestrator.vision import import_torchvision

    monkeypatch.setattr(import_torchvision().datasets.SVHN, "_check_integrity", lambda self: True)
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 12), dtype=np.uint8)
    digits = np.arange(1, 13)[:, None] % 10
    digits[digits == 0] = 10  # how SVHN writes a zero
    scipy.io.savemat(tmp_path / "test_32x32.mat", {"X": pixels, "y": digits.astype(np.uint8)})
    table = read_source(torchvision(tmp_path, "SVHN", part="test"))
    np.testing.assert_array_equal(array_values(table["image"]), pixels.transpose(3, 0, 1, 2))
    assert table["label"].to_pylist() == [n % 10 for n in range(1, 13)]


def test_missing_original_files_are_named(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    file = tmp_path / "MNIST/raw/t10k-labels-idx1-ubyte"
    content = file.read_bytes()
    file.unlink()
    with pytest.raises(SourceError, match=r"t10k-labels-idx1-ubyte is missing.*import MNIST.*download=True"):
        read_source(torchvision(tmp_path))
    file.with_name(f"{file.name}.gz").write_bytes(gzip.compress(content))
    with pytest.raises(SourceError, match=r"unpack t10k-labels-idx1-ubyte.gz"):
        read_source(torchvision(tmp_path))
    with pytest.raises(SourceError, match=r"cifar-100-python/train.*are missing.*import CIFAR100"):
        read_source(torchvision(tmp_path, "CIFAR100"))
    (tmp_path / "test_32x32.mat").write_bytes(b"no file of MATLAB's")
    with pytest.raises(SourceError, match="torchvision cannot read SVHN"):
        read_source(torchvision(tmp_path, "SVHN", part="test"))


def test_npz_files_follow_each_other(tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 2, 4)
    for n in range(2):
        rows = slice(3 * n, 3 * n + 3)
        np.savez(tmp_path / f"{n}.npz", image=pixels[rows], label=np.array(["a", "b", "c"]))
    for chunk_bytes in (2**26, 1):
        source = opened("numpy", tmp_path, chunk_bytes)
        table = rows_of(source)
        assert table.schema.field("image").type == pa.fixed_shape_tensor(pa.uint8(), (2, 4))
        np.testing.assert_array_equal(array_values(table["image"]), pixels)
        assert table["label"].to_pylist() == ["a", "b", "c"] * 2
    assert len(source.chunks) == 2
    (tmp_path / "1.npz").write_bytes(b"PK no zip")
    with pytest.raises(SourceError, match=r"1.npz cannot be read as NumPy arrays"):
        rows_of(opened("numpy", tmp_path))


def test_npy_files_are_columns(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(6.0).reshape(3, 2))
    np.save(tmp_path / "y.npy", np.array([True, False, True]))
    source = open_source(section({"kind": "numpy", "path": str(tmp_path)}, "y"))
    assert rows_of(source)["y"].to_pylist() == [True, False, True]
    assert rows_of(pickle.loads(pickle.dumps(source))).equals(rows_of(source))
    first = fingerprint(section({"kind": "numpy", "path": str(tmp_path)}))
    (tmp_path / "y.npy").rename(tmp_path / "z.npy")
    assert fingerprint(section({"kind": "numpy", "path": str(tmp_path)})) != first
    np.save(tmp_path / "z.npy", np.zeros(4))
    with pytest.raises(SourceError, match=r"same number of rows: x \(3, 2\), z \(4,\)"):
        read_source(section({"kind": "numpy", "path": str(tmp_path)}))
    np.save(tmp_path / "z.npy", np.array([{}], dtype=object))
    with pytest.raises(SourceError, match=r"z.npy cannot be read as a NumPy array.*pickle"):
        read_source(section({"kind": "numpy", "path": str(tmp_path)}))
    np.savez(tmp_path / "z.npz", a=np.zeros(3))
    with pytest.raises(SourceError, match=r"\.npy and \.npz"):
        read_source(section({"kind": "numpy", "path": str(tmp_path)}))
