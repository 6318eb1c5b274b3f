"""Databases: SQLite always; PostgreSQL against a real server where one is installed; MongoDB's client against a
stand-in."""

import datetime
import decimal
import glob
import os
import pickle
import shutil
import socket
import socketserver
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pytest
from pydantic import ValidationError

from orchestrator.data.sources.fingerprint import fingerprint
from orchestrator.data.sources.read import open_source, read_source
from orchestrator.errors import MissingPackage, SourceError
from orchestrator.spec.data import DataSection
from tests.unit.source_cases import rows_of, section


def sql(url: str, query: str, **more: Any) -> DataSection:
    return section({"kind": "sql", "url": url, "query": query, **more}, "label")


@pytest.fixture
def database(tmp_path: Path) -> Path:
    with sqlite3.connect(tmp_path / "a.db") as connection:
        connection.execute("create table rows (x real, name text, label integer, raw blob)")
        values = [(n / 2 if n else None, f"n{n}", n % 3, bytes([n % 256])) for n in range(1000)]
        connection.executemany("insert into rows values (?, ?, ?, ?)", values)
    connection.close()
    return tmp_path / "a.db"


def test_sqlite(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = sql(f"sqlite:///{database}", "select * from rows order by rowid")
    table = read_source(wanted)
    assert table.schema == pa.schema(
        [("x", pa.float64()), ("name", pa.string()), ("label", pa.int64()), ("raw", pa.binary())]
    )
    assert table["x"].to_pylist() == [None, *(n / 2 for n in range(1, 1000))]
    monkeypatch.chdir(database.parent)
    assert read_source(sql("sqlite:///a.db", "select label from rows where x > 10")).num_rows == 979
    assert rows_of(pickle.loads(pickle.dumps(open_source(wanted)))).equals(table)


def test_the_fingerprint_of_sqlite_follows_file_and_query(database: Path) -> None:
    url = f"sqlite:///{database}"
    first = fingerprint(sql(url, "select * from rows"))
    assert fingerprint(sql(url, "select * from rows")) == first
    assert fingerprint(sql(url, "select label from rows")) != first
    connection = sqlite3.connect(database)
    connection.execute("pragma journal_mode=wal")
    connection.commit()
    second = fingerprint(sql(url, "select * from rows"))
    connection.execute("update rows set x = 7 where label = 1")
    connection.commit()  # it lies in the log beside the file now
    assert fingerprint(sql(url, "select * from rows")) != second
    connection.close()


def test_faults_of_sqlite(database: Path, tmp_path: Path) -> None:
    url = f"sqlite:///{database}"
    with pytest.raises(SourceError, match=r"data.source.query.*no such table: absent"):
        read_source(sql(url, "select * from absent"))
    with pytest.raises(SourceError, match=r"readonly|gives no rows"):
        read_source(sql(url, "delete from rows"))
    with pytest.raises(SourceError, match="'x' holds values of several types"):
        read_source(sql(url, "select 1 as x, 1 as label union all select 'a', 2"))
    with pytest.raises(SourceError, match="no rows"):
        read_source(sql(url, "select * from rows where label = 9"))
    with pytest.raises(SourceError, match=r"nowhere.db does not exist"):
        read_source(sql(f"sqlite:///{tmp_path}/nowhere.db", "select 1 as label"))
    (tmp_path / "b.db").write_text("no database")
    with pytest.raises(SourceError, match=r"b.db: file is not a database"):
        read_source(sql(f"sqlite:///{tmp_path}/b.db", "select * from rows"))
    with pytest.raises(SourceError, match=r"data.target.*no column 'label'"):
        read_source(sql(url, "select x from rows"))


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "sql", "url": "postgresql://me:hush@host/db", "query": "select 1"},
        {"kind": "sql", "url": "postgresql://host/db?password=hush", "query": "select 1"},
        {"kind": "mongodb", "url": "mongodb://me:hush@host", "database": "d", "collection": "c"},
        {"kind": "csv", "path": "s3://key:hush@bucket/a.csv"},
        {"kind": "parquet", "path": "s3://bucket/a?secret_key=hush"},
    ],
)
def test_passwords_are_refused_in_the_spec(source: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="holds a password or key") as caught:
        section(source)
    assert "hush" not in str(caught.value.errors()[0]["ctx"]["error"])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"kind": "sql", "url": "mysql://host/db", "query": "select 1"},
            "must be sqlite:///FILE or postgresql",
        ),
        ({"kind": "mongodb", "url": "http://x", "database": "d", "collection": "c"}, "must be mongodb://"),
    ],
)
def test_urls_of_other_databases(source: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        section(source)


def test_drivers_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pymongo", "adbc_driver_postgresql", "adbc_driver_postgresql.dbapi"):
        monkeypatch.setitem(sys.modules, name, None)
    for source, extra in ((MONGODB | {"url": "mongodb://host"}, "mongodb"), (POSTGRESQL, "sql")):
        with pytest.raises(MissingPackage, match=rf"ray-orchestrator\[{extra}\]"):
            read_source(section(source))


MONGODB = {"kind": "mongodb", "database": "shop", "collection": "sales"}
POSTGRESQL = {"kind": "sql", "url": "postgresql://me@host/db", "query": "select 1"}


class MongoStandIn(socketserver.BaseRequestHandler):
    """Answers as a MongoDB server that holds `documents`, as far as pymongo asks. It is no MongoDB: queries
    are only noted."""

    documents: ClassVar[list[dict[str, Any]]] = []
    asked: ClassVar[list[dict[str, Any]]] = []

    def handle(self) -> None:
        import bson

        while head := self.request.recv(16, socket.MSG_WAITALL):
            length, number, _, code = struct.unpack("<iiii", head)
            body = self.request.recv(length - 16, socket.MSG_WAITALL)
            if code == 2013:  # a message: flags, then a section of kind 0 with one document
                size = struct.unpack_from("<i", body, 5)[0]
                answer = b"\0" * 5 + bson.encode(self.answer(bson.decode(body[5 : 5 + size])))
            else:  # the old way, by which the first hello is sent
                code, answer = 1, struct.pack("<iqii", 8, 0, 0, 1) + bson.encode(self.answer({"hello": 1}))
            self.request.sendall(struct.pack("<iiii", 16 + len(answer), 0, number, code) + answer)

    def answer(self, command: dict[str, Any]) -> dict[str, Any]:
        if "find" in command:
            self.asked.append(command)
            cursor = {"id": 0, "ns": "shop.sales", "firstBatch": self.documents}
            return {"ok": 1, "cursor": cursor}
        hello = {"isWritablePrimary": True, "minWireVersion": 0, "maxWireVersion": 21, "helloOk": True}
        return {"ok": 1, "maxBsonObjectSize": 2**24, "maxMessageSizeBytes": 2**25, **hello}


def test_mongodb_as_its_client_speaks_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bson = pytest.importorskip("bson", reason="the extra 'mongodb' is not installed")
    when = datetime.datetime(2026, 1, 1)
    documents = [
        {"x": 1, "label": "a", "at": when, "price": bson.decimal128.Decimal128("1.50")},
        {"x": 2.5, "label": "b", "tags": ["t"], "ref": bson.ObjectId("0" * 24)},
    ]
    monkeypatch.setattr(MongoStandIn, "documents", documents)
    monkeypatch.setattr(MongoStandIn, "asked", [])
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), MongoStandIn) as server:
        server.daemon_threads = True
        serving = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        serving.start()
        try:
            url = f"mongodb://127.0.0.1:{server.server_address[1]}"
            wanted = section({**MONGODB, "url": url, "filter": {"year": 2026}}, "label")
            table = read_source(wanted)
            first = fingerprint(wanted)
            assert fingerprint(wanted) == first
            documents[0]["x"] = 7
            assert fingerprint(wanted) != first
        finally:
            server.shutdown()
            serving.join()
    assert table.to_pydict() == {
        "x": [1.0, 2.5],
        "label": ["a", "b"],
        "at": [when, None],
        "price": [1.5, None],
        "tags": [None, ["t"]],
        "ref": [None, "0" * 24],
    }
    asked = MongoStandIn.asked[0]
    assert (asked["find"], asked["filter"], asked["$db"]) == ("sales", {"year": 2026}, "shop")
    assert (asked["sort"], asked["projection"]) == ({"_id": 1}, {"_id": 0})


