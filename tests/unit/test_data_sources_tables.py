"""Table files: every format, cut or whole, against pandas; columns that differ between files; Hive folders."""

import gzip
import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.data.sources.chunks import Unreadable
from orchestrator.data.sources.fingerprint import fingerprint
from orchestrator.data.sources.read import open_source, read_source
from orchestrator.errors import SourceError
from tests.unit.source_cases import BY_FILES, opened, rows_of, section

ROWS = 3000


def frame(rows: int = ROWS) -> pd.DataFrame:
    generator = np.random.default_rng(0)
    return pd.DataFrame(
        {
            "id": np.arange(rows),
            "x": generator.normal(size=rows),
            "name": [f'n{n} "q"\n, é' for n in range(rows)],
            "label": generator.integers(0, 3, rows),
        }
    )


def write_ipc(table: pa.Table, file: Path, opener: Callable[..., Any]) -> None:
    with pa.OSFile(str(file), "wb") as sink, opener(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=100)


def write(kind: str, data: pd.DataFrame, file: Path) -> None:
    table = pa.Table.from_pandas(data, preserve_index=False)
    match kind:
        case "parquet":
            pq.write_table(table, file, row_group_size=100)
        case "arrow":
            write_ipc(table, file, pa.ipc.new_file)
        case "stream":
            write_ipc(table, file, pa.ipc.new_stream)
        case "feather":
            feather.write_feather(table, str(file), compression="lz4", chunksize=100)
        case "csv":
            data.to_csv(file, index=False)
        case "json":
            data.to_json(file, orient="records", lines=True, force_ascii=False)


FORMATS = [
    ("parquet", "parquet", "a.parquet"),
    ("arrow", "arrow", "a.arrow"),
    ("stream", "arrow", "a.arrows"),
    ("feather", "arrow", "a.feather"),
    ("csv", "csv", "a.csv"),
    ("json", "json", "a.jsonl"),
]


