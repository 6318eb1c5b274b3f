"""A state's sharded tensors: taken out of it for a rank's own file, and put back, however it is sharded then.

Where a state is taken apart, each sharded tensor is replaced by one on the `meta` device, which has a shape and a
dtype and no content, and goes into the file that all ranks share. Putting back changes no bit. Nothing here is
collective. Imports: torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from orchestrator.checkpoints.shard_files import Rows
from orchestrator.engine.parallel.gradients import is_sharded
from orchestrator.errors import CheckpointError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class ReadRows(Protocol):
    """Reads rows `first` to `stop` (exclusive) of each tensor, by its name in the ranks' files."""

    def __call__(self, wanted: Mapping[str, tuple[int, int]]) -> dict[str, bytearray]: ...


class Shard(NamedTuple):
    """This rank's rows of a tensor: the first of them, and how the whole is shaped."""

    rows: torch.Tensor
    shape: tuple[int, ...]
    first: int


def take_apart(state: Any, path: str = "") -> tuple[Any, dict[str, Shard]]:
    """The state, nested mappings and lists, with tensors of the `meta` device for sharded ones; and this rank's
    part of those, by the path to them. Nothing is copied."""
    if isinstance(state, torch.Tensor):
        if not is_sharded(state):
            return state, {}
        rows, (first, _) = state.to_local(), span_of(state)
        outline = torch.empty(state.shape, dtype=state.dtype, device="meta")
        return outline, {path: Shard(rows, tuple(state.shape), first)}
    if isinstance(state, Mapping):
        items = {key: take_apart(value, _below(path, key)) for key, value in state.items()}
        shards = {name: shard for _, found in items.values() for name, shard in found.items()}
        return {key: outline for key, (outline, _) in items.items()}, shards
    return state, {}


def snapshot(shards: Mapping[str, Shard]) -> dict[str, Rows]:
    """Copies in the CPU's memory, as they are to be written. A rank without rows of a tensor leaves it out."""
    copies = {
        name: shard.rows.detach().to("cpu", copy=True).contiguous()
        for name, shard in shards.items()
        if shard.rows.numel()
    }
    return {
        name: Rows(_NAMES[copy.dtype], shards[name].shape, shards[name].first, _bytes_of(copy))
        for name, copy in copies.items()
    }


def fitted(
    state: Mapping[str, Any], likes: Mapping[str, Any], path: str, read: ReadRows | None
) -> dict[str, Any]:
    """The state's tensors as this rank is to hold them: its own rows, on the CPU, where `likes` has a sharded
    tensor of that name and shape, else whole. What `take_apart` took out, at `path`, is read.

    Raises CheckpointError where it can't be.
    """
    spans = {}
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            like = likes.get(name)
            cut = like is not None and is_sharded(like) and like.shape == value.shape
            spans[name] = span_of(like) if cut else None
    missing = {
        f"{path}/{name}": span or (0, len(state[name]))
        for name, span in spans.items()
        if state[name].is_meta and state[name].numel()
    }
    if missing and read is None:
        raise CheckpointError(
            f"the state has an outline only of {len(missing)} tensors, whose content the ranks' files hold",
            "load it with the checkpoint that it belongs to",
        )
    found = read(missing) if missing and read is not None else {}
    fit = dict(state)
    for name, span in spans.items():
        value = state[name]
        first, stop = span or (0, len(value) if value.dim() else 0)
        if value.is_meta:
            data = found.get(f"{path}/{name}", bytearray())
            shape = (stop - first, *value.shape[1:])
            fit[name] = _tensor_of(data, value.dtype, shape)
        elif span is not None:
            fit[name] = value[first:stop].clone()  # the rest of the whole is to go
    return fit


def whole(state: Any, read: ReadRows) -> Any:
    """The state with all that `take_apart` took out of it, in whole tensors: for one worker, and for export."""
    outlines = _outlines(state, "")
    found = read({path: (0, len(outline)) for path, outline in outlines.items() if outline.numel()})

    def filled(state: Any, path: str) -> Any:
        if path in outlines:
            return _tensor_of(found.get(path, bytearray()), state.dtype, tuple(state.shape))
        if isinstance(state, Mapping):
            return {key: filled(value, _below(path, key)) for key, value in state.items()}
        return state

    return filled(state, "")


def _outlines(state: Any, path: str) -> dict[str, torch.Tensor]:
    if isinstance(state, torch.Tensor):
        return {path: state} if state.is_meta else {}
    if isinstance(state, Mapping):
        below = [_outlines(value, _below(path, key)) for key, value in state.items()]
        return {name: outline for found in below for name, outline in found.items()}
    return {}


def _below(path: str, key: object) -> str:
    return f"{path}/{key}" if path else str(key)


def as_sharded(rows: torch.Tensor, like: DTensor) -> DTensor:
    """This rank's rows as a tensor that is sharded like another one."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        rows.to(like.device),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def span_of(tensor: DTensor) -> tuple[int, int]:
    """The rows that this rank holds, from the first to before the last, as `torch.chunk` cuts them."""
    from torch.distributed.tensor import Shard as ByRows

    if tuple(tensor.placements) != (ByRows(0),):
        raise CheckpointError(f"a tensor that is sharded as {tensor.placements} cannot be saved or loaded")
    each = -(-tensor.shape[0] // tensor.device_mesh.size())
    first = min(tensor.device_mesh.get_local_rank() * each, tensor.shape[0])
    return first, min(first + each, tensor.shape[0])


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.view(-1).view(torch.uint8).numpy())


def _tensor_of(data: bytearray, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    if not data:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data, dtype=dtype).view(shape)
