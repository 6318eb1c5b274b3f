"""Preparation by tasks of Ray Data gives what one process gives, and fails as one process does."""

from __future__ import annotations

import errno
import functools
import io
import json
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import orchestrator
from orchestrator.cli.app import run_app
from orchestrator.data.prepared.prepared import Prepared
from orchestrator.errors import OrchestratorError, SourceError, UserCodeError
from orchestrator.runners.preparing import prepare_only
from orchestrator.runners.ray_workers import prepare as by_ray
from orchestrator.runners.ray_workers.prepare import map_by_ray
from orchestrator.spec import load_spec

ROWS = 5000
REPOSITORY = str(Path(__file__).parents[2])


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = np.random.default_rng(0)
    columns: dict[str, Any] = {f"x{i}": generator.normal(size=ROWS) for i in range(8)}
    columns["x0"][::9] = np.nan
    columns["city"] = generator.choice(["Bern", "Oslo", "Rome"], ROWS)
    columns["label"] = np.where(columns["x1"] > 0, "ill", "well")
    path = tmp_path_factory.mktemp("source") / "rows.parquet"
    pq.write_table(pa.table(columns), path, row_group_size=500)
    return path


def table_spec(rows: Path) -> dict[str, Any]:
    return {
        "name": "small",
        "data": {
            "source": {"kind": "parquet", "path": str(rows)},
            "target": "label",
            "clean": [{"kind": "fill_nulls", "columns": ["x0"], "value": "median"}],
            "transforms": [{"kind": "one_hot", "columns": ["city"]}, {"kind": "standardize"}],
            "split": {"kind": "stratified"},
        },
        "model": {"name": "linear"},
        "train": {"max_epochs": 1, "global_batch_size": 100, "optimizer": {"kind": "sgd", "lr": 0.1}},
    }


def image_spec(root: Path) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    for label in ("cat", "dog"):
        (root / label).mkdir(parents=True)
        for number in range(30):
            buffer = io.BytesIO()
            pixels = generator.integers(0, 255, (40, 30, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, "PNG")
            (root / label / f"{number}.png").write_bytes(buffer.getvalue())
    (root / "dog" / "7.png").write_bytes(b"no image")
    return {
        "name": "pets",
        "data": {
            "source": {"kind": "image_folder", "path": str(root)},
            "target": "label",
            "image": {"size": [16, 16]},
            "transforms": [{"kind": "standardize"}],
            "max_corrupt_share": 0.05,
        },
        "model": {"name": "linear"},
        "train": {"max_epochs": 1, "global_batch_size": 10, "optimizer": {"kind": "sgd", "lr": 0.1}},
    }


def prepared(spec: dict[str, Any], storage: Path, by: str, say: Callable[[str], None] = print) -> Prepared:
    changes = {"storage": str(storage), "data.preparation": {"by": by, "chunk_size": "64KiB"}}
    return Prepared.load(prepare_only(load_spec(spec, overrides_dict=changes), address=None, say=say))


def require_equal(one: Prepared, other: Prepared) -> None:
    assert one.manifest.key == other.manifest.key
    for name in ("rows", "rows_read", "class_counts", "cleaning", "corrupt", "pipeline", "shards"):
        assert getattr(one.manifest, name) == getattr(other.manifest, name), name
    hashes = [
        {name: facts["sha256"] for name, facts in found.manifest.files.items()} for found in (one, other)
    ]
    assert hashes[0] == hashes[1]  # all shards, and the quality report


def test_tables_are_as_one_process_prepares_them(
    ray_cluster: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_ray, "_SAY_EVERY_S", 0.0)
    said: list[str] = []
    spec = table_spec(rows)
    found = prepared(spec, tmp_path / "ray", "ray", said.append)
    chunks = len(found.manifest.shards_of("train"))
    assert chunks >= 5
    require_equal(prepared(spec, tmp_path / "process", "process"), found)
    assert said[0] == f"preparing the data on the cluster, in {chunks} chunk(s)"
    assert f"cleaning: {chunks} of {chunks} chunks" in said
    assert f"encoding: 1 of {chunks} chunks" in said


def test_images_are_as_one_process_prepares_them(ray_cluster: str, tmp_path: Path) -> None:
    spec = image_spec(tmp_path / "images")
    found = prepared(spec, tmp_path / "ray", "ray")
    assert found.manifest.corrupt == 1
    assert "dog/7.png" in (found.folder / "corrupt.csv").read_text()
    require_equal(prepared(spec, tmp_path / "process", "process"), found)


def call(spec: dict[str, Any], tmp_path: Path) -> int:
    """Exit code of the verb."""
    (tmp_path / "job.yaml").write_text(json.dumps(spec))
    overrides = [f"storage={tmp_path / 'runs'}", "data.preparation={by: ray, chunk_size: 64KiB}"]
    return run_app(["data", "prepare", str(tmp_path / "job.yaml"), *overrides])


def leftovers(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "runs" / "prepared").iterdir() if path.is_dir()]


