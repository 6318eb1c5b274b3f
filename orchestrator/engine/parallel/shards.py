"""A state's sharded tensors: taken out of it for a rank's own file, and put back, however it is sharded then.

No bit changes on the way. Nothing here is collective. Imports: torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from orchestrator.checkpoints.sharded import ReadRows, Shard, below, tensor_of
from orchestrator.engine.parallel.gradients import is_sharded
from orchestrator.errors import CheckpointError

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def take_apart(state: Any, path: str = "") -> tuple[Any, dict[str, Shard]]:
    """The state, a tree of mappings, with outlines in the place of sharded tensors; and this rank's part of those,
    by the path to them, where it has any. Nothing is copied."""
    if isinstance(state, torch.Tensor):
        if not is_sharded(state):
            return state, {}
        rows, (first, _) = state.to_local(), span_of(state)
        outline = torch.empty(state.shape, dtype=state.dtype, device="meta")
        return outline, {path: Shard(rows, tuple(state.shape), first)} if rows.numel() else {}
    if isinstance(state, Mapping):
        items = {key: take_apart(value, below(path, key)) for key, value in state.items()}
        shards = {name: shard for _, found in items.values() for name, shard in found.items()}
        return {key: outline for key, (outline, _) in items.items()}, shards
    return state, {}


def fitted(
    state: Mapping[str, Any], likes: Mapping[str, Any], path: str, read: ReadRows | None
) -> dict[str, Any]:
    """The state's tensors as this rank is to hold them: its own rows where `likes` has a sharded tensor of that
    name and shape, else whole. The content of outlines, at `path`, is read, onto the CPU.

    Raises CheckpointError where it can't be.
    """
    spans: dict[str, tuple[int, int] | None] = {}
    for name, value in state.items():
        like = likes.get(name)
        if (
            isinstance(like, torch.Tensor)
            and is_sharded(like)
            and like.shape == getattr(value, "shape", None)
        ):
            spans[name] = span_of(like)
        elif isinstance(value, torch.Tensor):
            spans[name] = None
    missing = {
        name: spans[name] or (0, len(value))
        for name, value in state.items()
        if name in spans and value.is_meta and value.numel()
    }
    if missing and read is None:
        raise CheckpointError(
            f"the state has only outlines of {', '.join(list(missing)[:3])}, …: the content is in the ranks' files",
            "load it with its checkpoint",
        )
    found = read({below(path, name): span for name, span in missing.items()}) if read and missing else {}
    fit = dict(state)
    for name, span in spans.items():
        value = state[name]
        if value.is_meta:
            first, stop = span or (0, len(value))
            fit[name] = tensor_of(found.get(below(path, name)), value.dtype, (stop - first, *value.shape[1:]))
        elif span is not None:
            fit[name] = value[slice(*span)].clone()  # the rest of the whole is to go
    return fit


def as_sharded(rows: torch.Tensor, like: DTensor) -> DTensor:
    """This rank's rows as a tensor that is sharded like another one, and lies in memory as FSDP's do, whose rows
    are in order: torch's fused optimizers walk through a weight and its moments in the order of memory."""
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        rows.to(like.device).contiguous(),
        like.device_mesh,
        like.placements,
        run_check=False,
        shape=like.shape,
        stride=like.stride(),
    )


def span_of(tensor: DTensor) -> tuple[int, int]:
    """The rows that this rank holds, from the first to before the last, as `torch.chunk` cuts them.

    Raises CheckpointError where the tensor is cut in another way than FSDP does by default.
    """
    from torch.distributed.tensor import Shard as ByRows

    if tuple(tensor.placements) != (ByRows(0),):
        raise CheckpointError(f"a tensor that is sharded as {tensor.placements} cannot be saved or loaded")
    each = -(-tensor.shape[0] // tensor.device_mesh.size())
    first = min(tensor.device_mesh.get_local_rank() * each, tensor.shape[0])
    return first, min(first + each, tensor.shape[0])
