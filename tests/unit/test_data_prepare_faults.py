"""Preparation that is killed, raced, short of disk or memory, or meets corrupt files."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.preparing import mapper as mapper_module
from orchestrator.data.preparing.mapper import Mapper, closing_all, in_process
from orchestrator.data.preparing.prepare import prepare
from orchestrator.data.threads import in_threads
from orchestrator.errors import DataError, UsageError
from orchestrator.spec.data import DataSection
from orchestrator.storage import Folder

SCRIPT = """
import json, os, resource, signal, sys
from pathlib import Path
from orchestrator.data.preparing import passes
from orchestrator.data.preparing.prepare import prepare
from orchestrator.spec.data import DataSection
from orchestrator.storage import Folder

section, storage, how = DataSection.model_validate_json(sys.argv[1]), sys.argv[2], sys.argv[3]
encode = passes.encode_chunk

def noted(*arguments):
    share = arguments[-1]
    if how == "die" and share.numbered.index == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    with open(f"{storage}.log", "a") as log:
        log.write(f"{share.numbered.index}\\n")
    return encode(*arguments)

passes.encode_chunk = noted
if how.startswith("limit "):
    limit = int(how.split()[1])
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
if how == "wait":
    print("ready", flush=True)
    sys.stdin.readline()
try:
    found = prepare(section, task="auto", seed=0, storage=Folder.at(storage))
except Exception as error:
    print(type(error).__name__, error)
    sys.exit(3)
print(found.folder)
if how == "peak":
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    print(line.split()[1])
"""


def start(section: dict[str, Any], storage: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, json.dumps(section), str(storage), how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    out, err = process.communicate(timeout=120)
    assert process.returncode <= 0 or process.returncode == 3, err
    return process.returncode, out


@pytest.fixture(scope="module")
def section(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A table of about ten chunks."""
    generator = np.random.default_rng(0)
    columns = {f"x{i}": generator.random(8000) for i in range(10)} | {"y": generator.random(8000)}
    file = tmp_path_factory.mktemp("source") / "rows.parquet"
    pq.write_table(pa.table(columns), file, row_group_size=500)
    return {
        "source": {"kind": "parquet", "path": str(file)},
        "target": "y",
        "transforms": [{"kind": "standardize"}],
        "preparation": {"chunk_size": 2**16},
    }


def prepared(
    section: dict[str, Any],
    storage: Folder,
    mapper: Mapper | None = None,
    stop: threading.Event | None = None,
) -> Prepared:
    return prepare(
        DataSection.model_validate(section),
        task="auto",
        seed=0,
        storage=storage,
        mapper=lambda num_chunks: mapper or in_process,
        stop=stop,
    )


def folders(storage: Path) -> list[str]:
    return [path.name for path in (storage / "prepared").iterdir() if path.is_dir()]


def test_a_build_that_is_killed_is_not_taken_for_one(section: dict[str, Any], tmp_path: Path) -> None:
    code, _ = ended(start(section, tmp_path / "runs", "die"))
    assert code == -signal.SIGKILL
    (left,) = folders(tmp_path / "runs")
    assert ".tmp-" in left
    assert sorted(path.name for path in (tmp_path / "runs/prepared" / left).glob("train-*"))[-1] == (
        "train-02000.arrow"
    )
    found = prepared(section, Folder.at(tmp_path / "runs"))
    assert folders(tmp_path / "runs") == [found.folder.name]
    assert sum(found.manifest.rows.values()) == 8000
    assert not (found.folder / "scratch").exists()


def test_of_many_chunks_too_two_processes_build_one(section: dict[str, Any], tmp_path: Path) -> None:
    processes = [start(section, tmp_path / "runs", "wait") for _ in range(2)]
    for process in processes:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    found = [ended(process) for process in processes]
    assert [code for code, _ in found] == [0, 0]
    assert len({out.split()[0] for _, out in found}) == 1
    encoded = [int(line) for line in (tmp_path / "runs.log").read_text().split()]
    assert encoded == sorted(set(encoded))
    assert len(encoded) > 5
    assert len(folders(tmp_path / "runs")) == 1


