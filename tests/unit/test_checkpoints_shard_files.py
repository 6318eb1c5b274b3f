"""The ranks' files of tensors: any reader of safetensors reads them, and any rows are found again."""

from __future__ import annotations

import functools
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
from hypothesis import given

from orchestrator.checkpoints.export import export_weights
from orchestrator.checkpoints.manifest import STATE, Manifest, rank_file
from orchestrator.checkpoints.saver import Part, Saver
from orchestrator.checkpoints.shard_files import pieces_of, read_rows
from orchestrator.checkpoints.sharded import Shard, dump_rows, whole
from orchestrator.checkpoints.store import CheckpointStore
from orchestrator.checkpoints.tensors import dump_state
from orchestrator.errors import CheckpointError, UsageError
from orchestrator.models.init_from import read_weights
from orchestrator.storage import Folder

WHOLE = {
    "model/weight": torch.randn(7, 3),
    "model/half": torch.randn(5, 2, 2).to(torch.bfloat16),
    "optimizer/state/0/flags": torch.arange(9) % 2 == 0,
}


def spread(folder: Folder, tensors: Mapping[str, torch.Tensor], num_ranks: int) -> list[str]:
    """Write the tensors as so many ranks would, cut as `torch.chunk` cuts; the files' names."""
    names = []
    for rank in range(num_ranks):
        shards = {}
        for name, tensor in tensors.items():
            each = -(-len(tensor) // num_ranks)
            rows = tensor[rank * each : (rank + 1) * each]
            if len(rows):
                shards[name] = Shard(rows, tuple(tensor.shape), rank * each)
        file = io.BytesIO()
        dump_rows(shards)({name: shard.rows for name, shard in shards.items()}, file)
        names.append(f"rank-{rank:05d}.safetensors")
        folder.write_bytes(names[-1], file.getvalue())
    return names


def test_other_readers_of_the_format_read_them(tmp_path: Path) -> None:
    spread(Folder.at(tmp_path), WHOLE, 2)
    found = [safetensors.torch.load_file(tmp_path / f"rank-{rank:05d}.safetensors") for rank in range(2)]
    for name, tensor in WHOLE.items():
        assert torch.equal(torch.cat([one[name] for one in found]), tensor)


@pytest.mark.parametrize("num_ranks", [1, 2, 5])
def test_outlines_become_whole_again(tmp_path: Path, num_ranks: int) -> None:
    """Also of tensors of fewer rows than there are ranks, of none, and what is no tensor stays."""
    folder = Folder.at(tmp_path)
    state = {
        "model": {"weight": WHOLE["model/weight"], "half": WHOLE["model/half"], "empty": torch.empty(0, 3)},
        "optimizer": {"state": {0: {"flags": WHOLE["optimizer/state/0/flags"], "step": torch.tensor(3.0)}}},
        "epoch": 2,
        "groups": [{"lr": 0.1}],
    }
    outline: dict[str, Any] = {
        "model": {name: tensor.to("meta") for name, tensor in state["model"].items()},
        "optimizer": {"state": {0: {"flags": WHOLE["optimizer/state/0/flags"].to("meta")}}},
        "epoch": 2,
        "groups": [{"lr": 0.1}],
    }
    outline["optimizer"]["state"][0]["step"] = torch.tensor(3.0)
    pieces = pieces_of(folder, spread(folder, WHOLE, num_ranks))
    found = whole(outline, functools.partial(read_rows, folder, pieces))
    torch.testing.assert_close(found, state, rtol=0, atol=0)


@given(data=st.data(), num_rows=st.integers(1, 20), columns=st.integers(1, 3), num_ranks=st.integers(1, 6))
def test_any_rows_of_any_number_of_ranks(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, num_rows: int, columns: int, num_ranks: int
) -> None:
    tensors = {"a": torch.randn(num_rows, columns), "b": torch.randn(num_rows + 1)}
    folder = Folder.at(tmp_path_factory.mktemp("rows"))
    pieces = pieces_of(folder, spread(folder, tensors, num_ranks))
    wanted = {}
    for name, tensor in tensors.items():
        first = data.draw(st.integers(0, len(tensor) - 1))
        wanted[name] = (first, data.draw(st.integers(first + 1, len(tensor))))
    found = read_rows(folder, pieces, wanted)
    for name, (first, stop) in wanted.items():
        assert bytes(found[name]) == tensors[name][first:stop].contiguous().numpy().tobytes()


class _Counted:
    """A file that counts the bytes that are read of it."""

    def __init__(self, file: Any, counts: list[int]) -> None:
        self._file, self._counts = file, counts

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def size(self) -> int:
        return int(self._file.size())

    def read_at(self, size: int, offset: int) -> bytes:
        self._counts.append(size)
        data: bytes = self._file.read_at(size, offset)
        return data


class _CountingFolder(Folder):
    counts: list[int] = []  # noqa: RUF012 - one test has it

    def open(self, name: str) -> Any:
        return _Counted(super().open(name), self.counts)


def test_no_more_is_read_than_is_wanted(tmp_path: Path) -> None:
    """Of 4 MiB tensors in three files, the rows that the middle one of three other ranks holds."""
    tensors = {name: torch.zeros(1024, 1024) for name in ("a", "b")}
    plain = Folder.at(tmp_path)
    folder = _CountingFolder(plain.filesystem, plain.path)
    pieces = pieces_of(folder, spread(plain, tensors, 3))
    assert sum(folder.counts) < 3 * 1024, "only headers"
    folder.counts.clear()
    read_rows(folder, pieces, {"a": (300, 600), "b": (1000, 1001)})
    assert sum(folder.counts) == 301 * 4096
    assert len(folder.counts) == 3


def test_neighbours_are_read_at_once(tmp_path: Path) -> None:
    tensors = {f"t{number}": torch.randn(4, 4) for number in range(100)}
    plain = Folder.at(tmp_path)
    folder = _CountingFolder(plain.filesystem, plain.path)
    pieces = pieces_of(folder, spread(plain, tensors, 1))
    folder.counts.clear()
    found = read_rows(folder, pieces, dict.fromkeys(tensors, (1, 3)))
    assert len(folder.counts) == 1
    for name, tensor in tensors.items():
        assert bytes(found[name]) == tensor[1:3].numpy().tobytes()


def test_rows_that_no_file_has_are_missed(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    files = spread(folder, WHOLE, 3)
    pieces = pieces_of(folder, [files[0], files[2]])
    with pytest.raises(CheckpointError, match="row 3 of model/weight is in no file"):
        read_rows(folder, pieces, {"model/weight": (2, 7)})
    with pytest.raises(CheckpointError, match="row 0 of other is in no file"):
        read_rows(folder, pieces, {"other": (0, 1)})


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]"])
def test_what_is_no_such_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "rank-00000.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match="cannot be read as a rank's tensors"):
        pieces_of(Folder.at(tmp_path), ["rank-00000.safetensors"])


def test_a_file_that_ends_too_early_is_refused(tmp_path: Path) -> None:
    folder = Folder.at(tmp_path)
    (file,) = spread(folder, WHOLE, 1)
    pieces = pieces_of(folder, [file])
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:-5])
    with pytest.raises(CheckpointError, match="ends too early"):
        read_rows(folder, pieces, {"optimizer/state/0/flags": (0, 9)})