@pytest.mark.parametrize(("written", "kind", "name"), FORMATS)
def test_chunks_of_a_large_file_are_the_file(written: str, kind: str, name: str, tmp_path: Path) -> None:
    write(written, frame(), tmp_path / name)
    whole = opened(kind, tmp_path)
    assert len(whole.chunks) == 1
    pd.testing.assert_frame_equal(rows_of(whole).to_pandas(), frame(), check_dtype=False)
    cut = opened(kind, tmp_path, chunk_bytes=(tmp_path / name).stat().st_size // 7)
    assert 5 <= len(cut.chunks) <= 9
    assert rows_of(cut).equals(rows_of(whole))
    assert len({chunk.fingerprint for chunk in cut.chunks}) == len(cut.chunks)
    assert all(name in chunk.name for chunk in cut.chunks)


@pytest.mark.parametrize(("written", "kind", "name"), FORMATS)
def test_chunks_survive_pickling_without_their_rows(
    written: str, kind: str, name: str, tmp_path: Path
) -> None:
    write(written, frame(), tmp_path / name)
    for source in (opened(kind, tmp_path), opened(kind, tmp_path, chunk_bytes=10_000)):
        sent = pickle.dumps(source)
        assert len(sent) < 1000 * len(source.chunks) + 3000
        assert rows_of(pickle.loads(sent)).equals(rows_of(source))


@pytest.mark.parametrize(("written", "kind", "name"), FORMATS)
def test_only_the_wanted_columns_are_read(written: str, kind: str, name: str, tmp_path: Path) -> None:
    write(written, frame(), tmp_path / name)
    wanted = section({"kind": kind, "path": str(tmp_path)}, "label", features=["x"])
    for chunk_bytes in (2**26, 10_000):
        source = open_source(wanted, chunk_bytes)
        assert source.schema.names == ["x", "label"]
        np.testing.assert_allclose(rows_of(source)["x"].to_numpy(), frame()["x"])
    with pytest.raises(SourceError, match=r"data.features.*no column 'xx'"):
        read_source(section({"kind": kind, "path": str(tmp_path)}, "label", features=["xx"]))


@pytest.mark.parametrize(("written", "kind", "name"), FORMATS)
def test_small_files_go_together_and_added_ones_leave_others_alone(
    written: str, kind: str, name: str, tmp_path: Path
) -> None:
    for n in range(20):
        write(written, frame(50), tmp_path / f"{n:02}{name}")
    size = (tmp_path / f"00{name}").stat().st_size
    before = opened(kind, tmp_path, chunk_bytes=5 * size + 5)
    assert 4 <= len(before.chunks) <= 8
    assert rows_of(before).num_rows == 20 * 50
    assert rows_of(before).equals(rows_of(opened(kind, tmp_path)))
    write(written, frame(60), tmp_path / f"20{name}")
    after = opened(kind, tmp_path, chunk_bytes=5 * size + 5)
    old, new = ([chunk.fingerprint for chunk in source.chunks] for source in (before, after))
    assert new[: len(old) - 1] == old[:-1]
    assert new != old


@pytest.mark.parametrize(("written", "kind", "name"), FORMATS)
def test_a_file_that_cannot_be_read_names_itself(written: str, kind: str, name: str, tmp_path: Path) -> None:
    write(written, frame(50), tmp_path / f"1{name}")
    damaged = b"id,x,name,label\n1,2\n" if kind == "csv" else b'{"id": \x00\xff\n'
    (tmp_path / f"2{name}").write_bytes(damaged)
    write(written, frame(50), tmp_path / f"3{name}")
    for chunk_bytes in (2**26, 1):
        source = opened(kind, tmp_path, chunk_bytes)
        with pytest.raises(SourceError, match=rf"2{name} cannot be read as"):
            rows_of(source)
        faults: list[Unreadable] = []
        tables = [chunk.read(faults) for chunk in source.chunks]
        assert sum(table.num_rows for table in tables) == 100
        assert {Path(fault.place).name for fault in faults} == {f"2{name}"}
    (tmp_path / f"1{name}").unlink()
    (tmp_path / f"3{name}").unlink()
    if kind != "csv":
        with pytest.raises(SourceError, match=rf"2{name} cannot be read as|no rows|no column"):
            read_source(section({"kind": kind, "path": str(tmp_path)}, "label"))


@pytest.mark.parametrize(("written", "kind", "name"), FORMATS)
def test_columns_that_differ_between_files(written: str, kind: str, name: str, tmp_path: Path) -> None:
    write(written, pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), tmp_path / f"1{name}")
    write(written, pd.DataFrame({"a": [0.5], "c": [True]}), tmp_path / f"2{name}")
    write(written, pd.DataFrame({"c": [False], "b": ["z"]}), tmp_path / f"3{name}")
    expected = {"a": [1, 2, 0.5, None], "b": ["x", "y", None, "z"], "c": [None, None, True, False]}
    for chunk_bytes in (2**26, 1):
        source = opened(kind, tmp_path, chunk_bytes)
        assert source.schema.field("a").type == pa.float64()
        assert rows_of(source).to_pydict() == expected
    only = open_source(section({"kind": kind, "path": str(tmp_path)}, "c", features=["b"]), 1)
    assert rows_of(only).to_pydict() == {"b": expected["b"], "c": expected["c"]}
    write(written, pd.DataFrame({"a": ["one"]}), tmp_path / f"4{name}")
    text = r"(large_)?string"
    with pytest.raises(SourceError, match=rf"column 'a' is {text} in .*4{name}, and double in .*2{name}"):
        opened(kind, tmp_path)
    assert open_source(section({"kind": kind, "path": str(tmp_path)}, "c", features=["b"])).schema.names


