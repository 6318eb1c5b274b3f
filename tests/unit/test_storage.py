from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from orchestrator.errors import UsageError
from orchestrator.storage import Folder


def local(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "runs")


def beneath(tmp_path: Path) -> Folder:
    """Not local as far as a folder can tell: it goes the way of remote storage."""
    return Folder(pafs.SubTreeFileSystem(str(tmp_path), pafs.LocalFileSystem()), "runs")


def in_memory(tmp_path: Path) -> Folder:
    return Folder(pafs._MockFileSystem(datetime.now(UTC)), "runs")


class Like(pafs.LocalFileSystem):
    """It is taken for HDFS."""

    type_name = "hdfs"


def like_hdfs(tmp_path: Path) -> Folder:
    return Folder(Like(), str(tmp_path / "runs"))


@pytest.fixture(params=[local, beneath, in_memory, like_hdfs], ids=lambda make: make.__name__)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Folder:
    make: Callable[[Path], Folder] = request.param
    return make(tmp_path)


def test_what_is_not_there(folder: Folder) -> None:
    assert not folder.exists()
    assert not folder.exists("a.txt")
    assert folder.names() == []
    assert list(folder.folders()) == []
    assert folder.read_json("a.json") is None
    with pytest.raises(FileNotFoundError):
        folder.read_bytes("a.txt")
    folder.remove_file("a.txt")
    folder.remove()


def test_files_come_back_as_written(folder: Folder) -> None:
    folder.write_bytes("a.bin", b"\x00\xff" * 10)
    folder.write_bytes("a.bin", b"second")
    folder.write_bytes("deep/er/b.bin", b"")
    folder.write_json("c.json", {"b": [1, None], "a": "ü"})
    assert folder.read_bytes("a.bin") == b"second"
    assert folder.read_bytes("deep/er/b.bin") == b""
    assert folder.read_json("c.json") == {"a": "ü", "b": [1, None]}
    assert folder.size_bytes("a.bin") == 6
    assert folder.names() == ["a.bin", "c.json", "deep"]
    assert [inner.path for inner in folder.folders()] == [(folder / "deep").path]
    assert (folder / "deep" / "er").names() == ["b.bin"]
    folder.remove_file("a.bin")
    assert not folder.exists("a.bin")
    folder.remove()
    assert not folder.exists()


def test_a_new_folder_is_made_once(folder: Folder) -> None:
    run = folder / "digits-1"
    assert run.create_new()
    assert not run.create_new()
    run.create()
    assert run.exists()
    assert folder.names() == ["digits-1"]


def test_folders_go_up_and_down_whole(folder: Folder, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "a.txt").write_text("a")
    (source / "inner" / "b.txt").write_text("b")
    (folder / "up").upload(source)
    assert (folder / "up").read_bytes("inner/b.txt") == b"b"
    (folder / "up").download(tmp_path / "back" / "again")
    back = tmp_path / "back" / "again"
    assert {str(path.relative_to(back)): path.read_text() for path in back.rglob("*.txt")} == {
        "a.txt": "a",
        "inner/b.txt": "b",
    }


def test_a_local_path_only_where_there_is_one(tmp_path: Path) -> None:
    assert local(tmp_path).local_path() == tmp_path / "runs"
    for folder in (beneath(tmp_path), in_memory(tmp_path)):
        with pytest.raises(UsageError, match="not a local folder"):
            folder.local_path()


def test_paths_and_uris_lead_to_the_same_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = local(tmp_path)
    for location in ("runs", "./runs", "~/runs", tmp_path / "runs", f"file://{tmp_path}/runs", expected.uri):
        assert Folder.at(location) == expected
    assert pickle.loads(pickle.dumps(expected)) == expected


@pytest.mark.parametrize("location", ["nope://bucket/x", "://", "s3:/://"])
def test_a_uri_that_nothing_can_open(location: str) -> None:
    with pytest.raises(UsageError, match="cannot be opened"):
        Folder.at(location)


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = local(tmp_path)
    folder.write_bytes("a.txt", b"old")

    def fail(handle: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        folder.write_bytes("a.txt", b"new")
    assert folder.read_bytes("a.txt") == b"old"
    assert folder.names() == ["a.txt"]


def write_half(folder: Folder, name: str) -> None:
    with folder.put(name) as stream:
        stream.write(b"half")
        raise TypeError


def test_on_hdfs_a_broken_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    folder = like_hdfs(tmp_path)
    folder.write_bytes("a.txt", b"old")
    with pytest.raises(TypeError):
        write_half(folder, "a.txt")
    assert folder.read_bytes("a.txt") == b"old"
    assert folder.names() == ["a.txt"]


def test_compressed_files_are_kept_as_they_are(tmp_path: Path) -> None:
    """pyarrow would compress and expand by the name's ending."""
    packed = gzip.compress(b"content")
    Folder.at(tmp_path).write_bytes("a.gz", packed)
    assert (tmp_path / "a.gz").read_bytes() == packed
    assert Folder.at(tmp_path).read_bytes("a.gz") == packed


def test_the_uri_of_a_store_names_its_endpoint() -> None:
    place = (
        Folder.at("s3://bucket/runs?endpoint_override=127.0.0.1:9000&scheme=http&region=us-east-1")
        / "digits-1"
    )
    assert place.path == "bucket/runs/digits-1"
    assert (
        place.uri == "s3://bucket/runs/digits-1?endpoint_override=127.0.0.1:9000&scheme=http&region=us-east-1"
    )
    assert Folder.at(place.uri) == place
