"""This node's copies of prepared data: fetched once, checked, bounded; and what looks after prepared data."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.fs as pafs
import pytest

from orchestrator.data.prepared import cache
from orchestrator.data.prepared.keeping import cache_folder, collect, list_prepared, verify_prepared
from orchestrator.data.prepared.lease import hold, is_held, remove_unless_held
from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.prepared.room import cache_limit, make_room
from orchestrator.errors import DataError, UsageError
from orchestrator.spec.data import Iterate
from orchestrator.storage import Folder
from tests.unit.prepared_case import columns, write_prepared

STREAMING = Iterate(kind="streaming", window=1)
DAY_S = 86400


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Storage that does not count as local, and an empty cache of this node."""
    (tmp_path / "bucket").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "node"))
    return Folder(pafs.SubTreeFileSystem(str(tmp_path / "bucket"), pafs.LocalFileSystem()), "prepared")


def put(tmp_path: Path, key: str, sizes: tuple[int, ...] = (4, 3), seed: int = 0) -> Path:
    """Prepared data in the bucket; its folder by its real path."""
    folder = tmp_path / "bucket" / "prepared" / key
    write_prepared(folder, sizes, seed)
    return folder


def cached_shards(tmp_path: Path) -> list[str]:
    return sorted(file.name for file in (tmp_path / "node").glob("orchestrator/shards/*/*.arrow"))


def read_all(prepared: Prepared) -> np.ndarray[Any, Any]:
    part = prepared.part("train")
    return part.gather(np.arange(part.num_rows)[::-1].copy()).features.numpy()[::-1]


def test_shards_are_fetched_when_they_are_needed_and_once(tmp_path: Path, bucket: Folder) -> None:
    original = put(tmp_path, "k", (4, 3, 5))
    part = Prepared.load(bucket / "k", STREAMING).part("train")
    assert cached_shards(tmp_path) == []
    assert np.array_equal(part.gather(np.array([5])).features.numpy(), columns(12)[0][[5]])
    assert cached_shards(tmp_path) == ["train-00001.arrow"]
    (original / "train-00001.arrow").unlink()  # nobody asks for it a second time
    again = Prepared.load(bucket / "k", STREAMING).part("train")
    assert np.array_equal(again.gather(np.array([6, 4])).features.numpy(), columns(12)[0][[6, 4]])