@pytest.mark.parametrize(("written", "kind", "name"), FORMATS)
def test_hive_folders_become_columns(written: str, kind: str, name: str, tmp_path: Path) -> None:
    data = pd.DataFrame({"x": [0.5, 1.5], "label": [0, 1]})
    for folder in ("year=2025/city=a%20b", "year=2026/city=c", "year=2026/city=__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / folder).mkdir(parents=True)
        write(written, data, tmp_path / folder / name)
    (tmp_path / "_delta_log").mkdir()
    write(written, data, tmp_path / "_delta_log" / name)
    for chunk_bytes in (2**26, 1):
        table = rows_of(opened(kind, tmp_path, chunk_bytes))
        assert table.column_names == ["x", "label", "year", "city"]
        assert table["year"].to_pylist() == [2025, 2025, 2026, 2026, 2026, 2026]
        assert table["city"].to_pylist() == ["a b", "a b", None, None, "c", "c"]
    glob = section({"kind": kind, "path": f"{tmp_path}/year=*/city=c/*"}, "label", features=["city", "year"])
    assert read_source(glob).to_pydict() == {"city": ["c", "c"], "year": [2026, 2026], "label": [0, 1]}
    alone = section({"kind": kind, "path": f"{tmp_path}/year=*/city=c/*"}, "city", features=["year"])
    assert read_source(alone).num_rows == 2
    before = fingerprint(section({"kind": kind, "path": str(tmp_path)}))
    (tmp_path / "year=2025").rename(tmp_path / "year=2024")
    assert fingerprint(section({"kind": kind, "path": str(tmp_path)})) != before


@pytest.mark.parametrize(("written", "kind", "name"), FORMATS)
def test_rows_tell_their_files(written: str, kind: str, name: str, tmp_path: Path) -> None:
    (tmp_path / "year=2026").mkdir()
    for folder, rows in (("", 2), ("year=2026/", 3)):
        write(written, frame(rows), tmp_path / f"{folder}{name}")
    expected = [name] * 2 + [f"year=2026/{name}"] * 3
    for chunk_bytes in (2**26, 1):
        for features in (["x"], None):
            wanted = section({"kind": kind, "path": str(tmp_path)}, "label", features=features)
            by_files = section(
                {"kind": kind, "path": str(tmp_path)}, "label", features=features, split=BY_FILES
            )
            table = rows_of(open_source(by_files, chunk_bytes))
            assert table.column_names[-1] == "__path__"
            assert table["__path__"].to_pylist() == expected
            assert "__path__" not in open_source(wanted, chunk_bytes).schema.names
    before = fingerprint(wanted), fingerprint(by_files)
    (tmp_path / name).rename(tmp_path / f"0{name}")
    assert fingerprint(wanted) == before[0]
    assert fingerprint(by_files) != before[1]


def test_pandas_reads_the_same_hive_folders(tmp_path: Path) -> None:
    data = frame(200)
    data.to_parquet(tmp_path / "set", partition_cols=["label"])
    ours = rows_of(opened("parquet", tmp_path / "set")).to_pandas()
    theirs = pd.read_parquet(tmp_path / "set").astype({"label": int})
    pd.testing.assert_frame_equal(ours, theirs, check_dtype=False)


VALUES = st.one_of(
    st.none(), st.integers(-5, 5), st.text(alphabet='ab",\n ', min_size=1, max_size=4).filter(str.strip)
)


@given(st.lists(st.tuples(VALUES, VALUES), min_size=1, max_size=40), st.integers(5, 80))
def test_a_csv_is_the_same_however_it_is_cut(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[Any, Any]], chunk_bytes: int
) -> None:
    file = tmp_path_factory.mktemp("csv") / "a.csv"
    pd.DataFrame(rows, columns=["a", "b"], dtype=object).to_csv(file, index=False)
    whole = rows_of(opened("csv", file))
    assert rows_of(opened("csv", file, chunk_bytes)).equals(whole)
    texts = pd.read_csv(file, dtype=str)
    for name in ("a", "b"):
        ours = [None if value is None else str(value) for value in whole[name].to_pylist()]
        assert ours == [None if pd.isna(value) else value for value in texts[name]]


@pytest.mark.parametrize(
    ("first", "second", "kind"),
    [
        ("1", "2.5", "double"),
        ("1", "x", "string"),
        ("007", "x", "string"),
        ("2026-01-01", "2026-01-01 10:00:00", "timestamp[s]"),
        ("", "7", "int64"),
        ("true", "maybe", "string"),
    ],
)
def test_types_come_from_all_of_a_csv(tmp_path: Path, first: str, second: str, kind: str) -> None:
    file = tmp_path / "a.csv"
    file.write_text("n,v\n" + f"1,{first}\n" * 40 + f"2,{second}\n" * 3)
    cut, whole = opened("csv", file, 100), opened("csv", file)
    assert len(cut.chunks) > 1
    assert str(cut.schema.field("v").type) == kind
    assert rows_of(cut).equals(rows_of(whole))
    if kind == "string":
        assert rows_of(cut)["v"][0].as_py() == first


def test_a_record_longer_than_pyarrows_blocks(tmp_path: Path) -> None:
    long = "ä" * 2**21
    data = pd.DataFrame({"id": [1, 2, 3], "text": ["a", long, "b"]})
    data.to_csv(tmp_path / "a.csv", index=False)
    write("json", data, tmp_path / "a.jsonl")
    for kind in ("csv", "json"):
        for chunk_bytes in (2**26, 10):
            assert rows_of(opened(kind, tmp_path, chunk_bytes))["text"].to_pylist() == ["a", long, "b"]