def test_mongodb_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pymongo", reason="the extra 'mongodb' is not installed")
    monkeypatch.setenv("DB_PASSWORD", "wr:ng/one")
    url = "mongodb://me@127.0.0.1:1/?serverSelectionTimeoutMS=50"
    with pytest.raises(SourceError, match=r"mongodb://me@127.0.0.1:1.*refused") as caught:
        read_source(section({**MONGODB, "url": url, "password_env": "DB_PASSWORD"}))
    assert "wr" not in str(caught.value).replace("wrong", "").replace("write", "")


def binaries() -> Path | None:
    """Where PostgreSQL's server programs are."""
    found = [Path(name).parent for name in sorted(glob.glob("/usr/lib/postgresql/*/bin/initdb"))]  # noqa: PTH207
    on_path = shutil.which("initdb")
    return found[-1] if found else Path(on_path).resolve().parent if on_path else None


PASSWORD = "p@ss/w:rd %41"


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """A server of our own, with the password above; gives host and port."""
    pytest.importorskip("adbc_driver_postgresql", reason="the extra 'sql' is not installed")
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL's initdb is not installed")
    folder = Path(
        tempfile.mkdtemp(prefix="pg-", dir="/tmp")
    )  # paths of sockets are limited to 107 characters
    # PostgreSQL refuses to run as root.
    as_user: dict[str, Any] = {}
    if os.geteuid() == 0:
        try:
            import pwd

            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL refuses to run as root, and there is no user 'postgres'")
        shutil.chown(folder, "postgres")
        as_user = {"user": "postgres"}
    (folder / "password").write_text(PASSWORD)
    (folder / "password").chmod(0o644)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def run(*command: object) -> None:
        done = subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=100,
            **as_user,
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"

    data = folder / "data"
    run(
        programs / "initdb",
        "-D",
        data,
        "-U",
        "me",
        "-A",
        "scram-sha-256",
        "--pwfile",
        folder / "password",
        "-N",
    )
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    run(programs / "pg_ctl", "-D", data, "-w", "-l", folder / "log", "-o", options, "start")
    try:
        yield f"127.0.0.1:{port}"
    finally:
        run(programs / "pg_ctl", "-D", data, "-w", "-m", "immediate", "stop")
        shutil.rmtree(folder, ignore_errors=True)