def test_too_many_corrupt_images_end_the_verb(
    ray_cluster: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = image_spec(tmp_path / "images")
    spec["data"]["max_corrupt_share"] = 0.01
    assert call(spec, tmp_path) == 1
    printed = capfd.readouterr()
    assert printed.out == ""
    *said, last = printed.err.splitlines()
    assert last.startswith("error: 1 of 60 images cannot be read, and data.max_corrupt_share is 0.01: row ")
    assert "dog/7.png" in last
    assert all(line.startswith(("preparing the data on the cluster", "cleaning: ")) for line in said)
    assert leftovers(tmp_path) == []


def test_an_error_in_a_later_pass_ends_the_verb(
    ray_cluster: str, rows: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = table_spec(rows)
    spec["data"]["clean"] = []  # so the nulls stay
    assert call(spec, tmp_path) == 2
    printed = capfd.readouterr()
    assert "Traceback" not in printed.err
    assert "x0" in printed.err.splitlines()[-1]
    assert printed.err.splitlines()[-1].startswith("error: ")
    assert leftovers(tmp_path) == []


READER = """
import os

def read(driver, fail):
    if os.getpid() != driver:
        assert os.environ["HUSH"] == "a secret"
        if fail:
            raise ValueError("no luck in " + "a task")
    return {"x": [float(n % 7) for n in range(100)], "y": [float(n % 5) for n in range(100)]}
"""


@pytest.fixture
def own_source(tmp_path: Path) -> Iterator[Callable[[bool], Path]]:
    """A job that reads by a function of its own, which needs a secret and lies beside the spec."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "reader_by_ray.py").write_text(READER)

    def job(fail: bool) -> Path:
        arguments = {"driver": os.getpid(), "fail": fail}
        spec = {
            "name": "own",
            "secrets": {"HUSH": "a secret"},
            "storage": str(tmp_path / "runs"),
            "data": {
                "source": {"kind": "python", "function": "reader_by_ray:read", "args": arguments},
                "target": "y",
                "preparation": {"by": "ray"},
            },
            "model": {"name": "linear"},
            "train": {"max_epochs": 1, "global_batch_size": 10, "optimizer": {"kind": "sgd", "lr": 0.1}},
        }
        (tmp_path / "code" / "job.yaml").write_text(json.dumps(spec))
        return tmp_path / "code" / "job.yaml"

    yield job
    sys.modules.pop("reader_by_ray", None)


def test_tasks_have_the_secrets_and_find_user_code(
    ray_cluster: str, own_source: Callable[[bool], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "HUSH" not in os.environ
    place = prepare_only(load_spec(own_source(False)), address=None, say=print)
    assert Prepared.load(place).manifest.rows_read == 100
    assert "HUSH" not in os.environ
    assert run_app(["data", "inspect", str(own_source(False)), "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2])["rows_read"] == 100


def test_user_code_that_fails_in_a_task(
    ray_cluster: str, own_source: Callable[[bool], Path], tmp_path: Path
) -> None:
    with pytest.raises(UserCodeError, match="reader_by_ray:read raised ValueError: no luck in a task"):
        prepare_only(load_spec(own_source(True)), address=None, say=print)
    assert leftovers(tmp_path) == []


@pytest.mark.slow
def test_a_run_trains_on_what_ray_prepared(ray_cluster: str, rows: Path, tmp_path: Path) -> None:
    spec = table_spec(rows) | {"storage": str(tmp_path / "runs")}
    result = orchestrator.run(spec, quiet=True, data={"preparation": {"by": "ray", "chunk_size": "64KiB"}})
    assert result.status == "SUCCEEDED"
    assert result.metrics["test/accuracy"] > 0.8
    assert len(leftovers(tmp_path)) == 1


# Calls for tasks; they find this module by the repository as their search path.


def fail_or_write_late(folder: Path, number: int) -> int:
    if number == 1:
        raise SourceError("the second is bad", "mend it")
    if number > 1:
        time.sleep(2)
        (folder / f"late-{number}").touch()
    return number


def die(number: int) -> int:
    os._exit(number)


def full(number: int) -> int:
    raise OSError(errno.ENOSPC, f"no space for {number}")


def squares(number: int) -> int:
    return number**2


def mapped(function: Callable[[int], int], count: int) -> Iterator[int]:
    return map_by_ray(
        function, list(range(count)), "trying", search_paths=[REPOSITORY], variables={}, say=lambda line: None
    )


def test_no_task_goes_on_after_an_error(ray_cluster: str, tmp_path: Path) -> None:
    results = mapped(functools.partial(fail_or_write_late, tmp_path), 8)
    assert next(results) == 0
    with pytest.raises(SourceError, match="the second is bad") as caught:
        next(results)
    assert caught.value.mend == "mend it"
    there = sorted(tmp_path.iterdir())
    time.sleep(2.5)
    assert sorted(tmp_path.iterdir()) == there


def test_errors_of_the_system_arrive_as_they_are(ray_cluster: str) -> None:
    with pytest.raises(OSError, match="no space for 0") as caught:
        list(mapped(full, 2))
    assert caught.value.errno == errno.ENOSPC


def test_a_task_that_dies_is_told(ray_cluster: str) -> None:
    with pytest.raises(OrchestratorError, match=r"preparing the data \(trying\): .* died 4 times") as caught:
        list(mapped(die, 1))
    assert "chunk_size" in caught.value.mend


def test_results_come_in_order_and_rays_log_stays_quiet(
    ray_cluster: str, capfd: pytest.CaptureFixture[str]
) -> None:
    import ray.data

    before = ray.data.DataContext.get_current().enable_progress_bars
    levels = [handler.level for handler in logging.getLogger("ray.data").handlers]
    assert list(mapped(squares, 20)) == [number**2 for number in range(20)]
    assert capfd.readouterr() == ("", "")
    assert ray.data.DataContext.get_current().enable_progress_bars == before
    assert [handler.level for handler in logging.getLogger("ray.data").handlers] == levels