def test_compressed_files(tmp_path: Path) -> None:
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"x,label\n1,2\n"))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"x": 1, "label": 2}\n'))
    for kind in ("csv", "json"):
        for chunk_bytes in (2**26, 1):
            assert rows_of(opened(kind, tmp_path, chunk_bytes)).to_pydict() == {"x": [1], "label": [2]}
    (tmp_path / "a.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(SourceError, match=r"a.csv.gz cannot be read as CSV"):
        read_source(section({"kind": "csv", "path": str(tmp_path)}))


def test_bad_records_are_told_one_by_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("x,y\n1,2\n3\n4,5\n6,7,8\n")
    (tmp_path / "a.jsonl").write_text('{"x": 1, "y": 2}\n{"x": 3, \n7\n{"x": 4, "y": 5}\n')
    for kind, told in (("csv", "got 1: 3"), ("json", "line 2")):
        (chunk,) = opened(kind, tmp_path).chunks
        with pytest.raises(SourceError, match=rf"a\.{kind[:2]}"):
            chunk.read()
        faults: list[Unreadable] = []
        assert chunk.read(faults).to_pydict() == {"x": [1, 4], "y": [2, 5]}
        assert len(faults) == 2
        assert told in str(faults[0])


def test_json_that_is_no_lines(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([{"x": 1}]))
    with pytest.raises(SourceError, match=r"a.json cannot be read as JSON lines: it holds an array"):
        read_source(section({"kind": "json", "path": str(tmp_path)}))
    (tmp_path / "a.json").write_text('{"x": 1}\n{"x": "a"}\n')
    with pytest.raises(SourceError, match=r"a.json cannot be read as JSON lines"):
        read_source(section({"kind": "json", "path": str(tmp_path)}))


def test_nested_json_and_moments(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        '{"x": [1, 2], "at": "2026-01-01 10:00:00", "s": "2026-01-01 10:00:00"}\n{"x": [3], "s": "no date"}\n'
    )
    for chunk_bytes in (2**26, 1):
        table = rows_of(opened("json", tmp_path, chunk_bytes))
        assert table["x"].to_pylist() == [[1, 2], [3]]
        assert table["s"].to_pylist()[1] == "no date"


def test_empty_files_have_no_rows(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "b.csv").write_text("x,y\n1,2\n")
    for chunk_bytes in (2**26, 1):
        assert rows_of(opened("csv", tmp_path, chunk_bytes)).to_pydict() == {"x": [1], "y": [2]}


def test_categories_of_parquet_files_go_together(tmp_path: Path) -> None:
    for n, values in enumerate((["a", "b"], ["c", "a"])):
        data = pd.DataFrame({"x": pd.Categorical(values), "label": [0, 1]})
        data.to_parquet(tmp_path / f"{n}.parquet")
    pd.DataFrame({"x": ["d"], "label": [0]}).to_parquet(tmp_path / "2.parquet")
    assert rows_of(opened("parquet", tmp_path))["x"].to_pylist() == ["a", "b", "c", "a", "d"]


def test_tensor_columns_that_some_files_lack(tmp_path: Path) -> None:
    pixels = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(8, dtype=np.uint8).reshape(2, 2, 2))
    pq.write_table(pa.table({"image": pixels, "label": [0, 1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"label": [1]}), tmp_path / "b.parquet")
    table = rows_of(opened("parquet", tmp_path))
    assert table.schema.field("image").type == pixels.type
    assert table["image"].null_count == 1


def test_lines_of_large_texts(tmp_path: Path) -> None:
    content = "\ufeffone\r\n\r\nzwölf\n" * 50
    (tmp_path / "a.txt").write_bytes(content.encode())
    whole, cut = (opened("text", tmp_path, size, rows="line") for size in (2**26, 37))
    assert len(cut.chunks) > 5
    assert rows_of(cut)["text"].to_pylist() == rows_of(whole)["text"].to_pylist()
    assert rows_of(cut).num_rows == 150


def test_unchanged_large_files_are_not_read_again(tmp_path: Path) -> None:
    file, memo = tmp_path / "a.csv", tmp_path / "memo.json"
    write("csv", frame(), file)
    os.utime(file, (1, 1))
    wanted = section({"kind": "csv", "path": str(file)})
    first = [chunk.fingerprint for chunk in open_source(wanted, 20_000, memo=memo).chunks]
    content = file.read_bytes()
    file.write_bytes(content.replace(b"n1 ", b"m1 "))
    os.utime(file, (1, 1))
    assert [chunk.fingerprint for chunk in open_source(wanted, 20_000, memo=memo).chunks] == first
    changed = [chunk.fingerprint for chunk in open_source(wanted, 20_000).chunks]
    assert changed[0] != first[0]
    assert changed[1:] == first[1:]