def test_a_file_that_may_not_grow(section: dict[str, Any], tmp_path: Path) -> None:
    """A file that the system cuts short, as a full disk would."""
    code, out = ended(start(section, tmp_path / "runs", "limit 40000"))
    assert code == 3
    assert out.startswith(f"DataError {tmp_path}/runs/prepared cannot take the prepared data: File too large")
    assert "name another place by storage" in out
    assert folders(tmp_path / "runs") == []
    prepared(section, Folder.at(tmp_path / "runs"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 2 MB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a disk")
    (tmp_path / "disk").mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(tmp_path / "disk")]
    if subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no disk can be mounted here")
    yield tmp_path / "disk"
    subprocess.run(["umount", "--lazy", str(tmp_path / "disk")], check=True)


def test_a_full_disk(section: dict[str, Any], small_disk: Path) -> None:
    small = {"source": {"kind": "linear", "coefficients": [1], "rows": 100}, "target": "y"}
    before = prepared(small, Folder.at(small_disk))
    (small_disk / "others").write_bytes(bytes(1_300_000))
    with pytest.raises(DataError, match=r"No space left on device, \S+ MB are free") as caught:
        prepared(section, Folder.at(small_disk))
    assert caught.value.reason.startswith(f"{small_disk}/prepared cannot take the prepared data")
    assert "orchestrator data gc" in caught.value.mend
    needed = float(caught.value.reason.split("at least ")[1].split()[0]) * 1e6
    assert folders(small_disk) == [before.folder.name]
    (small_disk / "others").unlink()
    found = prepared(section, Folder.at(small_disk))
    assert 0.5 < needed / found.manifest.total_bytes < 5  # what chunks leave each other included


def test_a_storage_that_is_not_shared(section: dict[str, Any], tmp_path: Path) -> None:
    """What a task writes on another machine is not here."""

    def elsewhere(function: Callable[[Any], Any], items: Sequence[Any], label: str) -> Iterator[Any]:
        for item in items:
            yield function(item)
            if label == "encoding":
                for file in (tmp_path / "prepared").glob("*.tmp-*/train-*"):
                    file.unlink()

    def lost(function: Callable[[Any], Any], items: Sequence[Any], label: str) -> Iterator[Any]:
        for item in items:
            yield function(item)
            if label == "cleaning":
                for file in (tmp_path / "prepared").glob("*.tmp-*/scratch/*"):
                    file.unlink()

    for mapper in (elsewhere, lost):
        with pytest.raises(UsageError, match="another machine wrote is not there") as caught:
            prepared(section, Folder.at(tmp_path), mapper)
        assert "data.preparation.by: process" in caught.value.mend
        assert folders(tmp_path) == []


def test_passes_that_are_not_read_to_the_end_are_closed() -> None:
    ends = []

    def mapper(function: Callable[[Any], Any], items: Sequence[Any], label: str) -> Iterator[Any]:
        try:
            yield from map(function, items)
        finally:
            ends.append(label)

    with closing_all(mapper) as run:
        kept = [run(str, [1, 2], name) for name in ("first", "second")]
        assert [next(results) for results in kept] == ["1", "1"]
        assert ends == []
    assert ends == ["second", "first"]


def test_a_pass_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapper_module, "_SAY_EVERY_S", 0.0)
    said: list[str] = []
    assert list(in_process(str, [1, 2], "cleaning", say=said.append)) == ["1", "2"]
    assert said[-1] == "cleaning: 1 of 2 chunks"


@pytest.mark.parametrize("label", ["cleaning", "encoding"])
def test_a_stop_ends_the_build_behind_the_chunk_and_leaves_nothing(
    section: dict[str, Any], tmp_path: Path, label: str
) -> None:
    stop, done = threading.Event(), []

    def stopped(function: Callable[[Any], Any], items: Sequence[Any], what: str) -> Iterator[Any]:
        for item in items:
            yield function(item)
            if what == label:
                done.append(item.index if label == "cleaning" else item.numbered.index)
                if len(done) == 2:
                    stop.set()

    with pytest.raises(KeyboardInterrupt):
        prepared(section, Folder.at(tmp_path), stopped, stop)
    assert done in ([0, 1], [0, 1, 2])  # one that was begun is ended
    assert folders(tmp_path) == []
    prepared(section, Folder.at(tmp_path))


def test_an_error_in_one_thread_stops_the_others() -> None:
    called: list[int] = []

    def call(number: int) -> None:
        if number == 0:
            raise OSError("the first")
        called.append(number)

    with pytest.raises(OSError, match="the first"):
        in_threads(call, range(4_000_000), 2)
    assert len(called) < 2_000_000


