"""Prepared data: built once, found again, rebuilt when damaged; what is in it equals the source."""

import io
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.preparing import build as build_module
from orchestrator.data.preparing.prepare import discard, prepare
from orchestrator.data.sources.fingerprint import fingerprint
from orchestrator.errors import DataError, SourceError
from orchestrator.spec.data import DataSection
from orchestrator.storage import Folder
from tests.raw_rows import raw_rows

LINEAR = {
    "source": {"kind": "linear", "coefficients": [3, 2], "rows": 200},
    "target": "y",
    "transforms": [{"kind": "standardize"}],
    "target_transform": "standardize",
}


def _section(value: dict[str, Any], **more: Any) -> DataSection:
    return DataSection.model_validate(value | more)


def _prepare(section: DataSection, storage: Path, seed: int = 0, task: str = "auto") -> Prepared:
    return prepare(section, task=task, seed=seed, storage=Folder.at(storage))


def test_parts_equal_the_source(tmp_path: Path) -> None:
    section = _section(LINEAR)
    prepared = Prepared.load(_prepare(section, tmp_path).folder)
    manifest = prepared.manifest
    assert (manifest.task, manifest.classes, manifest.num_outputs) == ("regression", None, 1)
    assert dict(manifest.rows) == {"train": 140, "val": 30, "test": 30}
    assert manifest.input_shape == manifest.stored_shape == (2,)
    seen = []
    for name, count in manifest.rows.items():
        part = prepared.part(name)
        batch = part.gather(np.arange(count))
        raw = raw_rows(section, prepared, name)
        assert np.array_equal(prepared.pipeline.encode(raw), batch.features.numpy())
        np.testing.assert_allclose(
            3 * raw["x1"].to_numpy() + 2 * raw["x2"].to_numpy(), batch.targets, rtol=1e-5
        )
        seen += part.source_rows().tolist()
    assert sorted(seen) == list(range(200))


@pytest.mark.parametrize("indices", [[], [0], [3, 4, 5], [5, 4, 3], [7, 7, 0], [0, 2], [139], [0, 2, 1, 3]])
def test_gather_equals_indexing(tmp_path: Path, indices: list[int]) -> None:
    part = _prepare(_section(LINEAR), tmp_path).part("train")
    whole = part.gather(np.arange(part.num_rows))
    batch = part.gather(np.array(indices, dtype=np.int64))
    assert torch.equal(batch.features, whole.features[indices])
    assert torch.equal(batch.targets, whole.targets[indices])


def test_rows_that_follow_each_other_are_not_copied(tmp_path: Path) -> None:
    part = _prepare(_section(LINEAR), tmp_path).part("train")
    first, second = part.gather(np.arange(10, 20)), part.gather(np.arange(10, 20))
    assert first.features.data_ptr() == second.features.data_ptr()


def _sum_of_features(part: Any) -> float:
    return float(part.gather(np.arange(part.num_rows)[::-1].copy()).features.double().sum())


def test_another_process_reads_the_same_part(tmp_path: Path) -> None:
    prepared = _prepare(_section(LINEAR), tmp_path)
    part = pickle.loads(pickle.dumps(prepared)).part("train")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        there = pool.apply(_sum_of_features, [part])
        pool.close()
        pool.join()
    assert there == _sum_of_features(part)


def test_classification_manifest(tmp_path: Path) -> None:
    section = _section(
        {"source": {"kind": "sklearn", "name": "breast_cancer"}, "target": "target"},
        split={"kind": "stratified", "train": 0.8, "val": 0.2, "test": 0},
        clean=[{"kind": "drop_duplicates"}],
    )
    prepared = _prepare(section, tmp_path)
    manifest = prepared.manifest
    assert (manifest.task, manifest.classes, manifest.num_outputs) == ("binary", ["benign", "malignant"], 1)
    assert prepared.pipeline.classes == manifest.classes
    assert manifest.class_counts is not None
    assert sum(part["benign"] for part in manifest.class_counts.values()) == 357
    assert manifest.class_counts["test"] == {"benign": 0, "malignant": 0}
    assert manifest.cleaning == [{"step": "drop_duplicates", "columns": [], "rows": 0}]
    assert prepared.part("test").gather(np.arange(0)).features.shape == (0, 30)
    assert Prepared.load(prepared.folder).manifest == manifest
    example = prepared.raw_example(3)
    assert example.num_rows == 3
    assert example.column_names == list(prepared.pipeline.raw_schema.columns)
    assert example.equals(raw_rows(section, prepared, "train").slice(0, 3))


