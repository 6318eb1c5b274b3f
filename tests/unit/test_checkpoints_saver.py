"""Saving beside the training: of which moment, by whom committed, and what happens where it fails."""

from __future__ import annotations

import errno
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoints.files import Sink
from orchestrator.checkpoints.manifest import STATE, rank_file
from orchestrator.checkpoints.retention import Retention
from orchestrator.checkpoints.saver import MAX_FAILURES, Part, Saver
from orchestrator.checkpoints.store import CheckpointStore
from orchestrator.checkpoints.tensors import HostCopies, dump_state
from orchestrator.errors import CheckpointError
from orchestrator.storage import Folder


def _store(path: Path) -> CheckpointStore:
    return CheckpointStore(Folder.at(path), pauses_s=())


def _parts(state: dict[str, Any]) -> list[Part]:
    return [Part(STATE, state, dump_state)]


class Gate:
    """Writes a state once it is opened: a slow disk."""

    def __init__(self) -> None:
        self.reached, self.open = threading.Event(), threading.Event()

    def dump(self, state: Any, sink: Sink) -> None:
        self.reached.set()
        assert self.open.wait(30)
        dump_state(state, sink)


def test_the_state_of_the_save_is_written_not_a_later_one(tmp_path: Path) -> None:
    store, gate, state = _store(tmp_path), Gate(), {"weight": torch.zeros(1000), "list": [1]}
    saver = Saver(store)
    saver.save([Part(STATE, state, gate.dump)], step=1, epoch=0, metrics={})
    assert gate.reached.wait(30)
    state["weight"].fill_(9)
    state["list"].append(2)
    assert store.manifests() == []  # training goes on, and the checkpoint does not exist yet
    gate.open.set()
    saver.finish()
    found = store.load_newest()
    assert found is not None
    assert torch.equal(found[1]["weight"], torch.zeros(1000))
    assert found[1]["list"] == [1]
    assert saver.saved_step == 1
    (saved,) = saver.take_saved()
    assert saved.size_bytes == (tmp_path / "step-000000001" / STATE).stat().st_size
    assert 0 < saved.stall_s <= saved.seconds


def test_a_save_waits_for_the_one_before_it(tmp_path: Path) -> None:
    store, gate = _store(tmp_path), Gate()
    saver = Saver(store)
    saver.save([Part(STATE, {"a": 1}, gate.dump)], step=1, epoch=0, metrics={})
    threading.Timer(0.1, gate.open.set).start()
    saver.save(_parts({"a": 2}), step=2, epoch=0, metrics={})
    saver.finish()
    assert [manifest.step for manifest in store.manifests()] == [1, 2]
    assert [saved.step for saved in saver.take_saved()] == [1, 2]
    assert saver.take_saved() == []