ROWS = """
    select n::int4 as x, (n / 4.0)::numeric(10, 2) as price, 'n' || n as name, n % 3 = 0 as label,
           case when n > 1 then timestamp '2026-01-01' + n * interval '1 hour' end as at,
           array[n, n + 1]::float4[] as pair, null::float8 as nothing
    from generate_series(1, 1000) n order by n
"""


def test_postgresql(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    wanted = sql(f"postgresql://me@{postgresql}/postgres", ROWS, password_env="DB_PASSWORD")
    source = open_source(wanted)
    table = rows_of(source)
    assert table["x"].to_pylist() == list(range(1, 1001))
    quarters = [float(round(decimal.Decimal(n) / 4, 2)) for n in range(1, 1001)]
    assert table["price"].to_pylist() == quarters
    assert table["name"][9].as_py() == "n10"
    assert table["label"].type == pa.bool_()
    assert table["at"].null_count == 1
    assert table["pair"][4].as_py() == [5.0, 6.0]
    assert table["nothing"].null_count == 1000
    assert table["nothing"].type == pa.float64()
    sent = pickle.dumps(source)
    assert PASSWORD.encode() not in sent
    assert rows_of(pickle.loads(sent)).equals(table)


def test_the_fingerprint_of_postgresql_follows_its_rows(
    postgresql: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)  # PostgreSQL's own variable needs no word in the spec

    def of(query: str) -> str:
        return fingerprint(sql(f"postgresql://me@{postgresql}/postgres", query))

    first = of("select n as x, 1 as label from generate_series(1, 10) n")
    assert of("select n as x, 1 as label from generate_series(1, 5 + 5) n") == first
    assert of("select n as x, 1 as label from generate_series(1, 11) n") != first
    assert of("select n as x, 2 as label from generate_series(1, 10) n") != first


def test_faults_of_postgresql(postgresql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"postgresql://me@{postgresql}/postgres"
    monkeypatch.delenv("DB_PASSWORD", raising=False)
    with pytest.raises(SourceError, match=r"DB_PASSWORD is not set.*secrets:"):
        read_source(sql(url, "select 1", password_env="DB_PASSWORD"))
    monkeypatch.setenv("DB_PASSWORD", "wr:ng/one")
    with pytest.raises(SourceError, match="authentication failed") as caught:
        read_source(sql(url, "select 1", password_env="DB_PASSWORD"))
    assert "wr:ng" not in str(caught.value)
    assert "wr%3Ang" not in str(caught.value)
    monkeypatch.setenv("DB_PASSWORD", PASSWORD)
    with pytest.raises(SourceError, match='relation "absent" does not exist'):
        read_source(sql(url, "select * from absent", password_env="DB_PASSWORD"))
    with pytest.raises(SourceError, match="names no user"):
        read_source(sql(f"postgresql://{postgresql}/postgres", "select 1", password_env="DB_PASSWORD"))