def test_several_threads_and_processes_fetch_a_shard_once(
    tmp_path: Path, bucket: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "k", (4, 3, 5))
    fetched: list[str] = []
    copied = cache._copied
    monkeypatch.setattr(
        cache,
        "_copied",
        lambda origin, shard, file: (fetched.append(shard.file), copied(origin, shard, file))[1],
    )
    parts = [Prepared.load(bucket / "k", STREAMING).part("train") for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        batches = list(pool.map(lambda part: part.gather(np.array([11, 0, 5])).features.numpy(), parts))
    assert all(np.array_equal(batch, columns(12)[0][[11, 0, 5]]) for batch in batches)
    assert sorted(fetched) == ["train-00000.arrow", "train-00001.arrow", "train-00002.arrow"]


def test_a_damaged_shard_is_refused(tmp_path: Path, bucket: Folder) -> None:
    file = put(tmp_path, "k") / "train-00001.arrow"
    content = file.read_bytes()
    file.write_bytes(content[:-99] + bytes([content[-99] ^ 1]) + content[-98:])
    part = Prepared.load(bucket / "k", STREAMING).part("train")
    part.gather(np.array([0]))
    with pytest.raises(DataError, match="its content is not what the manifest says"):
        part.gather(np.array([5]))
    assert cached_shards(tmp_path) == ["train-00000.arrow"]
    assert not list((tmp_path / "node").rglob(".train*"))
    file.write_bytes(content)
    part.gather(np.array([5]))


def test_data_larger_than_the_cache_is_streamed(
    tmp_path: Path, bucket: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = put(tmp_path, "k", (3,) * 10)
    size = (folder / "train-00000.arrow").stat().st_size
    monkeypatch.setenv("ORCHESTRATOR_CACHE_BYTES", str(3 * size))
    part = Prepared.load(bucket / "k", STREAMING).part("train")
    for _ in range(2):
        for row in range(30):
            assert np.array_equal(part.gather(np.array([row])).features.numpy(), columns(30)[0][[row]])
            assert len(cached_shards(tmp_path)) <= 3
    assert cached_shards(tmp_path) == [f"train-0000{index}.arrow" for index in (7, 8, 9)]


def test_whole_copies_give_way_but_not_those_in_use(
    tmp_path: Path, bucket: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for index, key in enumerate("abc"):
        folder = put(tmp_path, key, seed=index)
    size = sum(file.stat().st_size for file in folder.iterdir())
    monkeypatch.setenv("ORCHESTRATOR_CACHE_BYTES", str(int(2.5 * size)))

    def there() -> set[str]:
        return {path.name for path in cache_folder().local_path().iterdir() if path.is_dir()}

    first = Prepared.load(bucket / "a")
    assert first.folder.is_relative_to(tmp_path / "node")
    del first
    second = Prepared.load(bucket / "b")
    assert there() == {"a", "b"}
    third = Prepared.load(bucket / "c")
    assert there() == {"b", "c"}
    fourth = Prepared.load(bucket / "a")
    assert there() == {"a", "b", "c"}
    assert "over its limit" in caplog.text
    for index, prepared in ((1, second), (2, third), (0, fourth)):
        assert np.array_equal(read_all(prepared), columns(7, index)[0])


def test_what_a_killed_process_left_is_cleared(tmp_path: Path, bucket: Folder) -> None:
    put(tmp_path, "k")
    folders = tmp_path / "node" / "orchestrator"
    half, whole = folders / "shards" / "k" / ".train-00001.arrow.ab12", folders / "prepared" / "k.tmp-7-ab12"
    half.parent.mkdir(parents=True)
    half.write_bytes(b"half")
    whole.mkdir(parents=True)
    (whole / "train-00000.arrow").write_bytes(b"half")
    Prepared.load(bucket / "k", STREAMING).part("train").gather(np.array([5]))
    assert not half.exists()
    Prepared.load(bucket / "k")
    assert not whole.exists()


def test_limits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("ORCHESTRATOR_CACHE_BYTES", "2GB")
    assert cache_limit() == 2 * 10**9
    monkeypatch.setenv("ORCHESTRATOR_CACHE_BYTES", "much")
    with pytest.raises(UsageError, match="ORCHESTRATOR_CACHE_BYTES: 'much' is not a size"):
        make_room(1)
    monkeypatch.delenv("ORCHESTRATOR_CACHE_BYTES")
    assert cache_limit(10**15) > 9 * 10**14


HOLDER = """
import sys
from pathlib import Path
from orchestrator.data.prepared.lease import hold
lease = hold(Path(sys.argv[1]))
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_lease_ends_with_its_process_however_that_ends(tmp_path: Path) -> None:
    write_prepared(tmp_path / "k")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "k")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert is_held(tmp_path / "k")
        assert not remove_unless_held(tmp_path / "k")
        process.kill()
    assert not is_held(tmp_path / "k")
    assert remove_unless_held(tmp_path / "k")
    assert list(tmp_path.iterdir()) == []


def test_several_may_hold_a_folder_and_each_use_is_noted(tmp_path: Path) -> None:
    write_prepared(tmp_path / "k")
    os.utime(tmp_path / "k" / "manifest.json", ns=(0, 0))
    one, other = hold(tmp_path / "k"), hold(tmp_path / "k")
    assert one is not None
    assert other is not None
    assert time.time() - (tmp_path / "k" / "manifest.json").stat().st_mtime < 60
    one.release()
    assert is_held(tmp_path / "k")
    other.release()
    assert not is_held(tmp_path / "k")
    assert hold(tmp_path / "absent") is None


def test_prepared_data_is_listed(tmp_path: Path) -> None:
    root = Folder.at(tmp_path)
    write_prepared(tmp_path / "old")
    manifest = write_prepared(tmp_path / "new", (2, 2))
    (tmp_path / "fingerprints.json").write_text("{}")
    os.utime(tmp_path / "old" / "manifest.json", (100, 100))
    old, new = list_prepared(root)
    assert (old.key, old.last_used_s, old.complete, old.in_use) == ("old", 100, True, False)
    assert new.manifest == manifest
    assert new.bytes == sum(file.stat().st_size for file in (tmp_path / "new").iterdir())
    prepared = Prepared.load(tmp_path / "new")
    assert [entry.in_use for entry in list_prepared(root)] == [False, True]
    del prepared
    (tmp_path / "new" / "train-00001.arrow").unlink()
    assert [entry.complete for entry in list_prepared(root)] == [True, False]
    assert list_prepared(Folder.at(tmp_path / "nowhere")) == []


def test_damage_is_found(tmp_path: Path, bucket: Folder) -> None:
    folder = put(tmp_path, "k", (2, 2, 2, 2))
    assert verify_prepared(bucket / "k") == verify_prepared(Folder.at(folder)) == []
    content = (folder / "train-00001.arrow").read_bytes()
    (folder / "train-00001.arrow").write_bytes(content[:-9] + b"x" + content[-8:])
    (folder / "train-00002.arrow").write_bytes(content[:50])
    (folder / "train-00003.arrow").unlink()
    wanted = [
        "train-00001.arrow: its content is not what was written",
        f"train-00002.arrow: has 50 bytes, not {len(content)}",
        "train-00003.arrow: is missing",
    ]
    assert verify_prepared(bucket / "k") == verify_prepared(Folder.at(folder)) == wanted
    assert verify_prepared(bucket / "nothing") == [
        "manifest.json: is missing, cannot be read or is not of version 3"
    ]


def test_what_is_old_or_too_much_is_removed(tmp_path: Path) -> None:
    root, now_s = Folder.at(tmp_path), time.time()
    for days, key in ((9, "a"), (5, "b"), (3, "c"), (1, "d")):
        write_prepared(tmp_path / key)
        os.utime(tmp_path / key / "manifest.json", (now_s - days * DAY_S,) * 2)
    size = list_prepared(root)[0].bytes

    def keys(**settings: Any) -> str:
        return "".join(entry.key for entry in collect(root, now_s=now_s, **settings))

    assert keys(dry_run=True) == ""
    assert keys(max_age_s=4 * DAY_S, dry_run=True) == "ab"
    assert keys(max_bytes=int(1.5 * size), dry_run=True) == "abc"
    assert keys(max_bytes=int(1.5 * size), max_age_s=8 * DAY_S, dry_run=True) == "abc"
    assert keys(max_bytes=int(2.5 * size), max_age_s=8 * DAY_S, dry_run=True) == "ab"
    lease = hold(tmp_path / "b")
    os.utime(tmp_path / "b" / "manifest.json", (now_s - 5 * DAY_S,) * 2)
    assert keys(max_bytes=int(2.5 * size)) == "ac"
    assert lease is not None
    lease.release()
    assert keys(max_age_s=0) == "bd"
    assert list(tmp_path.iterdir()) == []


def test_leftovers_are_removed_after_a_day(tmp_path: Path) -> None:
    root = Folder.at(tmp_path)
    (tmp_path / "k.tmp-7-abc").mkdir()
    (tmp_path / "k.tmp-7-abc" / "train-00000.arrow").write_bytes(b"half")
    write_prepared(tmp_path / "damaged")
    (tmp_path / "damaged" / "train-00000.arrow").unlink()
    assert collect(root, max_bytes=0, max_age_s=0) == []
    removed = collect(root, now_s=time.time() + 2 * DAY_S)
    assert sorted(entry.key for entry in removed) == ["damaged", "k.tmp-7-abc"]
    assert list(tmp_path.iterdir()) == []


def test_remote_storage_is_collected_too(tmp_path: Path, bucket: Folder) -> None:
    put(tmp_path, "a")
    put(tmp_path, "b")
    (entry,) = collect(bucket, max_bytes=list_prepared(bucket)[0].bytes)
    assert not bucket.exists(entry.key)
    assert len(list_prepared(bucket)) == 1
