"""Files by path, folder, glob and URI, here and on storage that is reached through a URI."""

import functools
import http.server
import os
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from orchestrator.data.sources.files import Location, _matching, find_files
from orchestrator.data.sources.fingerprint import fingerprint
from orchestrator.data.sources.read import read_source
from orchestrator.errors import SourceError
from tests.unit.source_cases import opened, rows_of, section

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


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_files_behind_http(tmp_path: Path) -> None:
    table = pa.table({"x": list(range(1000)), "label": list(range(1000))})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
    (tmp_path / "a.csv").write_text("x,label\n1,2\n")
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            url = f"http://127.0.0.1:{server.server_port}"
            source = opened("parquet", f"{url}/a.parquet", 1000)
            assert len(source.chunks) > 5
            assert rows_of(source).equals(table)
            csv = section({"kind": "csv", "path": f"{url}/a.csv"}, "label")
            assert read_source(csv).to_pydict() == {"x": [1], "label": [2]}
            first = fingerprint(csv)
            (tmp_path / "a.csv").write_text("x,label\n1,3\n")
            assert fingerprint(csv) != first
            with pytest.raises(SourceError, match=r"b\.csv does not exist"):
                opened("csv", f"{url}/b.csv")
        finally:
            server.shutdown()
            serving.join()
    with pytest.raises(SourceError, match=r"a\.csv cannot be listed: Cannot connect"):
        opened("csv", f"{url}/a.csv")


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
