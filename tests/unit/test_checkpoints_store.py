"""Checkpoints: what is damaged is found before use, what is newest and best is kept, stale writers are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoints.manifest import STATE, Manifest
from orchestrator.checkpoints.retention import Retention
from orchestrator.checkpoints.saver import Part, Saver
from orchestrator.checkpoints.store import CheckpointStore
from orchestrator.checkpoints.tensors import dump_state
from orchestrator.errors import CheckpointError
from orchestrator.storage import Folder


def _store(path: Path, **policy: Any) -> CheckpointStore:
    return CheckpointStore(Folder.at(path), Retention(**policy))


def _save(store: CheckpointStore, step: int, loss: float | None = None, attempt: int = 1) -> str:
    metrics = {} if loss is None else {"val/loss": loss}
    return _save_state(store, {"weight": torch.full((3,), float(step))}, step, metrics, attempt)


def _save_state(
    store: CheckpointStore, state: dict[str, Any], step: int, metrics: dict[str, float], attempt: int = 1
) -> str:
    saver = Saver(store, attempt=attempt, asynchronous=False)
    saver.save([Part(STATE, state, dump_state)], step=step, epoch=0, metrics=metrics)
    saver.finish()
    return f"step-{step:09d}"


def test_newest_and_best_are_kept(tmp_path: Path) -> None:
    store = _store(tmp_path, last=2)
    for step, loss in [(1, 0.5), (2, 0.1), (3, 0.3), (4, 0.4), (5, 0.2)]:
        _save(store, step, loss)
    assert [manifest.step for manifest in store.manifests()] == [2, 4, 5]
    best = store.best()
    assert best is not None
    assert best.step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-000000002",
        "step-000000004",
        "step-000000005",
    ]


def test_best_by_a_metric_to_be_high_and_nan_never_best(tmp_path: Path) -> None:
    store = _store(tmp_path, last=9, score_attribute="val/accuracy", score_order="max")
    for step, value in [(1, 0.5), (2, float("nan")), (3, 0.9), (4, 0.7)]:
        _save_state(store, {}, step, {"val/accuracy": value})
    best = store.best()
    assert best is not None
    assert best.step == 3


def _flipped(data: bytes, at: float) -> bytes:
    place = int(at * (len(data) - 1))
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


DAMAGE = {
    "bit flip": lambda data: _flipped(data, 0.5),
    "bit flip at the end": lambda data: _flipped(data, 1.0),
    "truncated": lambda data: data[:-1],
    "empty": lambda data: b"",
    "longer": lambda data: data + b"x",
    "missing": None,
}
FILES = (STATE, "rank-00001.pt", "manifest.json")


def _save_with_rank(store: CheckpointStore, step: int) -> Path:
    parts = [Part(STATE, {"weight": torch.full((100,), float(step))}, dump_state)]
    saver = Saver(store, asynchronous=False)
    saver.save([*parts, Part("rank-00001.pt", {"step": step}, dump_state)], step=step, epoch=0, metrics={})
    return store.folder.local_path() / f"step-{step:09d}"


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found_reported_and_passed_over(
    tmp_path: Path, kind: str, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = _store(tmp_path)
    _save_with_rank(store, 1)
    damaged = _save_with_rank(store, 2) / file
    damage = DAMAGE[kind]
    if damage is None:
        damaged.unlink()
    else:
        damaged.write_bytes(damage(damaged.read_bytes()))
    found = store.damages()
    assert found["step-000000001"] == []
    (line,) = found["step-000000002"]
    assert line.startswith(f"{file}: ")
    newest = store.load_newest()
    assert newest is not None
    assert newest[0].step == 1
    assert torch.equal(newest[1]["weight"], torch.ones(100))
    assert (kind, file) == ("missing", "manifest.json") or "step-000000002" in caplog.text
    # Training goes on from step 1, and what it saves then counts.
    _save_with_rank(store, 2)
    assert store.damages() == {"step-000000001": [], "step-000000002": []}


def test_every_bit_of_a_manifest_counts(tmp_path: Path) -> None:
    store = _store(tmp_path)
    _save(store, 1, 0.25)
    file = tmp_path / "step-000000001" / "manifest.json"
    data = file.read_bytes()
    for place in range(len(data)):
        file.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        assert isinstance(store.find("step-000000001"), str), place


def test_a_damaged_checkpoint_does_not_take_the_place_of_a_good_one(tmp_path: Path) -> None:
    store = _store(tmp_path, last=1)
    _save(store, 100)
    (tmp_path / _save(_store(tmp_path, last=2), 200) / STATE).write_bytes(b"x")
    _save(store, 150)  # by an attempt that went on from 100
    assert [manifest.step for manifest in store.manifests()] == [150]


def test_what_interrupted_saves_left_is_swept_by_the_next_attempt(tmp_path: Path) -> None:
    store = _store(tmp_path)
    _save(store, 1)
    (tmp_path / "step-000000001" / ".state.pt.tmp-1").write_bytes(b"half")
    (tmp_path / ".attempt.json.abc").write_bytes(b"half")
    half = tmp_path / "step-000000002"
    half.mkdir()
    for name in (".state.pt.tmp-1", "rank-00001.pt", "rank-00001.json", ".manifest.json.tmp"):
        (half / name).write_bytes(b"half")
    assert store.uncommitted() == ["step-000000002"]
    store.sweep(store.begin_attempt())
    left = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["attempt.json", "step-000000001/manifest.json", "step-000000001/state.pt"]


def test_a_save_in_progress_is_no_damage(tmp_path: Path) -> None:
    store = _store(tmp_path)
    for name in ("step-000000001", "step-000000003"):
        (tmp_path / name).mkdir()
    _save(_store(tmp_path, last=9), 2)
    (tmp_path / "step-000000001").mkdir()
    (tmp_path / "step-000000003").mkdir()
    assert list(store.damages(in_use=True)) == ["step-000000001", "step-000000002"]
    assert list(store.damages()) == ["step-000000001", "step-000000002", "step-000000003"]


def test_pruning_by_hand_leaves_the_newest_that_is_whole(tmp_path: Path) -> None:
    store = _store(tmp_path, last=9)
    for step, loss in [(1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4)]:
        _save(store, step, loss)
    (tmp_path / "step-000000004" / STATE).write_bytes(b"")
    (tmp_path / "step-000000003" / STATE).unlink()
    for policy, goes in (({"last": 0, "best": 0}, [1, 3, 4]), ({"last": 1, "best": 1}, [3])):
        assert [manifest.step for manifest in _store(tmp_path, **policy).superfluous()] == goes


def test_all_damaged_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    store = _store(tmp_path)
    (tmp_path / _save(store, 1) / "state.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="--fresh"):
        store.load_newest()


def test_an_uncommitted_checkpoint_does_not_exist_and_is_swept(tmp_path: Path) -> None:
    store = _store(tmp_path)
    assert store.load_newest() is None
    (tmp_path / "step-000000003").mkdir()
    (tmp_path / "step-000000003" / "state.pt").write_bytes(b"half")
    assert store.load_newest() is None
    _save(store, 4)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000004"]


def test_a_stale_attempt_may_not_commit(tmp_path: Path) -> None:
    store = _store(tmp_path)
    old = store.begin_attempt()
    _save(store, 1, attempt=old)
    new = store.begin_attempt()
    assert new == old + 1
    with pytest.raises(CheckpointError, match=r"attempt 1 may not commit .* a newer attempt has begun"):
        _save(store, 2, attempt=old)
    assert [manifest.step for manifest in store.manifests()] == [1]
    _save(store, 2, attempt=new)


def test_an_attempt_that_was_cut_off_before_it_began_does_not_shut_out_its_successor(tmp_path: Path) -> None:
    store = _store(tmp_path)
    assert store.begin_attempt(1) == 1
    assert store.begin_attempt(3) == 3  # 2 was given away, and is believed dead
    (tmp_path / "step-000000001").mkdir()  # being saved by attempt 3
    with pytest.raises(CheckpointError, match="attempt 2 may not begin: a newer attempt has begun"):
        store.begin_attempt(2)
    with pytest.raises(CheckpointError, match="attempt 2 may not sweep: a newer attempt has begun"):
        store.sweep(2)
    assert store.uncommitted() == ["step-000000001"]
    _save(store, 2, attempt=3)
    assert store.last_attempt() == 3


def test_a_worker_that_froze_in_the_middle_of_a_commit_prunes_nothing(tmp_path: Path) -> None:
    class Freezing(CheckpointStore):
        def _prune(
            self, newest: Manifest
        ) -> None:  # all that comes after the commit happens when others are at work
            successor = _store(tmp_path, last=1)
            for step in (2, 3):
                _save(successor, step, attempt=successor.begin_attempt())
            super()._prune(newest)

    store = Freezing(Folder.at(tmp_path), Retention(last=1))
    with pytest.raises(CheckpointError, match="attempt 1 may not prune"):
        _save(store, 1, attempt=store.begin_attempt())
    assert [manifest.step for manifest in store.manifests()] == [3]


def test_reading_never_unpickles_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, ("__import__('os').mkdir('/nonexistent/evil')",)

    store = _store(tmp_path)
    _save_state(store, {"evil": Evil()}, 1, {})
    with pytest.raises(CheckpointError, match="damaged"):
        store.load_newest()
