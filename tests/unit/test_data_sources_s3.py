"""Sources on S3, against a real server on this machine that speaks S3 (moto's)."""

import io
import pickle
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from orchestrator.data.sources.fingerprint import fingerprint
from orchestrator.data.sources.read import open_source, read_source
from orchestrator.errors import SourceError
from tests.unit.s3_case import ACCOUNT, s3_server
from tests.unit.source_cases import rows_of, section


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with s3_server() as found:
        yield found


@pytest.fixture
def bucket(address: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[pafs.S3FileSystem]:
    for name, value in ACCOUNT.items():
        monkeypatch.setenv(name, value)
    filesystem = pafs.S3FileSystem(
        endpoint_override=address,
        scheme="http",
        allow_bucket_creation=True,
        allow_bucket_deletion=True,
    )
    filesystem.create_dir("bucket")
    yield filesystem
    filesystem.delete_dir("bucket")


def put(filesystem: pafs.S3FileSystem, name: str, content: bytes) -> None:
    with filesystem.open_output_stream(f"bucket/{name}") as stream:
        stream.write(content)


def parquet(rows: int, first: int = 0) -> bytes:
    sink = io.BytesIO()
    table = pa.table({"x": np.arange(first, first + rows) / 2, "label": np.arange(first, first + rows)})
    pq.write_table(table, sink, row_group_size=100)
    return sink.getvalue()


def test_parquet_by_file_folder_and_glob(bucket: pafs.S3FileSystem, address: str) -> None:
    put(bucket, "set/year=2025/a.parquet", parquet(1000))
    put(bucket, "set/year=2026/b.parquet", parquet(10, first=1000))
    put(bucket, "set/_SUCCESS", b"")
    query = f"endpoint_override={address}&scheme=http"
    for path in ("set", "set/*/*.parquet", "set/**"):
        wanted = section(
            {"kind": "parquet", "path": f"s3://bucket/{path}?{query}"}, "label", features=["x", "year"]
        )
        if path == "set/**":
            with pytest.raises(SourceError, match="_SUCCESS"):
                read_source(wanted)
            continue
        table = read_source(wanted)
        assert table["label"].to_pylist() == list(range(1010))
        assert table["year"].to_pylist() == [2025] * 1000 + [2026] * 10
    one = section({"kind": "parquet", "path": f"s3://bucket/set/year=2026/b.parquet?{query}"}, "label")
    assert read_source(one).num_rows == 10
    source = open_source(section({"kind": "parquet", "path": f"s3://bucket/set?{query}"}, "label"), 4000)
    assert len(source.chunks) > 3
    sent = pickle.dumps(source)
    assert b"hidden-key" not in sent
    assert rows_of(pickle.loads(sent))["label"].to_pylist() == list(range(1010))


def test_the_usual_variables_name_the_server(
    bucket: pafs.S3FileSystem, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{address}")
    put(bucket, "a.csv", b"x,label\n" + b"1,2\n" * 500)
    put(bucket, "a.jsonl", b'{"x": 1, "label": 2}\n')
    put(bucket, "a b/ä.txt", "zwölf\n".encode())
    csv = section({"kind": "csv", "path": "s3://bucket/a.csv"}, "label")
    assert read_source(csv).num_rows == 500
    cut = open_source(csv, 300)
    assert len(cut.chunks) > 3
    assert rows_of(cut).equals(read_source(csv))
    assert read_source(section({"kind": "json", "path": "s3://bucket/*.jsonl"}, "label")).num_rows == 1
    assert read_source(section({"kind": "text", "path": "s3://bucket/a b"}))["text"].to_pylist() == [
        "zwölf\n"
    ]


def test_images_and_arrays(bucket: pafs.S3FileSystem, address: str) -> None:
    query = f"endpoint_override={address}&scheme=http"
    for name in ("dog/2.png", "cat/1.png", "cat/notes.txt"):
        put(bucket, f"pets/{name}", name.encode())
    table = read_source(section({"kind": "image_folder", "path": f"s3://bucket/pets?{query}"}, "label"))
    assert table.to_pydict() == {
        "image": [{"bytes": b"cat/1.png", "path": "cat/1.png"}, {"bytes": b"dog/2.png", "path": "dog/2.png"}],
        "label": ["cat", "dog"],
    }
    sink = io.BytesIO()
    np.savez(sink, x=np.arange(6.0).reshape(3, 2), label=np.arange(3))
    put(bucket, "a.npz", sink.getvalue())
    read = read_source(section({"kind": "numpy", "path": f"s3://bucket/a.npz?{query}"}, "label"))
    assert read["label"].to_pylist() == [0, 1, 2]


def test_the_fingerprint_follows_content_without_reading_it(bucket: pafs.S3FileSystem, address: str) -> None:
    wanted = section(
        {"kind": "parquet", "path": f"s3://bucket/f?endpoint_override={address}&scheme=http"}, "label"
    )
    put(bucket, "f/a.parquet", parquet(10))
    first = fingerprint(wanted)
    time.sleep(1.1)  # what S3 counts times in
    put(bucket, "f/a.parquet", parquet(10))
    assert fingerprint(wanted) == first
    put(bucket, "f/a.parquet", parquet(10, first=1))  # of the same size, within the same second
    assert fingerprint(wanted) != first


def test_what_is_not_there_is_named(bucket: pafs.S3FileSystem, address: str) -> None:
    query = f"endpoint_override={address}&scheme=http"
    for path, message in (
        ("s3://bucket/nowhere", "s3://bucket/nowhere does not exist"),
        ("s3://bucket/*.csv", r"no file matches s3://bucket/\*\.csv"),
        ("s3://nobucket/a.csv", "s3://nobucket/a.csv does not exist"),
    ):
        with pytest.raises(SourceError, match=message):
            read_source(section({"kind": "csv", "path": f"{path}?{query}"}, "label"))
    put(bucket, "a.csv", b"x,label\n1\n")
    with pytest.raises(SourceError, match=r"s3://bucket/a.csv cannot be read as CSV"):
        read_source(section({"kind": "csv", "path": f"s3://bucket/a.csv?{query}"}, "label"))
