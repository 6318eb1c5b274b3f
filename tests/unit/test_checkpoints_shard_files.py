"""The ranks' files of tensors: any reader of safetensors reads them, and any rows are found again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import safetensors.torch
import torch
from hypothesis import given

from orchestrator.checkpoints.shard_files import ITEM_SIZES, Rows, file_of, pieces_of, read_rows
from orchestrator.engine.parallel.shards import DTYPES
from orchestrator.errors import CheckpointError
from orchestrator.storage import Folder

WHOLE = {
    "model/weight": torch.randn(7, 3),
    "model/half": torch.randn(5, 2, 2).to(torch.bfloat16),
    "optimizer/state/0/flags": torch.arange(9) % 2 == 0,
}


def rows_of(tensor: torch.Tensor, first: int, stop: int) -> Rows:
    name = next(name for name, dtype in DTYPES.items() if dtype == tensor.dtype)
    data = tensor[first:stop].contiguous().view(-1).view(torch.uint8).numpy()
    return Rows(name, tuple(tensor.shape), first, memoryview(data))


def spread(folder: Folder, whole: Mapping[str, torch.Tensor], num_ranks: int) -> list[str]:
    """Write the tensors as so many ranks would, cut as `torch.chunk` cuts; the files' names."""
    names = []
    for rank in range(num_ranks):
        rows = {}
        for name, tensor in whole.items():
            each = -(-len(tensor) // num_ranks)
            first, stop = min(rank * each, len(tensor)), min((rank + 1) * each, len(tensor))
            if first < stop:
                rows[name] = rows_of(tensor, first, stop)
        names.append(f"rank-{rank:05d}.safetensors")
        folder.write_bytes(names[-1], b"".join(file_of(rows)))
    return names


def test_other_readers_of_the_format_read_them(tmp_path: Path) -> None:
    spread(Folder.at(tmp_path), WHOLE, 2)
    found = [safetensors.torch.load_file(tmp_path / f"rank-{rank:05d}.safetensors") for rank in range(2)]
    for name, tensor in WHOLE.items():
        assert torch.equal(torch.cat([one[name] for one in found]), tensor)


def test_sizes_are_those_of_torch() -> None:
    assert {name: dtype.itemsize for name, dtype in DTYPES.items()} == ITEM_SIZES


@given(data=st.data(), num_rows=st.integers(1, 20), columns=st.integers(1, 3), num_ranks=st.integers(1, 6))
def test_any_rows_of_any_number_of_ranks(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, num_rows: int, columns: int, num_ranks: int
) -> None:
    whole = {"a": torch.randn(num_rows, columns), "b": torch.randn(num_rows + 1)}
    folder = Folder.at(tmp_path_factory.mktemp("rows"))
    pieces = pieces_of(folder, spread(folder, whole, num_ranks))
    wanted = {}
    for name, tensor in whole.items():
        first = data.draw(st.integers(0, len(tensor) - 1))
        wanted[name] = (first, data.draw(st.integers(first + 1, len(tensor))))
    found = read_rows(folder, pieces, wanted)
    for name, (first, stop) in wanted.items():
        assert bytes(found[name]) == whole[name][first:stop].contiguous().numpy().tobytes()


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
    whole = {name: torch.zeros(1024, 1024) for name in ("a", "b")}
    plain = Folder.at(tmp_path)
    folder = _CountingFolder(plain.filesystem, plain.path)
    pieces = pieces_of(folder, spread(plain, whole, 3))
    assert sum(folder.counts) < 3 * 1024, "only headers"
    folder.counts.clear()
    read_rows(folder, pieces, {"a": (300, 600), "b": (1000, 1001)})
    assert sum(folder.counts) == 301 * 4096
    assert len(folder.counts) == 3


def test_neighbours_are_read_at_once(tmp_path: Path) -> None:
    whole = {f"t{number}": torch.randn(4, 4) for number in range(100)}
    plain = Folder.at(tmp_path)
    folder = _CountingFolder(plain.filesystem, plain.path)
    pieces = pieces_of(folder, spread(plain, whole, 1))
    folder.counts.clear()
    found = read_rows(folder, pieces, dict.fromkeys(whole, (1, 3)))
    assert len(folder.counts) == 1
    for name, tensor in whole.items():
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