def saved_by_two(store: CheckpointStore) -> Manifest:
    """A checkpoint of two ranks: half of the weight and of its average each, and a buffer that both have."""
    whole_state = {"model/weight": torch.arange(15.0).view(5, 3), "ema/averages/weight": torch.ones(5, 3)}
    outlines = {name: tensor.to("meta") for name, tensor in whole_state.items()}
    shared = {
        "model": {"weight": outlines["model/weight"], "mean": torch.full((3,), 7.0)},
        "ema": {"num_updates": 2, "averages": {"weight": outlines["ema/averages/weight"]}},
        "optimizer": {"state": {0: {"exp_avg": torch.empty(5, 3, device="meta")}}},
    }
    for rank in (1, 0):
        first, stop = ((0, 3), (3, 5))[rank]
        shards = {name: Shard(one[first:stop], (5, 3), first) for name, one in whole_state.items()}
        rows = {name: shard.rows for name, shard in shards.items()}
        parts = [Part(rank_file(rank, "safetensors"), rows, dump_rows(shards))]
        parts += [Part(STATE, shared, dump_state)] if rank == 0 else []
        saver = Saver(store, rank=rank, world_size=2, asynchronous=False)
        saver.save(parts, step=1, epoch=0, metrics={}, others=[1])
    return store.manifests()[0]


def test_the_weights_of_shards_are_exported_whole(tmp_path: Path) -> None:
    store = CheckpointStore(Folder.at(tmp_path / "checkpoints"))
    store.begin_attempt()
    manifest = saved_by_two(store)
    assert {name: facts.size_bytes > 0 for name, facts in manifest.files.items()} == dict.fromkeys(
        (STATE, "rank-00000.safetensors", "rank-00001.safetensors"), True
    )
    export_weights(store, manifest, Folder.at(tmp_path / "out"))
    weights = safetensors.torch.load_file(tmp_path / "out" / "model.safetensors")
    assert torch.equal(weights["weight"], torch.arange(15.0).view(5, 3))
    assert torch.equal(weights["mean"], torch.full((3,), 7.0))
    averages = safetensors.torch.load_file(tmp_path / "out" / "ema.safetensors")
    assert torch.equal(averages["weight"], torch.ones(5, 3))


def test_weights_of_a_damaged_shard_are_not_exported(tmp_path: Path) -> None:
    store = CheckpointStore(Folder.at(tmp_path))
    store.begin_attempt()
    manifest = saved_by_two(store)
    file = tmp_path / manifest.name / "rank-00001.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"rank-00001\.safetensors: its sha256 is"):
        export_weights(store, manifest, Folder.at(tmp_path / "out"))


def test_initial_weights_are_not_taken_from_outlines(tmp_path: Path) -> None:
    store = CheckpointStore(Folder.at(tmp_path))
    store.begin_attempt()
    manifest = saved_by_two(store)
    with pytest.raises(UsageError, match="orchestrator checkpoint export"):
        read_weights(tmp_path / manifest.name / STATE)
