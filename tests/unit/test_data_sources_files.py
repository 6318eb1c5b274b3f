"""Files by path, folder, glob and URI, here and on storage that is reached through a URI."""

import os
from pathlib import Path

import pyarrow.fs as pafs
import pytest

from orchestrator.data.sources.files import Location, _matching, find_files
from orchestrator.data.sources.read import read_source
from orchestrator.errors import SourceError
from tests.unit.source_cases import section

NAMES = ("a.csv", "b.CSV", "c.txt.md", "d/e.csv", "d/f/g.csv", "d/.h.csv", "d/[i].csv", "_x/j.csv", "d1.csv")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x,y\n1,2\n")
    return tmp_path


def found(path: object) -> list[str]:
    return [file.relative for file in find_files(str(path), (".csv",))]


def test_folders_and_uris_of_them(folder: Path) -> None:
    expected = ["a.csv", "b.CSV", "d/[i].csv", "d/e.csv", "d/f/g.csv", "d1.csv"]
    assert found(folder) == expected
    assert found(folder.as_uri()) == expected
    assert found(folder / "c.txt.md") == ["c.txt.md"]
    assert found(f"{folder}/d/[i].csv") == ["[i].csv"]


def test_links_are_followed_unless_they_never_end(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / "z.csv").write_text("x\n1\n")
    (folder / "d" / "link").symlink_to(elsewhere)
    (folder / "d" / "up").symlink_to(folder)
    (folder / "gone.csv").symlink_to(folder / "nowhere")
    assert found(folder) == ["a.csv", "b.CSV", "d/[i].csv", "d/e.csv", "d/f/g.csv", "d/link/z.csv", "d1.csv"]


GLOBS = [
    "*.csv",
    "d/*",
    "**/*.csv",
    "d/**",
    "**/?.csv",
    "[a-b].*",
    "[!a]*.csv",
    "d*/**/[eg].csv",
    "d/*/g.csv",
    "*/e.csv",
]


@pytest.mark.parametrize("pattern", GLOBS)
def test_globs_mean_the_same_on_remote_storage(folder: Path, pattern: str) -> None:
    """The rules of pathlib's glob are those here; remote storage has no glob of its own."""
    remote = Location("", str(folder), pattern, pafs.LocalFileSystem())
    here = sorted(file.path for file in find_files(f"{folder}/{pattern}", ()))
    assert here
    assert sorted(file.path for file in _matching(remote)) == here


def test_relative_paths_start_at_the_working_directory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder / "d")
    assert found("../d") == ["[i].csv", "e.csv", "f/g.csv"]
    assert found("*.csv") == ["[i].csv", "e.csv"]


def test_fsspec_serves_what_pyarrow_does_not_know(folder: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.pipe("/sources/a.csv", b"x,label\n1,2\n")
    memory.pipe("/sources/deep/b.csv", b"x,label\n3,4\n")
    try:
        for path in ("memory://sources", "memory://sources/**/*.csv"):
            assert read_source(section({"kind": "csv", "path": path}, "label")).to_pydict() == {
                "x": [1, 3],
                "label": [2, 4],
            }
    finally:
        memory.rm("/sources", recursive=True)


def test_storage_that_cannot_be_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SourceError, match=r"'nosuch://a/b' cannot be opened.*nosuch"):
        find_files("nosuch://a/b", (".csv",))
    for name in ("HADOOP_HOME", "ARROW_LIBHDFS_DIR"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SourceError, match=r"hdfs://.*Hadoop client.*JAVA_HOME.*libhdfs"):
        find_files("hdfs://localhost:1/a.csv", (".csv",))


def test_a_file_without_rights_names_itself(folder: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (folder / "a.csv").chmod(0)
    with pytest.raises(SourceError, match=r"a\.csv"):
        read_source(section({"kind": "csv", "path": str(folder / "a.csv")}))