def test_a_storage_that_may_not_be_written_to(section: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    place = tmp_path / "locked" if os.geteuid() else Path("/sys/kernel")  # not even root may
    if not place.exists():
        pytest.skip("there is no folder here that this user may not write to")
    with pytest.raises(UsageError, match=f"storage: {place}/below cannot be written: ") as caught:
        prepared(section, Folder.at(place / "below"))
    assert "name another place by storage" in caught.value.mend
    assert prepared(section, Folder.at(tmp_path / "runs")).manifest.rows


def jpegs(root: Path, count: int, corrupt: Sequence[int]) -> list[str]:
    """Two classes of images; the paths of those that are damaged."""
    generator = np.random.default_rng(0)
    damaged = []
    for number in range(count):
        file = root / ("cat", "dog")[number % 2] / f"{number:04d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        buffer = io.BytesIO()
        Image.fromarray(generator.integers(0, 255, (24, 24, 3), dtype=np.uint8)).save(buffer, "JPEG")
        content = buffer.getvalue()
        if number in corrupt:
            damaged.append(f"{file.parent.name}/{file.name}")
            content = (content[: len(content) // 3], b"", b"not an image at all")[len(damaged) % 3]
        file.write_bytes(content)
    return sorted(damaged)


def test_one_percent_of_corrupt_images_are_skipped_and_listed(tmp_path: Path) -> None:
    damaged = jpegs(tmp_path / "set", 300, [7, 100, 255])
    section = {
        "source": {"kind": "image_folder", "path": str(tmp_path / "set")},
        "target": "label",
        "image": {"size": [16, 16]},
        "max_corrupt_share": 0.01,
        "preparation": {"chunk_size": 2**16},
    }
    found = prepared(section, Folder.at(tmp_path))
    assert len(found.manifest.shards_of("train")) > 2
    assert found.manifest.corrupt == 3
    assert found.manifest.rows_read == 300
    assert sum(found.manifest.rows.values()) == 297
    with (found.folder / "corrupt.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [record["path"] for record in listed] == damaged
    assert all(record["reason"] for record in listed)
    names = sorted(f"{path.parent.name}/{path.name}" for path in (tmp_path / "set").glob("*/*.jpg"))
    assert [names[int(record["row"])] for record in listed] == damaged
    rows = np.concatenate([found.part(part).source_rows() for part in found.manifest.rows])
    assert sorted(rows) == [row for row, name in enumerate(names) if name not in damaged]
    with pytest.raises(
        DataError, match=r"3 of 300 images cannot be read.*0\.009: row 50 \(cat/0100"
    ) as caught:
        prepared(section | {"max_corrupt_share": 0.009}, Folder.at(tmp_path))
    assert "allow a share" in caught.value.mend
    assert folders(tmp_path) == [found.folder.name]


MEGABYTES = 300


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of its memory from /proc")
def test_memory_goes_by_the_chunk_and_not_by_the_table(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    schema = pa.schema([(f"x{i}", pa.float64()) for i in range(63)] + [("y", pa.float64())])
    with pq.ParquetWriter(tmp_path / "rows.parquet", schema) as writer:
        for _ in range(MEGABYTES // 2):
            rows = generator.random((64, 2**12))
            writer.write_table(pa.table(list(rows), schema=schema), row_group_size=2**12)
    assert (tmp_path / "rows.parquet").stat().st_size > 0.9 * MEGABYTES * 2**20
    section = {
        "source": {"kind": "parquet", "path": str(tmp_path / "rows.parquet")},
        "target": "y",
        "transforms": [{"kind": "standardize"}],
        "preparation": {"chunk_size": 2 * 2**20},
    }
    small = {"source": {"kind": "linear", "coefficients": [1] * 63, "rows": 1000}, "target": "y"}
    peaks_kb = []
    for wanted in (small, section):
        code, out = ended(start(wanted, tmp_path / "runs", "peak"))
        assert code == 0, out
        peaks_kb.append(int(out.split()[1]))
    # Of every row its part, its target and its number stay here; of all rows a sample.
    assert (peaks_kb[1] - peaks_kb[0]) / 1024 < 0.6 * MEGABYTES
