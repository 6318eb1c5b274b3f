"""Copies of a state as of one moment, and files of tensors."""

from __future__ import annotations

import errno
import io
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import safetensors.torch
import torch
from torch import nn

from orchestrator.checkpoints.tensors import HostCopies, dump_safetensors, dump_state, parse_state, size_bytes


class Pair(NamedTuple):
    tensor: torch.Tensor
    first: int


def _state() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    tied = torch.randn(7)
    return {
        "model": model.state_dict(),
        "optimizer": {
            "state": {0: {"step": torch.tensor(3.0), "m": torch.randn(5, 3).t()}},
            "groups": [{"lr": 0.1}],
        },
        "kinds": [torch.arange(3, dtype=torch.int64), torch.ones(9, dtype=torch.bfloat16), torch.zeros(0)],
        "tied": (tied, tied),
        "part": Pair(torch.randn(11), 4),
        "slice": torch.arange(1000.0)[10:20:3],
        "sparse": torch.eye(3).to_sparse(),
        "plain": {"name": "x", "none": None, "flag": True, "list": [1, [2.5]]},
        "outline": torch.empty(2, 3, device="meta"),
    }


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}.{index}")
    else:
        yield path, value


def _bits(state: Any) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        facts = (value.dtype, tuple(value.shape))
        return facts if value.is_meta else (*facts, value.to_dense().double().tolist())

    return {path: plain(value) for path, value in _leaves(state)}


def test_a_copy_is_of_its_moment_whatever_happens_later() -> None:
    state = _state()
    before = _bits(state)
    copies = HostCopies()
    copy = copies.take(state)
    assert _bits(copy) == before
    for _, value in _leaves(state):
        if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_meta:
            value.fill_(1)
    state["plain"]["list"][1].append(7)
    copies.settle()
    assert _bits(copy) == before
    assert isinstance(copy["part"], Pair)
    assert isinstance(copy["model"], OrderedDict)
    assert copy["model"]._metadata == state["model"]._metadata
    assert copy["model"]["0.weight"].stride() == state["model"]["0.weight"].stride()


def test_what_was_reserved_is_used_again_and_again() -> None:
    state, copies = _state(), HostCopies()
    copies.reserve(state)
    places = {copies.take(state)["part"].tensor.data_ptr() for _ in range(3)}
    assert len(places) == 1
    larger = copies.take({**state, "more": torch.ones(100_000)})
    assert larger["more"].sum() == 100_000
    assert torch.equal(larger["part"].tensor, state["part"].tensor)


def test_a_file_holds_no_more_than_its_tensors() -> None:
    """torch writes the whole memory of which a tensor is a part; a copy has only its own."""
    state = {"slice": torch.zeros(1_000_000)[:10], "weight": torch.ones(1000)}
    buffer = io.BytesIO()
    dump_state(HostCopies().take(state), buffer)
    assert size_bytes(state) <= len(buffer.getvalue()) < 10_000
    assert _bits(parse_state(buffer.getvalue())) == _bits(state)


def test_what_was_written_is_read_to_the_bit() -> None:
    state = {name: value for name, value in _state().items() if name not in ("part", "outline")}
    buffer = io.BytesIO()
    dump_state(HostCopies().take(state), buffer)
    assert _bits(parse_state(buffer.getvalue())) == _bits(state)


class FullAt(io.BytesIO):
    """A file on a disk with so much room, which may be given free after the first failure."""

    def __init__(self, room_bytes: int, *, for_good: bool) -> None:
        super().__init__()
        self.room_bytes, self.for_good, self.failed = room_bytes, for_good, False

    def write(self, data: Any) -> int:
        if self.tell() + len(memoryview(data).cast("B")) > self.room_bytes and (
            self.for_good or not self.failed
        ):
            self.failed = True
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


@pytest.mark.parametrize("for_good", [True, False])
def test_a_full_disk_is_named_wherever_in_the_file_it_is_met(for_good: bool) -> None:
    state = {"weight": torch.ones(300), "more": [torch.zeros(5), torch.ones(2, 2)], "step": 3}
    whole = io.BytesIO()
    dump_state(state, whole)
    for room_bytes in range(0, len(whole.getvalue()), 7):
        with pytest.raises(OSError, match="No space left on device"):
            dump_state(state, FullAt(room_bytes, for_good=for_good))


@pytest.mark.parametrize("data", [b"", b"no zip", b"PK\x03\x04 and no more"])
def test_what_is_no_state_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError):
        parse_state(data)


def test_safetensors_are_what_the_library_reads() -> None:
    tensors = {
        "weight": torch.randn(3, 4).t(),
        "half": torch.randn(5).to(torch.bfloat16),
        "scalar": torch.tensor(4, dtype=torch.int64),
        "flags": torch.tensor([True, False]),
        "none": torch.zeros(0, 3),
    }
    buffer = io.BytesIO()
    dump_safetensors(tensors, buffer, {"step": "7"})
    read = safetensors.torch.load(buffer.getvalue())
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor), name


def test_no_room_for_a_copy_is_said_so() -> None:
    huge = torch.empty(1, device="meta").expand(1 << 60)
    with pytest.raises(MemoryError, match="in host memory"):
        HostCopies()._make_room(huge.numel(), pinned=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_copies_of_a_gpu_are_of_their_moment() -> None:
    state = {"weight": torch.randn(10_000_000, device="cuda"), "step": torch.tensor(1.0)}
    before = state["weight"].cpu()
    copies = HostCopies()
    for _ in range(2):
        copy = copies.take(state)
        state["weight"].add_(1)  # on its way after the copy
        seconds = copies.settle()
        assert torch.equal(copy["weight"], before)
        assert seconds > 0
        state["weight"].sub_(1)
        before = state["weight"].cpu()
