"""Rows of a part, gathered from one shard or many, mapped or streamed, against numpy."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.data.prepared.part import Part
from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.prepared.shards import OpenShard, OpenShards, open_shard, write_shard
from orchestrator.engine.causes import cause_of
from orchestrator.errors import DataError, StorageGone
from tests.unit.prepared_case import columns, write_part

SIZES = (5, 1, 7, 3)
SHARD_BYTES = 1000
"""A little more than a file of so few rows takes up."""


@pytest.fixture(scope="module", params=["mapped", "streaming"])
def part(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Part:
    return write_part(
        tmp_path_factory.mktemp("part"), SIZES, SHARD_BYTES if request.param == "streaming" else None
    )


@given(rows=st.lists(st.integers(0, 15), max_size=40))
@settings(max_examples=100, deadline=None)
def test_gather_equals_indexing(part: Part, rows: list[int]) -> None:
    features, targets, _ = columns(16)
    batch = part.gather(np.array(rows, dtype=np.int64))
    assert np.array_equal(batch.features.numpy(), features[rows])
    assert np.array_equal(batch.targets.numpy(), targets[rows])
    assert torch.equal(part.gather_targets(np.array(rows, dtype=np.int64)), batch.targets)
    assert (batch.features.dtype, batch.targets.dtype) == (torch.float32, torch.int64)


def test_sizes_and_source_rows(part: Part) -> None:
    assert part.num_rows == 16
    assert part.row_bytes == pytest.approx(sum(shard.bytes for shard in part.shards) / 16)
    assert np.array_equal(part.source_rows(), columns(16)[2])


@pytest.mark.parametrize("rows", [[16], [-1], [3, 16], [0, 99]])
def test_rows_that_are_not_there(part: Part, rows: list[int]) -> None:
    with pytest.raises(IndexError, match="of a part of 16"):
        part.gather(np.array(rows))


def test_a_part_can_be_sent_to_another_process(part: Part) -> None:
    again = pickle.loads(pickle.dumps(part))
    rows = np.array([15, 0, 6])
    assert torch.equal(again.gather(rows).features, part.gather(rows).features)
    assert again.window_bytes == part.window_bytes


def test_a_part_without_rows(tmp_path: Path) -> None:
    empty = write_part(tmp_path, [])
    assert empty.num_rows == 0
    assert empty.gather(np.arange(0)).features.shape == (0, 2, 3)
    assert not len(empty.source_rows())
    with pytest.raises(IndexError):
        empty.gather(np.arange(1))


def test_a_run_of_rows_is_a_view_where_the_shard_stays_mapped(tmp_path: Path) -> None:
    rows = np.arange(6, 9)
    mapped = write_part(tmp_path / "a", SIZES)
    assert mapped.gather(rows).features.data_ptr() == mapped.gather(rows).features.data_ptr()
    streamed = write_part(tmp_path / "b", SIZES, SHARD_BYTES)
    first = streamed.gather(rows)
    streamed.expect(())
    assert streamed.open_shards() == []
    assert np.array_equal(first.features.numpy(), columns(16)[0][rows])


@pytest.mark.parametrize("values", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
def test_every_type_of_numbers(tmp_path: Path, values: str) -> None:
    from orchestrator.data.prepared.cache import LocalStore
    from orchestrator.data.prepared.manifest import Shard

    tokens = np.arange(24).reshape(6, 4).astype(values)
    written = [write_shard(tmp_path, "train", i, tokens[a:b], tokens[a:b], np.arange(a, b)) for i, a, b in
               [(0, 0, 4), (1, 4, 6)]]  # fmt: skip
    part = Part(LocalStore(tmp_path), [Shard(one.file, one.rows, **one.facts) for one in written], (4,))
    for rows in ([5, 0, 3], [3, 1]):
        batch = part.gather(np.array(rows))
        assert np.array_equal(batch.features.numpy(), tokens[rows])
        assert np.array_equal(batch.targets.numpy(), tokens[rows])
        assert batch.targets.is_floating_point() or batch.targets.dtype == torch.int64


@pytest.mark.parametrize("window_bytes", [None, SHARD_BYTES])
def test_storage_that_is_away_is_no_missing_data(tmp_path: Path, window_bytes: int | None) -> None:
    """What is not there with all around it comes back; what alone is not there was removed."""
    storage, away = tmp_path / "prepared", tmp_path / "away"
    part = write_part(storage / "key", SIZES, window_bytes)
    storage.rename(away)
    with pytest.raises(StorageGone) as gone:
        part.gather(np.array([7]))
    assert cause_of(gone.value) == "hardware"
    with pytest.raises(StorageGone):
        Prepared.load(storage / "key")
    away.rename(storage)
    assert np.array_equal(part.gather(np.array([7])).features.numpy(), columns(16)[0][[7]])
    with pytest.raises(DataError, match="no complete prepared data"):
        Prepared.load(storage / "key")  # which has no manifest


def test_streaming_never_has_more_than_two_windows_open(tmp_path: Path) -> None:
    part = write_part(tmp_path, [2] * 12, window_bytes=3 * SHARD_BYTES)
    largest = 0
    rng = np.random.default_rng(0)
    for _ in range(30):
        part.gather(rng.integers(0, 24, 5))
        largest = max(largest, sum(part.shards[index].bytes for index in part.open_shards()))
    assert 0 < largest <= 6 * SHARD_BYTES
    part.expect([4, 7])
    assert part.open_shards() == [4, 7]


def test_a_damaged_shard_is_noticed_when_it_is_opened(tmp_path: Path) -> None:
    part = write_part(tmp_path, SIZES, SHARD_BYTES)
    file = tmp_path / part.shards[2].file
    content = file.read_bytes()
    os.utime(file, ns=(0, 0))
    part.gather(np.array([7]))
    assert file.stat().st_mtime_ns == part.shards[2].mtime_ns, "it would be hashed again in the next epoch"
    part.expect(())
    middle = len(content) // 2
    file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(DataError, match=r"train-00002.arrow is damaged"):
        part.gather(np.array([7]))
    part.gather(np.array([0]))
    file.write_bytes(content)
    assert np.array_equal(part.gather(np.array([7])).features.numpy(), columns(16)[0][[7]])
    part.expect(())
    file.unlink()
    with pytest.raises(DataError, match=r"train-00002.arrow is missing"):
        part.gather(np.array([7]))


def test_another_number_of_rows_than_the_manifest_says(tmp_path: Path) -> None:
    features, targets, rows = columns(3)
    written = write_shard(tmp_path, "val", 12, features, targets, rows)
    assert (written.file, written.entry) == ("val-00012.arrow", {"file": "val-00012.arrow", "rows": 3})
    with pytest.raises(DataError, match="holds 3 rows, its manifest says 4"):
        open_shard(tmp_path / written.file, 4)


def test_a_shard_that_failed_to_open_is_tried_again() -> None:
    tries: list[int] = []

    def open_one(index: int) -> Any:
        tries.append(index)
        if len(tries) == 1:
            raise OSError("network")
        return OpenShard(*(np.arange(3) for _ in range(3)))

    shards = OpenShards(open_one, [1, 1], None)
    with pytest.raises(OSError, match="network"):
        shards.get(1)
    assert shards.indices() == []
    assert shards.get(1) is shards.get(1)
    assert tries == [1, 1]
