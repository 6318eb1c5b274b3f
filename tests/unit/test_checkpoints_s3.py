"""Checkpoints in a bucket, and a storage that is gone for a moment."""

from __future__ import annotations

import io
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from orchestrator.checkpoints.manifest import STATE
from orchestrator.checkpoints.patience import can_pass, patiently
from orchestrator.checkpoints.saver import Part, Saver
from orchestrator.checkpoints.store import CheckpointStore
from orchestrator.checkpoints.tensors import dump_state, parse_state
from orchestrator.errors import CheckpointError
from orchestrator.storage import Folder
from tests.unit.s3_case import ACCOUNT, s3_server


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with s3_server() as address:
        yield address


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Folder:
    for name, value in ACCOUNT.items():
        monkeypatch.setenv(name, value)
    place = Folder.at(
        f"s3://runs/checkpoints?endpoint_override={server}&scheme=http&allow_bucket_creation=true"
    )
    return place.create()


def test_saved_listed_damaged_and_pruned_in_a_bucket(bucket: Folder) -> None:
    store = CheckpointStore(bucket)
    attempt = store.begin_attempt()
    saver = Saver(store, attempt=attempt)
    weight = torch.arange(3_000_000, dtype=torch.float32)  # more than one part of an upload
    for step in (1, 2, 3):
        saver.save([Part(STATE, {"weight": weight + step}, dump_state)], step=step, epoch=0, metrics={})
    saver.finish()
    assert [manifest.step for manifest in store.manifests()] == [2, 3]
    assert store.damages() == {"step-000000002": [], "step-000000003": []}
    place = bucket / "step-000000003"
    data = place.read_bytes(STATE)
    assert torch.equal(parse_state(data)["weight"], weight + 3)
    place.write_bytes(STATE, data[: len(data) // 2])  # half an upload
    found = store.load_newest()
    assert found is not None
    assert found[0].step == 2
    assert torch.equal(found[1]["weight"], weight + 2)
    place.remove_file(STATE)
    assert store.damages()["step-000000003"] == ["state.pt: it is missing"]
    place.remove_file("manifest.json")
    (bucket / "step-000000004").write_bytes(STATE, data)
    assert store.uncommitted() == ["step-000000003", "step-000000004"]
    store.sweep(store.begin_attempt())
    assert [folder.path.rpartition("/")[2] for folder in bucket.folders()] == ["step-000000002"]
    with pytest.raises(CheckpointError, match="a newer attempt has begun"):
        _finish_late(saver)
    assert [manifest.step for manifest in store.manifests()] == [2]


def _finish_late(saver: Saver) -> None:
    saver.save([Part(STATE, {}, dump_state)], step=9, epoch=0, metrics={})
    saver.finish()


def test_a_storage_that_comes_back_is_waited_for(tmp_path: Path) -> None:
    """A server that nobody hears at first: the first tries are refused by the machine itself."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    pauses: list[float] = []

    def ask() -> str:
        try:
            socket.create_connection(listener.getsockname(), timeout=5).close()
        except ConnectionRefusedError as error:
            raise OSError(error.errno, "no answer") from error
        return "heard"

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 2:
            listener.listen()

    with listener:
        assert patiently(ask, "asking", (1.0, 2.0, 4.0), pause=pause) == "heard"
    assert pauses == [1.0, 2.0]


def test_what_will_not_pass_is_not_tried_again(tmp_path: Path) -> None:
    def never(seconds: float) -> None:
        pytest.fail("it waited")

    folder = Folder.at(tmp_path)
    with pytest.raises(FileNotFoundError):
        patiently(lambda: folder.read_bytes("nothing"), "reading", pause=never)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="Not a directory"):
        patiently(lambda: (folder / "file").read_bytes("below"), "reading", pause=never)
    assert can_pass(OSError("AWS Error NETWORK_CONNECTION during PutObject"))
    assert can_pass(OSError(110, "Connection timed out"))
    assert not can_pass(OSError("AWS Error ACCESS_DENIED during PutObject"))
    assert not can_pass(OSError(28, "No space left on device"))
    assert not can_pass(OSError(30, "Read-only file system"))
    assert can_pass(
        OSError(30, "Opening HDFS file '/runs/a' failed. Detail: [errno 30] Read-only file system")
    )


def test_a_bucket_that_is_gone_says_nothing_about_its_checkpoints(bucket: Folder) -> None:
    """An unreadable newest checkpoint is no damaged one: to fall back to an older one would throw work away."""
    store = CheckpointStore(bucket / "other", pauses_s=())
    saver = Saver(store)
    saver.save([Part(STATE, {}, dump_state)], step=1, epoch=0, metrics={})
    saver.finish()
    (manifest,) = store.manifests()
    with socket.socket() as silent:  # bound, but not listening: connections are refused
        silent.bind(("127.0.0.1", 0))
        uri = f"s3://runs/checkpoints/other?endpoint_override=127.0.0.1:{silent.getsockname()[1]}&scheme=http"
        gone = CheckpointStore(Folder.at(uri), pauses_s=())
        with pytest.raises(OSError, match=r"(?i)connect"):
            gone.read(manifest, STATE)


def test_the_writer_holds_no_second_copy() -> None:
    """What torch writes goes on in bounded pieces."""
    sizes: list[int] = []

    class File(io.BytesIO):
        def write(self, data: object) -> int:  # type: ignore[override]
            sizes.append(memoryview(data).nbytes)  # type: ignore[arg-type]
            return sizes[-1]

    from orchestrator.checkpoints.files import CHUNK_BYTES, HashingSink

    sink = HashingSink(File(), lambda: None)
    dump_state({"weight": torch.zeros(5_000_000)}, sink)
    assert max(sizes) == CHUNK_BYTES
    assert sum(sizes) == sink.facts.size_bytes > 20_000_000
