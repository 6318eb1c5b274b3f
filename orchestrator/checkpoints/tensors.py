"""All that checkpoints know of tensors: writing states to a file and reading them back. Imports: torch.

What is written is made of tensors and plain Python values, so that reading needs no code (`weights_only`).
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import mmap
import pickle
import sys
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import IO, Any, cast

import torch
from torch.serialization import get_crc32_options, set_crc32_options

from orchestrator.checkpoints.files import Sink

_SAFETENSORS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8",
    torch.bool: "BOOL",
}  # fmt: skip
"""The names that the safetensors format gives to types."""


class _Watched:
    """A sink that remembers why it could not be written to."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.failed: BaseException | None = None

    def write(self, data: Any) -> int:
        try:
            return self._sink.write(data)
        except BaseException as error:
            self.failed = self.failed or error
            raise

    def flush(self) -> None:
        self._sink.flush()


def dump_state(state: Mapping[str, Any], sink: Sink) -> None:
    """Write a tree of dicts, lists, tensors and plain values as torch does, one tensor after another. Raises
    what the sink raises."""
    # The zip's own checksums are left out: the whole file is hashed, and torch computes them holding Python's
    # lock, for which the training would wait.
    checksums = get_crc32_options()
    set_crc32_options(False)
    watched = _Watched(sink)
    try:
        torch.save(dict(state), cast("IO[bytes]", watched))
    except RuntimeError:
        # torch closes its zip after a failed write, and what that raises ("unexpected pos") hides the cause.
        if watched.failed is None:
            raise
        raise watched.failed from None
    finally:
        set_crc32_options(checksums)


def parse_state(data: bytes) -> dict[str, Any]:
    """What `dump_state` wrote, on the CPU. Raises ValueError for anything that is no such file, or that holds
    more than tensors and plain values: code in it is never run."""
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise ValueError(str(error)) from error
    return state


def dump_safetensors(tensors: Mapping[str, torch.Tensor], sink: Sink, facts: Mapping[str, str]) -> None:
    """Write dense tensors in the safetensors format, with facts about them as its metadata.

    Source of the format: https://github.com/huggingface/safetensors (8 bytes of length, JSON header, data).
    """
    header: dict[str, Any] = {"__metadata__": dict(facts)} if facts else {}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _SAFETENSORS[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    sink.write(len(text).to_bytes(8, "little"))
    sink.write(text)
    for tensor in tensors.values():
        if tensor.numel():
            sink.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())


class HostCopies:
    """Copies of states in this machine's memory, as of one moment, in one block that is used again and again.

    There is one set: the next `take` overwrites what the last one gave.
    """

    def __init__(self) -> None:
        self._block = torch.empty(0, dtype=torch.uint8)
        self._events: tuple[torch.cuda.Event, torch.cuda.Event] | None = None

    def reserve(self, state: Any) -> None:
        """Get the memory for such a state now: new memory is slow at its first use. Raises MemoryError."""
        sources = list(_tensors(state))
        self._make_room(sum(_room(source) for source in sources), any(source.is_cuda for source in sources))

    def take(self, state: Any) -> Any:
        """The state with every tensor copied; other things are copied where they can change.

        A tensor that occurs twice (tied weights) occurs twice in the copy. Tensors on a GPU are on their way when
        this returns; they are in order with what the GPU does before and after, so that training may go on. Call
        `settle` before reading. Raises MemoryError where there is no room.
        """
        sources = {_identity(source): source for source in _tensors(state)}
        on_gpu = any(source.is_cuda for source in sources.values())
        self._make_room(sum(_room(source) for source in sources.values()), on_gpu)
        if on_gpu:
            self._events = (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            self._events[0].record()
        memory, start = self._block.numpy(), 0
        copies: dict[Any, torch.Tensor] = {}
        for key, source in sources.items():
            strides = torch.empty_like(source, device="meta").stride()
            flat = torch.frombuffer(memory, dtype=source.dtype, count=source.numel(), offset=start)
            copies[key] = flat.as_strided(source.shape, strides).copy_(source.detach(), non_blocking=True)
            start += _room(source)
        if self._events:
            self._events[1].record()
        return _rebuilt(state, copies)

    def settle(self) -> float:
        """Wait until the copies are there; the seconds that a GPU was busy with them. For any thread."""
        if self._events is None:
            return 0.0
        began, ended = self._events
        self._events = None
        ended.synchronize()
        return float(began.elapsed_time(ended)) / 1000

    def _make_room(self, size_bytes: int, pinned: bool) -> None:
        if self._block.numel() < size_bytes or (pinned and not self._block.is_pinned()):
            self._block = torch.empty(0, dtype=torch.uint8)  # the old one goes before the new one comes
            self._block = _block(size_bytes, pinned)
            # Memory comes page by page at the first touch, which takes longer than a copy.
            self._block.numpy()[::_PAGE_BYTES] = 0


def _block(size_bytes: int, pinned: bool) -> torch.Tensor:
    """New memory, in large pages where the system has them: copying into them is faster. Raises MemoryError."""
    try:
        if pinned or sys.platform != "linux" or size_bytes == 0:
            return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=pinned)
        memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError):  # a kernel without them
            memory.madvise(mmap.MADV_HUGEPAGE)
        return torch.frombuffer(memory, dtype=torch.uint8)
    except (RuntimeError, OSError, OverflowError) as error:
        raise MemoryError(f"no memory for a copy of {size_bytes:,} bytes in host memory") from error


def size_bytes(state: Any) -> int:
    """What the tensors of a state take, about the size of its file."""
    return sum(_room(tensor) for tensor in _tensors(state))


_ALIGNMENT_BYTES = 64
_PAGE_BYTES = 4096


def _room(tensor: torch.Tensor) -> int:
    size = tensor.numel() * tensor.element_size()
    return size + -size % _ALIGNMENT_BYTES


def _identity(tensor: torch.Tensor) -> Any:
    return (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether its elements lie in memory that can be copied as it is; others are rare and cloned, and those of
    the meta device have nothing to copy."""
    strided = tensor.layout == torch.strided and not tensor.is_quantized
    return strided and not tensor.is_meta and tensor.numel() > 0


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    """The tensors in a tree that go into the block."""
    if isinstance(state, torch.Tensor):
        if _is_plain(state):
            yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)


def _rebuilt(state: Any, copies: Mapping[Any, torch.Tensor]) -> Any:
    """The tree with copies in the place of its tensors."""
    if isinstance(state, torch.Tensor):
        if _is_plain(state):
            return copies[_identity(state)]
        return state if state.is_meta else state.detach().cpu().clone()
    if type(state) is OrderedDict:  # a module's state has its version numbers as an attribute
        made = OrderedDict((key, _rebuilt(value, copies)) for key, value in state.items())
        made.__dict__.update(copy.deepcopy(state.__dict__))
        return made
    if isinstance(state, Mapping):
        return {key: _rebuilt(value, copies) for key, value in state.items()}
    if type(state) in (list, tuple):
        return type(state)(_rebuilt(value, copies) for value in state)
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return type(state)(*(_rebuilt(value, copies) for value in state))
    return copy.deepcopy(state)


def named_tensors(state: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """The tensors of a flat state, by name."""
    return {str(name): value for name, value in state.items() if isinstance(value, torch.Tensor)}
