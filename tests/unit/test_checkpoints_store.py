"""Checkpoints: what is damaged is found before use, what is newest and best is kept, stale writers are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoints.manifest import STATE
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


DAMAGE = {
    "bit flip": lambda data: data[:50] + bytes([data[50] ^ 1]) + data[51:],
    "truncated": lambda data: data[:-100],
    "empty": lambda data: b"",
}


@pytest.mark.parametrize("kind", [*DAMAGE, "missing"])
def test_a_damaged_checkpoint_is_passed_over(
    tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    store = _store(tmp_path)
    _save(store, 1)
    newest = tmp_path / _save(store, 2) / "state.pt"
    if kind == "missing":
        newest.unlink()
    else:
        newest.write_bytes(DAMAGE[kind](newest.read_bytes()))
    found = store.load_newest()
    assert found is not None
    assert found[0].step == 1
    assert torch.equal(found[1]["weight"], torch.ones(3))
    assert "step-000000002" in caplog.text


@pytest.mark.parametrize("content", [b"", b"{", b'{"step": 2}', b"\xff\xfe"])
def test_a_damaged_manifest_is_passed_over(tmp_path: Path, content: bytes) -> None:
    store = _store(tmp_path)
    _save(store, 1)
    (tmp_path / _save(store, 2) / "manifest.json").write_bytes(content)
    found = store.load_newest()
    assert found is not None
    assert found[0].step == 1


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


def test_reading_never_unpickles_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return eval, ("__import__('os').mkdir('/nonexistent/evil')",)

    store = _store(tmp_path)
    _save_state(store, {"evil": Evil()}, 1, {})
    with pytest.raises(CheckpointError, match="damaged"):
        store.load_newest()
