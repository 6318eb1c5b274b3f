"""Preparation onto S3, against a real server on this machine that speaks S3 (moto's)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from orchestrator.cli.app import run_app
from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.preparing import build as build_module
from orchestrator.data.preparing.prepare import prepare
from orchestrator.errors import DataError
from orchestrator.spec.data import DataSection, Iterate
from orchestrator.storage import Folder
from tests.unit.s3_case import ACCOUNT, s3_server

STREAMING = Iterate(kind="streaming", window=2**20)


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with s3_server() as found:
        yield f"http://{found}"


@pytest.fixture
def storage(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Folder]:
    """The bucket, with the usual variables naming server and account."""
    variables = {
        **ACCOUNT,
        "AWS_ENDPOINT_URL": address,
        "XDG_CACHE_HOME": str(tmp_path / "node1"),
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    bucket = Folder.at("s3://bucket?allow_bucket_creation=true&allow_bucket_deletion=true").create()
    yield Folder.at("s3://bucket/runs")
    bucket.remove()


@pytest.fixture
def section(tmp_path: Path) -> DataSection:
    generator = np.random.default_rng(0)
    columns = {f"x{i}": generator.random(4000) for i in range(10)} | {"y": generator.random(4000)}
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet", row_group_size=500)
    return DataSection.model_validate(
        {
            "source": {"kind": "parquet", "path": str(tmp_path / "rows.parquet")},
            "target": "y",
            "transforms": [{"kind": "standardize"}],
            "preparation": {"chunk_size": 2**16},
        }
    )


def prepared(section: DataSection, storage: Folder) -> Prepared:
    return prepare(section, task="auto", seed=0, storage=storage)


def features(found: Prepared) -> torch.Tensor:
    part = found.part("train")
    return torch.as_tensor(part.gather(np.arange(part.num_rows)).features)


def test_prepared_once_and_read_on_every_node(
    section: DataSection, storage: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepared(section, storage)
    place = storage / "prepared" / first.manifest.key
    assert len(first.manifest.shards_of("train")) > 3
    assert {*place.names()} == {*first.manifest.files, "manifest.json"}
    assert [folder.path for folder in (storage / "prepared").folders()] == [place.path]
    local = prepared(section, Folder.at(tmp_path / "local"))
    assert local.manifest.key == first.manifest.key
    expected = features(local)
    assert torch.equal(features(first), expected)
    monkeypatch.delattr(build_module, "build")  # from now on it is found
    for number, iterate in ((2, None), (3, STREAMING)):
        node = tmp_path / f"node{number}"
        monkeypatch.setenv("XDG_CACHE_HOME", str(node))
        again = prepared(section.model_copy(update={"iterate": iterate or section.iterate}), storage)
        assert again.folder.is_relative_to(node)
        assert again.streaming == (iterate is not None)
        if iterate is not None:
            assert list(node.rglob("train-*.arrow")) == []
        assert torch.equal(features(again), expected)
        assert len(list(node.rglob("train-*.arrow"))) == len(first.manifest.shards_of("train"))
        worker = Prepared.load(Folder.at(place.uri), iterate)  # as a worker opens it
        assert torch.equal(features(worker), expected)


def test_what_failed_is_not_found(section: DataSection, storage: Folder) -> None:
    faulty = section.model_copy(update={"target": "x0", "features": ["x1"]})
    with pytest.raises(DataError):
        Prepared.load(storage / "prepared" / "absent")
    with pytest.raises(Exception, match="multiclass"):
        prepare(faulty, task="multiclass", seed=0, storage=storage)
    assert list((storage / "prepared").folders()) == []
    assert sum(prepared(faulty, storage).manifest.rows.values()) == 4000


def test_two_nodes_may_build_the_same(
    section: DataSection, storage: Folder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They do not see each other's locks: here one begins and ends while the other is about to encode."""
    others = []

    def slow(function: Callable[[Any], Any], items: Sequence[Any], label: str) -> Iterator[Any]:
        if label == "encoding":
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node2"))
            others.append(prepared(section, storage))
            monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node1"))
        yield from map(function, items)

    first = prepare(section, task="auto", seed=0, storage=storage, mapper=lambda num_chunks: slow)
    (second,) = others
    assert first.folder != second.folder
    assert torch.equal(features(first), features(second))
    assert len(list((storage / "prepared").folders())) == 1
    assert run_app(["data", "verify", "--storage", "s3://bucket/runs"]) == 0


def test_the_verbs(
    section: DataSection, storage: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec: dict[str, Any] = {
        "name": "small",
        "storage": "s3://bucket/runs",
        "data": section.model_dump(mode="json", exclude_unset=True),
        "model": {"name": "linear"},
        "train": {"max_epochs": 1, "global_batch_size": 20, "optimizer": {"kind": "sgd", "lr": 0.1}},
    }
    (tmp_path / "job.yaml").write_text(json.dumps(spec))
    assert run_app(["data", "prepare", str(tmp_path / "job.yaml"), "data.preparation.by=process"]) == 0
    assert run_app(["data", "inspect", str(tmp_path / "job.yaml"), "-o", "json"]) == 0
    shown = json.loads("{" + capsys.readouterr().out.partition("\n{")[2])
    assert shown["quality_page"].startswith("s3://bucket/runs/prepared/")
    assert run_app(["data", "inspect", "--cache", str(tmp_path / "job.yaml")]) == 0
    assert str(tmp_path / "node1") in capsys.readouterr().out
    assert run_app(["data", "gc", "--max-size", "1kB", "--storage", "s3://bucket/runs"]) == 0
    assert shown["key"] in capsys.readouterr().out
    assert list((storage / "prepared").folders()) == []
