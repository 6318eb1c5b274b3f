"""A checkpoint that is given to another run: there it is the same to the bit, alone, and never half."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoints import hand_over as hand_over_file
from orchestrator.checkpoints.hand_over import hand_over
from orchestrator.checkpoints.manifest import STATE, Manifest
from orchestrator.checkpoints.saver import Part, Saver
from orchestrator.checkpoints.store import CheckpointStore
from orchestrator.checkpoints.tensors import dump_state
from orchestrator.errors import CheckpointError
from orchestrator.storage import Folder
from tests.unit.test_checkpoints_shard_files import saved_by_two

FILES = ("rank-00000.safetensors", "rank-00001.safetensors", STATE, "manifest.json")
"""In the order in which they are written."""


def hashes(folder: Path) -> dict[str, str]:
    """Of all files in a run's checkpoints, but for the number of its attempt."""
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file() and file.name != "attempt.json"
    }


def save(store: CheckpointStore, step: int) -> None:
    saver = Saver(store, asynchronous=False)
    saver.save([Part(STATE, {"weight": torch.full((3,), -1.0)}, dump_state)], step=step, epoch=0, metrics={})


@pytest.fixture
def source(tmp_path: Path) -> CheckpointStore:
    store = CheckpointStore(Folder.at(tmp_path / "source"))
    store.begin_attempt()
    return store


@pytest.fixture
def given(source: CheckpointStore) -> Manifest:
    """A sharded checkpoint of step 1."""
    return saved_by_two(source)


@pytest.fixture
def target(tmp_path: Path) -> CheckpointStore:
    """With an older and a newer checkpoint, one of the same step, and one that was never committed."""
    store = CheckpointStore(Folder.at(tmp_path / "target"))
    store.begin_attempt()
    for step in (1, 7):
        save(store, step)
    Folder.at(tmp_path / "target" / "step-000000009").write_bytes(STATE, b"half")
    return store


def test_the_target_has_exactly_that_checkpoint(
    tmp_path: Path, source: CheckpointStore, given: Manifest, target: CheckpointStore
) -> None:
    save(source, 5)
    before = hashes(tmp_path / "source")
    hand_over(source, given, target)
    wanted = {name: hash_ for name, hash_ in before.items() if name.startswith("step-000000001/")}
    assert {Path(name).name for name in wanted} == set(FILES)
    assert hashes(tmp_path / "target") == wanted
    assert hashes(tmp_path / "source") == before
    assert target.manifests() == [given]
    assert [place.name for place in (tmp_path / "target").iterdir() if place.is_dir()] == [given.name]


def test_a_run_goes_on_from_it(source: CheckpointStore, given: Manifest, target: CheckpointStore) -> None:
    """The source's attempts, which are more, fence nobody of the target."""
    for _ in range(3):
        source.begin_attempt()
    hand_over(source, given, target)
    assert target.begin_attempt() == 2
    target.sweep(2)
    newest = target.load_newest()
    assert newest is not None
    manifest, state = newest
    rows = target.rows(manifest)({"model/weight": (0, 5)})
    assert bytes(rows["model/weight"]) == torch.arange(15.0).numpy().tobytes()
    assert torch.equal(state["model"]["mean"], torch.full((3,), 7.0))


@pytest.mark.parametrize("file", FILES[:-1])
@pytest.mark.parametrize("damage", ["flipped", "missing"])
def test_a_damaged_checkpoint_is_refused_and_nothing_is_lost(
    tmp_path: Path, source: CheckpointStore, given: Manifest, target: CheckpointStore, file: str, damage: str
) -> None:
    place = tmp_path / "source" / given.name / file
    content = bytearray(place.read_bytes())
    content[-1] ^= 1
    place.unlink()
    if damage == "flipped":
        place.write_bytes(content)
    before = hashes(tmp_path / "target")
    with pytest.raises(CheckpointError, match=f"step-000000001 is damaged: {file}"):
        hand_over(source, given, target)
    assert hashes(tmp_path / "target") == before


def test_what_is_written_wrongly_never_becomes_a_checkpoint(
    source: CheckpointStore, given: Manifest, target: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def flip(content: bytes, sink: Any) -> None:
        sink.write(content[:-1] + bytes([content[-1] ^ 1]))

    monkeypatch.setattr(hand_over_file, "_all", flip)
    with pytest.raises(CheckpointError, match=f"{FILES[0]} of .* was not written as it was read"):
        hand_over(source, given, target)
    assert target.manifests() == []


class PowerCut(BaseException):
    """Nothing of ours may catch it."""


def cut_at(monkeypatch: pytest.MonkeyPatch, place: Any, name: str, call: int, *, half: bool) -> None:
    """Break off in the call of this number: before it, or after it did half."""
    original: Callable[..., Any] = getattr(place, name)
    calls = []

    def broken(*args: Any, **named: Any) -> Any:
        calls.append(args)
        if len(calls) == call:
            if half and name == "write_file":
                Folder.at(args[0].local_path()).write_bytes(args[1], b"half")
            elif half:
                original(*args, **named)
            raise PowerCut
        return original(*args, **named)

    monkeypatch.setattr(place, name, broken)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(
    ("place", "name", "call"),
    [(CheckpointStore, "discard", 1), (CheckpointStore, "discard", 3)]
    + [(hand_over_file, "write_file", number) for number in range(1, len(FILES))],
    ids=["first removed", "last removed", *FILES[:-1]],
)
def test_it_can_be_done_again_after_it_was_broken_off(
    tmp_path: Path,
    source: CheckpointStore,
    given: Manifest,
    target: CheckpointStore,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
    call: int,
    half: bool,
) -> None:
    with monkeypatch.context() as patch:
        cut_at(patch, place, name, call, half=half)
        with pytest.raises(PowerCut):
            hand_over(source, given, target)
    assert given not in target.manifests()
    assert [target.verify(manifest) for manifest in target.manifests() if target.verify(manifest)] == []
    for _ in range(2):
        hand_over(source, given, target)
        assert hashes(tmp_path / "target") == {
            name: hash_ for name, hash_ in hashes(tmp_path / "source").items() if given.name in name
        }
