"""Runs, checkpoints and data on a real HDFS: ORCHESTRATOR_TEST_HDFS=hdfs://namenode:8020/folder names one."""

from __future__ import annotations

import io
import os
import pickle
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from orchestrator.checkpoints.manifest import STATE
from orchestrator.checkpoints.saver import Part, Saver
from orchestrator.checkpoints.store import CheckpointStore
from orchestrator.checkpoints.tensors import dump_state, parse_state
from orchestrator.data.sources.files import find_files
from orchestrator.data.sources.read import read_source
from orchestrator.errors import SourceError
from orchestrator.runs.claim import holds, take_claim
from orchestrator.runs.folder import RunFolder, RunRecord, create_run, list_runs
from orchestrator.storage import Folder
from tests.unit.source_cases import section
from tests.unit.test_storage import write_half

HDFS = os.environ.get("ORCHESTRATOR_TEST_HDFS", "")

pytestmark = pytest.mark.skipif(not HDFS, reason="ORCHESTRATOR_TEST_HDFS names no HDFS to test on")


@pytest.fixture
def folder() -> Iterator[Folder]:
    place = Folder.at(f"{HDFS.rstrip('/')}/test-{uuid.uuid4().hex[:8]}")
    yield place.create()
    place.remove()


@pytest.fixture
def silent() -> Iterator[str]:
    """A URI whose server refuses connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"hdfs://127.0.0.1:{bound.getsockname()[1]}"


def test_a_uri_leads_to_the_same_server(folder: Folder) -> None:
    folder.write_bytes("a.txt", b"a")
    for other in (Folder.at(folder.uri), pickle.loads(pickle.dumps(folder))):
        assert other.uri == folder.uri
        assert other.read_bytes("a.txt") == b"a"
    assert (Folder.at(HDFS[: HDFS.index("/", len("hdfs://"))]) / "a").path == "/a"


def test_files_are_replaced_whole(folder: Folder, capfd: pytest.CaptureFixture[str]) -> None:
    folder.write_bytes("in/a.txt", b"first")
    folder.write_bytes("in/a.txt", b"second")
    with pytest.raises(TypeError):
        write_half(folder, "in/a.txt")
    assert folder.read_bytes("in/a.txt") == b"second"
    assert (folder / "in").names() == ["a.txt"]
    assert folder.create_new() is False
    assert (folder / "new").create_new() is True
    capfd.readouterr()
    assert folder.read_json("none.json") is None
    assert (folder / "none").names() == []
    assert capfd.readouterr().err == ""  # no stack of Java's


def test_a_server_that_is_silent_is_no_empty_folder(silent: str) -> None:
    """To start a run anew because its checkpoints cannot be seen would lose it."""
    gone = Folder.at(f"{silent}/runs")
    for look in (gone.names, gone.exists, gone.remove, lambda: gone.read_json("a.json")):
        with pytest.raises(OSError, match="HDFS"):
            look()
    with pytest.raises(OSError, match="HDFS"):
        CheckpointStore(gone, pauses_s=()).manifests()
    with pytest.raises(SourceError, match="cannot be listed"):
        find_files(f"{silent}/data", (".csv",))


def test_a_run_is_numbered_recorded_and_claimed(folder: Folder) -> None:
    run = create_run(folder, "digits")
    run.write_record(RunRecord("digits", 1))
    run.update_record(attempts=2)
    claim = take_claim(run, 0.0)
    assert claim is not None
    assert take_claim(RunFolder(Folder.at(folder.uri), "digits", 1), 0.0) is None
    assert holds(run, claim)
    assert [(found.label, found.read_record()) for found in list_runs(folder)] == [
        ("digits-1", RunRecord("digits", 1, attempts=2))
    ]
    assert create_run(folder, "digits").label == "digits-2"


def test_checkpoints_are_saved_listed_damaged_and_pruned(folder: Folder) -> None:
    store = CheckpointStore(folder)
    saver = Saver(store, attempt=store.begin_attempt())
    weight = torch.arange(300_000, dtype=torch.float32)
    for step in (1, 2, 3):
        saver.save([Part(STATE, {"weight": weight + step}, dump_state)], step=step, epoch=0, metrics={})
    saver.finish()
    assert store.damages() == {"step-000000002": [], "step-000000003": []}
    place = folder / "step-000000003"
    data = place.read_bytes(STATE)
    assert torch.equal(parse_state(data)["weight"], weight + 3)
    place.write_bytes(STATE, data[: len(data) // 2])
    found = store.load_newest()
    assert found is not None
    assert found[0].step == 2
    place.remove_file("manifest.json")
    (folder / "step-000000002").write_bytes(".state.pt.0", data)  # what a killed writer left
    store.sweep(store.begin_attempt())
    assert [one.path.rpartition("/")[2] for one in folder.folders()] == ["step-000000002"]
    assert (folder / "step-000000002").names() == ["manifest.json", "state.pt"]


def test_parquet_is_read(folder: Folder) -> None:
    for year in (2025, 2026):
        sink = io.BytesIO()
        pq.write_table(pa.table({"x": [0.5, 1.5], "label": [0, 1]}), sink)
        folder.write_bytes(f"set/year={year}/a b.parquet", sink.getvalue())
    for path in ("set", "set/*/*.parquet"):
        table = read_source(section({"kind": "parquet", "path": f"{folder.uri}/{path}"}, target="label"))
        assert table.num_rows == 4
    with pytest.raises(SourceError, match="does not exist"):
        find_files(f"{folder.uri}/none", (".parquet",))


def test_java_leaves_the_signals_alone() -> None:
    code = (
        "import os, signal, sys, time\n"
        "from orchestrator.storage import Folder\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit('saved first'))\n"
        f"Folder.at({HDFS!r}).exists()\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
        "time.sleep(10)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, "saved first" in done.stderr) == (1, True)
