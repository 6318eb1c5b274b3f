"""Preparation chunk by chunk gives what preparation in one piece gives, whatever is cleaned, split and fitted."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from orchestrator.data.prepared.manifest import QUALITY, QUALITY_PAGE
from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.preparing.mapper import Mapper
from orchestrator.data.preparing.prepare import prepare
from orchestrator.data.quality.report import QualityReport
from orchestrator.errors import DataError, SourceError
from orchestrator.spec.data import DataSection
from orchestrator.storage import Folder

ROWS = 6000
SMALLEST = 2**16
"""Bytes of the source in a chunk: the files below hold several times as much."""


def pickling(num_chunks: int) -> Mapper:
    """A mapper whose functions, items and results travel as to another machine."""

    def run(function: Callable[[Any], Any], items: Sequence[Any], label: str) -> Iterator[Any]:
        sent = pickle.dumps(function)
        for item in items:
            yield pickle.loads(pickle.dumps(pickle.loads(sent)(pickle.loads(pickle.dumps(item)))))

    return run


def table(seed: int = 0) -> pa.Table:
    generator = np.random.default_rng(seed)
    age = generator.normal(40, 12, ROWS)
    city = generator.choice(["Bern", "Oslo", "Rome", "Wien"], ROWS, p=[0.5, 0.3, 0.15, 0.05])
    label = (age + 10 * (city == "Rome") + generator.normal(0, 5, ROWS) > 42).astype(int)
    holes = generator.random(ROWS) < 0.1
    noise = generator.random((ROWS, 8))
    columns: dict[str, Any] = {
        "age": pa.array(np.where(holes, np.nan, age), from_pandas=True),
        "city": pa.array(city),
        "patient": pa.array(generator.integers(0, 500, ROWS)),
        "label": pa.array(np.where(label, "ill", "well")),
    }
    return pa.table(columns | {f"noise{i}": noise[:, i] for i in range(8)})


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source") / "rows.parquet"
    pq.write_table(table(), path, row_group_size=500)
    return path


def section(file: Path, chunk_size: int, **more: Any) -> DataSection:
    value: dict[str, Any] = {
        "source": {"kind": "parquet", "path": str(file)},
        "target": "label",
        "clean": [{"kind": "fill_nulls", "columns": ["age"], "value": "median"}],
        "transforms": [
            {"kind": "one_hot", "columns": ["city"]},
            {"kind": "standardize", "columns": ["age"]},
        ],
        "features": ["age", "city", "noise0"],
        "preparation": {"chunk_size": chunk_size},
    }
    return DataSection.model_validate(value | more)


def both(file: Path, tmp_path: Path, **more: Any) -> tuple[Prepared, Prepared]:
    whole = prepare(section(file, 2**30, **more), task="auto", seed=3, storage=Folder.at(tmp_path / "whole"))
    cut = prepare(
        section(file, SMALLEST, **more),
        task="auto",
        seed=3,
        storage=Folder.at(tmp_path / "cut"),
        mapper=pickling,
    )
    assert len(whole.manifest.shards_of("train")) == 1
    assert len(cut.manifest.shards_of("train")) > 3
    return whole, cut


CASES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "stratified": {"split": {"kind": "stratified", "train": 0.8, "val": 0.1, "test": 0.1}},
    "grouped": {"split": {"kind": "grouped", "by": "patient"}},
    "hashed": {"split": {"kind": "hash", "by": "patient"}},
    "cleaned": {
        "clean": [
            {"kind": "drop_duplicates", "columns": ["patient", "city"]},
            {"kind": "drop_outliers", "columns": ["age"], "z": 2.5},
            {"kind": "filter", "where": "noise1 > 0.1"},
            {"kind": "fill_nulls", "columns": ["age"], "value": "mean"},
            {"kind": "clip_outliers", "columns": ["age"], "method": "quantile"},
        ]
    },
    "target encoded": {"transforms": [{"kind": "target", "columns": ["city"]}, {"kind": "robust"}]},
}


@pytest.mark.parametrize("name", CASES)
def test_many_chunks_give_what_one_gives(file: Path, tmp_path: Path, name: str) -> None:
    whole, cut = both(file, tmp_path, **CASES[name])
    assert cut.manifest.rows == whole.manifest.rows
    assert cut.manifest.cleaning == whole.manifest.cleaning
    assert cut.manifest.class_counts == whole.manifest.class_counts
    for part, count in whole.manifest.rows.items():
        rows = np.arange(count)
        one, other = whole.part(part), cut.part(part)
        assert np.array_equal(one.source_rows(), other.source_rows())
        expected, found = one.gather(rows), other.gather(rows)
        assert np.array_equal(expected.targets, found.targets)
        if name == "target encoded":
            # A row's fold goes by its chunk: other folds, other means.
            np.testing.assert_allclose(expected.features, found.features, atol=0.1)
            continue
        np.testing.assert_allclose(expected.features, found.features, rtol=1e-6)
        np.testing.assert_allclose(
            whole.pipeline.transform(expected.features),
            cut.pipeline.transform(found.features),
            rtol=1e-5,
            atol=1e-6,
        )


def test_nothing_but_prepared_data_is_left(file: Path, tmp_path: Path) -> None:
    _, cut = both(file, tmp_path)
    assert {entry.name for entry in cut.folder.iterdir()} == {*cut.manifest.files, "manifest.json"}


def test_fills_and_bounds_reach_the_model(file: Path, tmp_path: Path) -> None:
    _, cut = both(file, tmp_path, **CASES["cleaned"])
    train = table().to_pandas().iloc[cut.part("train").source_rows()]
    low, high = train["age"].quantile([0.01, 0.99])
    fill = train["age"].mean()
    rows = {"age": [None, -1000.0, 1000.0], "city": ["Rome"] * 3, "noise0": [0.5] * 3}
    encoded = cut.pipeline.encode(rows)
    np.testing.assert_allclose(encoded[:, 0], [fill, low, high], rtol=1e-6)


def test_too_many_unreadable_records_name_them(tmp_path: Path) -> None:
    good, bad = tmp_path / "data" / "good.parquet", tmp_path / "data" / "bad.parquet"
    good.parent.mkdir()
    pq.write_table(table(), good)
    bad.write_bytes(good.read_bytes()[:1000])
    with pytest.raises((DataError, SourceError), match=r"bad\.parquet"):
        prepare(section(good.parent, 2**20), task="auto", seed=0, storage=Folder.at(tmp_path))


def test_a_build_that_fails_leaves_nothing(file: Path, tmp_path: Path) -> None:
    faulty = section(file, SMALLEST, clean=[], features=["age"], transforms=[])
    with pytest.raises(SourceError, match="age"):
        prepare(faulty, task="auto", seed=0, storage=Folder.at(tmp_path))
    assert not [path for path in (tmp_path / "prepared").iterdir() if path.is_dir()]


def test_files_decide_the_parts(tmp_path: Path) -> None:
    for part, seed in (("train", 0), ("test", 1)):
        (tmp_path / "set" / part).mkdir(parents=True)
        pq.write_table(table(seed).slice(0, 300), tmp_path / "set" / part / "rows.parquet")
    given = section(
        tmp_path / "set", 2**20, split={"kind": "given", "files": {"train": ["train"], "test": ["test"]}}
    )
    prepared = prepare(given, task="auto", seed=0, storage=Folder.at(tmp_path))
    assert dict(prepared.manifest.rows) == {"train": 300, "val": 0, "test": 300}
    assert sorted(prepared.part("test").source_rows()) == list(range(300))  # `test` comes before `train`


def test_the_quality_report_is_kept_beside_the_shards(file: Path, tmp_path: Path) -> None:
    whole, cut = both(file, tmp_path)
    one, other = (QualityReport.from_dict(Folder.at(made.folder).read_json(QUALITY)) for made in (whole, cut))
    assert one.rows == other.rows == tuple(whole.manifest.rows.values())
    age = {report.name: report for report in one.columns}["age"]
    assert age.nulls == table()["age"].null_count
    assert (cut.folder / QUALITY_PAGE).read_text().startswith("<!doctype html>")
