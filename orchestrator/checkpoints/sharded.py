"""States of which each rank holds some rows: their outline, each rank's file, and the whole again. Imports: torch.

In the state that all ranks share, a sharded tensor is one on the `meta` device, its outline: it has a shape and a
dtype and no content. Its rows lie in the ranks' files, under the path to it, as `optimizer/state/0/exp_avg`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch

from orchestrator.checkpoints.files import Sink
from orchestrator.checkpoints.manifest import Manifest
from orchestrator.checkpoints.shard_files import METADATA
from orchestrator.checkpoints.store import CheckpointStore
from orchestrator.checkpoints.tensors import dump_safetensors
from orchestrator.errors import CheckpointError


class ReadRows(Protocol):
    """Reads the rows `first` to `stop` (exclusive) of tensors, by the path to each; raises CheckpointError, OSError.
    See `CheckpointStore.rows`."""

    def __call__(self, wanted: Mapping[str, tuple[int, int]], /) -> dict[str, bytearray]: ...


class Shard(NamedTuple):
    """A rank's rows of a tensor: the first of them, and how the whole is shaped."""

    rows: torch.Tensor
    shape: tuple[int, ...]
    first: int


def dump_rows(shards: Mapping[str, Shard]) -> Callable[[Mapping[str, torch.Tensor], Sink], None]:
    """What writes copies of these shards' rows into a rank's file."""
    facts = {METADATA: json.dumps({name: [shard.shape, shard.first] for name, shard in shards.items()})}
    return lambda rows, sink: dump_safetensors(rows, sink, facts)


def whole(state: Any, read: ReadRows) -> Any:
    """The state with whole tensors, on the CPU, in the place of outlines: for one worker, and for export."""
    outlines = outlines_of(state)
    found = read({path: (0, len(outline)) for path, outline in outlines.items() if outline.numel()})

    def filled(state: Any, path: str) -> Any:
        if path in outlines:
            return tensor_of(found.get(path), state.dtype, tuple(state.shape))
        if isinstance(state, Mapping):
            return {key: filled(value, below(path, key)) for key, value in state.items()}
        return state

    return filled(state, "")


def load_whole(store: CheckpointStore, manifest: Manifest, owners: Sequence[str]) -> dict[str, Any]:
    """What all ranks share, with whole tensors in these owners' states, whoever saved them.

    Raises CheckpointError where a file that is read is damaged, OSError where the storage fails.
    """
    state = store.load(manifest)
    wanted = {name: state[name] for name in owners if name in state}
    if not outlines_of(wanted):
        return state
    damages = store.verify(manifest, [name for name in manifest.files if name.endswith(".safetensors")])
    if damages:
        raise CheckpointError(f"checkpoint {manifest.name} is damaged: {'; '.join(damages)}")
    return {**state, **whole(wanted, store.rows(manifest))}


def outlines_of(state: Any, path: str = "") -> dict[str, torch.Tensor]:
    """The outlines in a tree of mappings, by the path to each."""
    if isinstance(state, torch.Tensor):
        return {path: state} if state.is_meta else {}
    if isinstance(state, Mapping):
        found = [outlines_of(value, below(path, key)) for key, value in state.items()]
        return {name: outline for one in found for name, outline in one.items()}
    return {}


def below(path: str, key: object) -> str:
    return f"{path}/{key}" if path else str(key)


def tensor_of(data: bytearray | None, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
    """The tensor that shares the memory of these bytes."""
    return torch.frombuffer(data, dtype=dtype).view(shape) if data else torch.empty(shape, dtype=dtype)