@pytest.mark.parametrize("asynchronous", [True, False])
def test_ranks_write_their_own_files_and_rank_0_commits_them(tmp_path: Path, asynchronous: bool) -> None:
    store, ranks = _store(tmp_path), range(4)
    savers = [Saver(store, rank=rank, world_size=4, asynchronous=asynchronous) for rank in ranks]

    def save(rank: int, step: int) -> None:
        parts = _parts({"all": step}) if rank == 0 else []
        if rank != 1:  # which has nothing of its own
            parts.append(Part(rank_file(rank), {"rank": rank, "step": step}, dump_state))
        savers[rank].save(parts, step=step, epoch=0, metrics={}, others=[2, 3])

    for step in (1, 2, 2):  # the same step again: its old files do not count
        savers[0].wait()
        threads = [threading.Thread(target=save, args=(rank, step)) for rank in reversed(ranks)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for saver in savers:
        saver.finish()
    newest = store.manifests()[-1]
    assert newest.world_size == 4
    assert set(newest.files) == {STATE, "rank-00000.pt", "rank-00002.pt", "rank-00003.pt"}
    assert store.verify(newest) == []
    assert sorted(path.name for path in (tmp_path / newest.name).iterdir()) == sorted(
        [*newest.files, "manifest.json"]
    )
    (tmp_path / newest.name / "rank-00003.pt").unlink()
    assert store.verify(newest) == ["rank-00003.pt: it is missing"]
    found = store.load_newest()
    assert found is not None
    assert found[0].step == 1


def test_a_rank_that_cannot_write_fails_the_checkpoint(tmp_path: Path) -> None:
    notices: list[str] = []
    store = _store(tmp_path)
    lead, other = Saver(store, world_size=2, notice=notices.append), Saver(store, rank=1, world_size=2)

    def fails(state: Any, sink: Sink) -> None:
        raise OSError(5, "the disk of rank 1 is broken")

    other.save([Part(rank_file(1), {}, fails)], step=1, epoch=0, metrics={}, others=[1])
    lead.save(_parts({}), step=1, epoch=0, metrics={}, others=[1])
    other.wait()
    with pytest.raises(CheckpointError, match=r"rank 1 could not write its part: .*broken"):
        lead.finish()
    assert notices == []  # training does not go on after the last one
    assert store.manifests() == []


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_a_full_disk_leaves_no_half_and_the_next_save_tries_again(tmp_path: Path) -> None:
    notices: list[str] = []
    store = _store(tmp_path)
    saver = Saver(store, notice=notices.append)
    saver.save(_parts({"weight": torch.ones(10)}), step=1, epoch=0, metrics={})
    saver.wait()
    _fill_disk(tmp_path, step=2)
    saver.save(_parts({"weight": torch.ones(100_000)}), step=2, epoch=0, metrics={})
    saver.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001"]
    assert "No space left" in notices[0]
    assert "needs some 400,000 bytes, and " in notices[0]
    assert "training goes on" in notices[0]
    saver.save(_parts({"weight": torch.ones(10)}), step=3, epoch=0, metrics={})
    saver.finish()
    assert [manifest.step for manifest in store.manifests()] == [1, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is Linux's")
def test_too_many_failures_or_a_failed_last_save_end_the_run(tmp_path: Path) -> None:
    notices: list[str] = []
    saver = Saver(_store(tmp_path), notice=notices.append)
    for step in range(1, MAX_FAILURES + 1):
        _fill_disk(tmp_path, step)
        saver.save(_parts({"weight": torch.ones(10)}), step=step, epoch=0, metrics={})
    with pytest.raises(CheckpointError, match="No space left") as failure:
        saver.wait()
    assert failure.value.cause == "hardware"
    assert "make room" in failure.value.mend
    assert len(notices) == MAX_FAILURES - 1
    last = Saver(_store(tmp_path))
    _fill_disk(tmp_path, step=9)
    last.save(_parts({"weight": torch.ones(10)}), step=9, epoch=0, metrics={})
    with pytest.raises(CheckpointError, match="step-000000009"):
        last.finish()


def _fill_disk(folder: Path, step: int) -> None:
    """The file that the save of this step is written into takes nothing."""
    place = folder / f"step-{step:09d}"
    place.mkdir(parents=True)
    (place / f".{STATE}.tmp-1").symlink_to("/dev/full")


@pytest.mark.parametrize("asynchronous", [True, False])
def test_a_worker_that_was_believed_dead_changes_nothing(tmp_path: Path, asynchronous: bool) -> None:
    store = _store(tmp_path)
    old = Saver(store, attempt=store.begin_attempt(), asynchronous=asynchronous)
    new = Saver(store, attempt=store.begin_attempt())
    new.save(_parts({"by": "new"}), step=1, epoch=0, metrics={})
    new.finish()

    def save(step: int) -> None:
        old.save(_parts({"by": "old"}), step=step, epoch=0, metrics={})
        old.wait()

    for step in (1, 2):
        with pytest.raises(CheckpointError, match="a newer attempt has begun"):
            save(step)
    (manifest,) = store.manifests()
    assert store.verify(manifest) == []
    assert store.load(manifest) == {"by": "new"}


def test_what_user_code_breaks_is_not_taken_for_the_storage(tmp_path: Path) -> None:
    saver = Saver(_store(tmp_path))
    saver.save(_parts({"lambda": lambda: 1}), step=1, epoch=0, metrics={})
    with pytest.raises(Exception, match=r"pickle|lambda"):
        saver.wait()
    assert list(tmp_path.glob("step-*")) == []


def test_a_closed_saver_leaves_no_thread_and_no_checkpoint(tmp_path: Path) -> None:
    store, gate = _store(tmp_path), Gate()
    saver = Saver(store)

    def dump(state: Any, sink: Sink) -> None:
        sink.write(b"first")
        gate.reached.set()
        assert gate.open.wait(30)
        sink.write(b"second")

    saver.save([Part(STATE, {}, dump)], step=1, epoch=0, metrics={})
    assert gate.reached.wait(30)
    threading.Timer(0.2, gate.open.set).start()
    saver.close(timeout_s=0.01)
    saver.close()
    assert not saver.busy
    assert list(tmp_path.glob("step-*")) == []


def test_without_memory_for_a_copy_training_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(copies: HostCopies, size_bytes: int, pinned: bool) -> None:
        raise MemoryError("no memory")

    monkeypatch.setattr(HostCopies, "_make_room", full)
    notices: list[str] = []
    saver = Saver(_store(tmp_path), notice=notices.append)
    saver.reserve(_parts({"weight": torch.ones(3)}))
    for step in (1, 2):
        saver.save(_parts({"weight": torch.ones(3)}), step=step, epoch=0, metrics={})
        assert not saver.busy
        assert saver.saved_step == step
    assert len(notices) == 1


def test_no_wait_counts_twice(tmp_path: Path) -> None:
    saver, gate = Saver(_store(tmp_path)), Gate()
    began_s = time.perf_counter()
    saver.save([Part(STATE, {"a": 1}, gate.dump)], step=1, epoch=0, metrics={})
    threading.Timer(0.2, gate.open.set).start()
    second_s = time.perf_counter()
    saver.wait()
    saver.save(_parts({"a": 2}), step=2, epoch=0, metrics={}, began_s=second_s)
    saver.finish()
    assert 0 < saver.stall_s <= time.perf_counter() - began_s
    _, second = saver.take_saved()
    assert second.stall_s <= saver.stall_s


def test_a_checkpoint_stays_committed_where_old_ones_cannot_be_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(folder: Folder) -> None:
        raise OSError(errno.EBUSY, "Device or resource busy")

    store = CheckpointStore(Folder.at(tmp_path), Retention(last=1), pauses_s=())
    saver = Saver(store)
    for step in (1, 2):
        saver.save(_parts({}), step=step, epoch=0, metrics={})
        saver.finish()
        monkeypatch.setattr(Folder, "remove", busy)
    assert [manifest.step for manifest in store.manifests()] == [2]
    assert (tmp_path / "step-000000001" / STATE).exists()
    monkeypatch.undo()
    saver.save(_parts({}), step=3, epoch=0, metrics={})
    saver.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000003"]