def test_digits_are_images(tmp_path: Path) -> None:
    section = _section(
        {"source": {"kind": "sklearn", "name": "digits"}, "target": "label"},
        transforms=[{"kind": "standardize"}],
    )
    prepared = _prepare(section, tmp_path)
    assert (prepared.manifest.input_shape, prepared.manifest.num_outputs) == ((1, 8, 8), 10)
    part = prepared.part("train")
    inputs = prepared.pipeline.transform(part.gather(np.arange(part.num_rows)).features)
    assert inputs.shape == (part.num_rows, 1, 8, 8)
    assert abs(float(inputs.mean())) < 1e-4
    assert abs(float(inputs.std()) - 1) < 1e-3


def test_the_test_part_teaches_nothing(tmp_path: Path) -> None:
    """Rows that end up in val and test may hold anything: what was fitted stays the same."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=100), rng.normal(size=100)
    x[::7] = np.nan
    section = _section(
        {"source": {"kind": "parquet", "path": str(tmp_path / "a.parquet")}, "target": "y"},
        clean=[{"kind": "fill_nulls", "value": "mean"}],
        transforms=[{"kind": "standardize"}, {"kind": "min_max"}],
        target_transform="standardize",
    )
    pq.write_table(pa.table({"x": x, "y": y}), tmp_path / "a.parquet")
    first = _prepare(section, tmp_path)
    train = first.part("train").source_rows()
    other = np.setdiff1d(np.arange(100), train)
    x[other] += 1000
    y[other] -= 1000
    pq.write_table(pa.table({"x": x, "y": y}), tmp_path / "a.parquet")
    second = _prepare(section, tmp_path)
    assert second.manifest.key != first.manifest.key
    assert second.pipeline == first.pipeline
    known = x[train][~np.isnan(x[train])]
    assert first.pipeline.changes == ({"do": "fill", "column": "x", "value": pytest.approx(known.mean())},)
    filled = np.where(np.isnan(x[train]), known.mean(), x[train])
    assert first.pipeline.transforms[0].shift[0] == pytest.approx(filled.mean(), abs=1e-6)
    assert first.pipeline.transforms[0].divide[0] == pytest.approx(filled.std(), rel=1e-5)


def test_found_again_under_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _prepare(_section(LINEAR), tmp_path)
    others = [
        _prepare(_section(LINEAR), tmp_path, seed=1),
        _prepare(_section(LINEAR, transforms=[]), tmp_path),
        _prepare(_section(LINEAR), tmp_path, task="regression"),
    ]
    assert len({first.folder, *(other.folder for other in others)}) == 4
    monkeypatch.delattr(build_module, "build")
    assert _prepare(_section(LINEAR), tmp_path).manifest == first.manifest
    assert not list((tmp_path / "prepared").glob("*.tmp-*"))


@pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "manifest", "version"])
def test_damaged_data_is_built_anew(tmp_path: Path, damage: str) -> None:
    prepared = _prepare(_section(LINEAR), tmp_path)
    file = prepared.folder / "train-00000.arrow"
    content = file.read_bytes()
    if damage == "truncate":
        file.write_bytes(content[:100])
    elif damage == "flip":
        file.write_bytes(content[:-50] + bytes([content[-50] ^ 1]) + content[-49:])
        os.utime(file, ns=(0, 0))
    elif damage == "remove":
        file.unlink()
    elif damage == "manifest":
        (prepared.folder / "manifest.json").write_text("{")
    else:
        (prepared.folder / "manifest.json").write_text(
            json.dumps(prepared.manifest.to_dict() | {"format_version": 0})
        )
    with pytest.raises(DataError, match="no complete prepared data"):
        Prepared.load(prepared.folder)
    assert _prepare(_section(LINEAR), tmp_path).folder == prepared.folder
    assert file.read_bytes() == content


def test_a_new_time_stamp_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = _prepare(_section(LINEAR), tmp_path)
    os.utime(prepared.folder / "train-00000.arrow", ns=(0, 0))
    monkeypatch.delattr(build_module, "build")
    assert _prepare(_section(LINEAR), tmp_path).folder == prepared.folder


def test_what_a_killed_build_left_is_cleared(tmp_path: Path) -> None:
    prepared = _prepare(_section(LINEAR), tmp_path)
    leftover = prepared.folder.with_name(f"{prepared.folder.name}.tmp-1-abc")
    prepared.folder.rename(leftover)
    assert _prepare(_section(LINEAR), tmp_path).folder == prepared.folder
    assert not leftover.exists()


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SourceError):
        _prepare(_section(LINEAR), tmp_path, task="multiclass")
    assert [path.suffix for path in (tmp_path / "prepared").iterdir()] == [".lock"]


def test_without_cache_it_is_always_built_and_can_be_discarded(tmp_path: Path) -> None:
    section = _section(LINEAR, cache=False)
    first, second = _prepare(section, tmp_path), _prepare(section, tmp_path)
    assert first.folder != second.folder
    discard(section, Folder.at(tmp_path), first)
    assert not first.folder.exists()
    cached = _prepare(_section(LINEAR), tmp_path)
    discard(_section(LINEAR), Folder.at(tmp_path), cached)
    assert cached.folder.exists()


READER = """
import os, pathlib
def read(log):
    with open(log, "a") as file:
        file.write("read\\n")
    return {"x": list(range(50)), "y": [i * 0.5 for i in range(50)]}
"""


def test_two_processes_build_once(tmp_path: Path) -> None:
    (tmp_path / "reader_of_two.py").write_text(READER)
    source = {"kind": "python", "function": "reader_of_two:read", "args": {"log": str(tmp_path / "log")}}
    section = json.dumps({"source": source, "target": "y"})
    script = (
        "import sys\nfrom orchestrator.spec.data import DataSection\n"
        "from orchestrator.storage import Folder\n"
        "from orchestrator.data.preparing.prepare import prepare\n"
        "section = DataSection.model_validate_json(sys.argv[1])\n"
        "sys.stdin.readline()\n"
        "print(prepare(section, task='auto', seed=0, storage=Folder.at(sys.argv[2])).folder)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, section, str(tmp_path / "runs")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for _ in range(2)
    ]
    for process in processes:  # both are imported and waiting by the time they read this, more or less
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    folders = {process.communicate(timeout=120)[0] for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert len(folders) == 1
    assert (tmp_path / "log").read_text() == "read\n"


def test_finding_prepared_data_is_light(tmp_path: Path) -> None:
    section = {"source": {"kind": "sklearn", "name": "iris"}, "target": "target"}
    _prepare(_section(section), tmp_path)
    script = (
        "import sys\nfrom orchestrator.spec.data import DataSection\n"
        "from orchestrator.storage import Folder\n"
        "from orchestrator.data.preparing.prepare import prepare\n"
        "from orchestrator.data.prepared.prepared import Prepared\n"
        "section = DataSection.model_validate_json(sys.argv[1])\n"
        "found = prepare(section, task='auto', seed=0, storage=Folder.at(sys.argv[2]))\n"
        "assert Prepared.load(found.folder).manifest.num_outputs == 3\n"
        "print(*sorted({'torch', 'sklearn', 'pandas', 'PIL', 'ray', 'mlflow'} & set(sys.modules)))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", script, json.dumps(section), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert output.stdout.strip() == ""


def test_remote_storage_is_copied_to_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bucket").mkdir()
    storage = Folder(pafs.SubTreeFileSystem(str(tmp_path / "bucket"), pafs.LocalFileSystem()), "runs")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node1"))
    section = _section(LINEAR)
    first = prepare(section, task="auto", seed=0, storage=storage)
    assert first.folder.is_relative_to(tmp_path / "node1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node2"))
    place = storage / "prepared" / first.manifest.key
    second = Prepared.load(place)
    assert second.folder.is_relative_to(tmp_path / "node2")
    assert second.manifest == first.manifest
    assert torch.equal(
        second.part("val").gather(np.arange(30)).features, first.part("val").gather(np.arange(30)).features
    )
    place.write_bytes("train-00000.arrow", b"damaged")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node3"))
    with pytest.raises(DataError, match="no complete prepared data"):
        Prepared.load(place)
    assert prepare(section, task="auto", seed=0, storage=storage).manifest.rows == first.manifest.rows


def _image_folder(root: Path, corrupt: int) -> dict[str, Any]:
    for label, shade in (("dark", 0), ("light", 200)):
        (root / label).mkdir(parents=True)
        for i in range(20):
            buffer = io.BytesIO()
            Image.new("L", (9, 7), shade + i).save(buffer, "PNG")
            data = buffer.getvalue()
            (root / label / f"{i:02}.png").write_bytes(data[:20] if label == "dark" and i < corrupt else data)
    return {"source": {"kind": "image_folder", "path": str(root)}, "target": "label"}


def test_corrupt_are_skipped_up_to_the_share(tmp_path: Path) -> None:
    section = _image_folder(tmp_path / "images", corrupt=2)
    image = {"size": [7, 9], "mode": "grayscale"}
    with pytest.raises(
        DataError, match=r"2 of 40 images cannot be read.*row 0 \(dark/00.png\).*row 1"
    ) as caught:
        _prepare(_section(section, image=image), tmp_path)
    assert "max_corrupt_share" in caught.value.reason
    prepared = _prepare(_section(section, image=image, max_corrupt_share=0.05), tmp_path)
    assert prepared.manifest.corrupt == 2
    assert sum(prepared.manifest.rows.values()) == 38
    assert prepared.manifest.input_shape == (1, 7, 9)
    assert prepared.manifest.class_counts is not None
    assert sum(part["dark"] for part in prepared.manifest.class_counts.values()) == 18
    for name in prepared.manifest.rows:
        part = prepared.part(name)
        batch = part.gather(np.arange(part.num_rows))
        assert batch.features.dtype == torch.uint8
        rows = part.source_rows()  # 20 dark images, then 20 light ones: the shade tells the row
        assert batch.features[:, 0, 0, 0].tolist() == [row if row < 20 else 200 + row - 20 for row in rows]
        assert batch.targets.tolist() == [int(row >= 20) for row in rows]
        raw = raw_rows(_section(section), prepared, name)
        assert np.array_equal(prepared.pipeline.encode(raw), batch.features.numpy())


def test_unfit_sections_are_refused(tmp_path: Path) -> None:
    iris = {"source": {"kind": "sklearn", "name": "iris"}, "target": "target"}
    with pytest.raises(SourceError, match=r"data.target_transform.*classes"):
        _prepare(_section(iris, target_transform="standardize"), tmp_path)
    with pytest.raises(SourceError, match=r"data.split.*stratified"):
        _prepare(_section(LINEAR, split={"kind": "stratified"}), tmp_path)
    with pytest.raises(SourceError, match=r"'target'.*3 classes"):
        _prepare(_section(iris), tmp_path, task="binary")


def test_fingerprint_follows_content_not_time(tmp_path: Path) -> None:
    file, memo = tmp_path / "a.csv", tmp_path / "memo.json"
    file.write_text("x,y\n1,2\n")
    section = _section({"source": {"kind": "csv", "path": str(file)}, "target": "y"})
    first = fingerprint(section, memo=memo)
    os.utime(file, (1, 1))
    assert fingerprint(section, memo=memo) == first
    file.write_text("x,y\n1,3\n")
    assert fingerprint(section, memo=memo) != first
    (tmp_path / "elsewhere.csv").write_text("x,y\n1,2\n")
    moved = _section({"source": {"kind": "csv", "path": str(tmp_path / "elsewhere.csv")}, "target": "y"})
    assert fingerprint(moved) == first


def test_unchanged_files_are_not_read_again(tmp_path: Path) -> None:
    file, memo = tmp_path / "a.csv", tmp_path / "memo.json"
    section = _section({"source": {"kind": "csv", "path": str(file)}, "target": "y"})
    file.write_text("x,y\n1,2\n")
    os.utime(file, (1, 1))
    first = fingerprint(section, memo=memo)
    file.write_text("x,y\n9,9\n")
    os.utime(file, (1, 1))  # the one change that a memo cannot see
    assert fingerprint(section, memo=memo) == first
    memo.write_text("damaged")
    assert fingerprint(section, memo=memo) != first


def test_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    fingerprint(
        _section({"source": {"kind": "csv", "path": str(tmp_path)}, "target": "y"}), memo=tmp_path / "memo"
    )
    assert not (tmp_path / "memo").exists()


def test_fingerprint_covers_what_the_users_module_imports(tmp_path: Path) -> None:
    (tmp_path / "reader_of_two.py").write_text("from readers_part import clean\n")
    section = _section({"source": {"kind": "python", "function": "reader_of_two:read"}, "target": "y"})
    hashes = set()
    for text in ("clean = 1\n", "clean = 2\n"):
        (tmp_path / "readers_part.py").write_text(text)
        hashes |= {fingerprint(section, [str(tmp_path)]), fingerprint(section, ["", str(tmp_path)])}
    assert len(hashes) == 2


def test_fingerprint_of_images_and_code(tmp_path: Path) -> None:
    section = _section(_image_folder(tmp_path / "images", corrupt=0))
    first = fingerprint(section)
    (tmp_path / "images/dark/00.png").rename(tmp_path / "images/light/99.png")
    assert fingerprint(section) != first
    (tmp_path / "reader_of_one.py").write_text("def read(): return {}\n")
    section = _section({"source": {"kind": "python", "function": "reader_of_one:read"}, "target": "y"})
    first = fingerprint(section, [str(tmp_path)])
    (tmp_path / "reader_of_one.py").write_text("def read(): return {'x': [1]}\n")
    assert fingerprint(section, [str(tmp_path)]) != first
    assert "reader_of_one" not in sys.modules
