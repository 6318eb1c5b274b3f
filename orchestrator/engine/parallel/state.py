"""The state of a model and its optimizer, the same whether it is whole or sharded over workers.

Names, order and shapes are those of the bare model and of `optimizer.state_dict()`, so that what one strategy
and number of workers wrote, any other can load. Imports: torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from orchestrator.checkpoints.sharded import ReadRows
from orchestrator.engine import collectives
from orchestrator.engine.optim.ema import Ema
from orchestrator.engine.parallel.gradients import is_sharded
from orchestrator.engine.parallel.shards import as_sharded, fitted
from orchestrator.engine.parallel.wrap import bare, sharded
from orchestrator.errors import CheckpointError


def model_state(parallel: torch.nn.Module) -> dict[str, Any]:
    """The bare model's state in whole tensors, to be exported. Collective under FSDP, where it is on the CPU, one
    tensor at a time is whole on the others, and their state is empty. A checkpoint has no need of it."""
    state = bare(parallel).state_dict()
    return _gathered(state) if sharded(parallel) else state


def saved_state(
    parallel: torch.nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None
) -> dict[str, dict[str, Any] | None]:
    """What the functions below load, by its owner. Under FSDP with sharded tensors: see `shards.take_apart`."""
    return {
        "model": bare(parallel).state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema.state_dict() if ema else None,
    }


def load_model_state(
    parallel: torch.nn.Module, state: Mapping[str, Any], read: ReadRows | None = None
) -> None:
    """Load weights, whole or of any number of shards, which `read` reads.

    Raises CheckpointError where they do not fit the model.
    """
    model = bare(parallel)
    own = model.state_dict()
    wrong = [
        name
        for name in sorted(own.keys() | state.keys())
        if name not in own or name not in state or _shape(own[name]) != _shape(state[name])
    ]
    if wrong:
        raise CheckpointError(
            f"the saved weights do not fit the model: {', '.join(wrong[:5])} are missing, unknown or of "
            "another shape",
            "was model.args changed? Start again with --fresh",
        )
    model.load_state_dict(_spread(state, own, "model", read))


def load_optimizer_state(
    parallel: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    read: ReadRows | None = None,
) -> None:
    """Load an optimizer's state by the parameters' numbers, as `load_model_state`. Its settings (rates, decay) stay
    those that it was made with: a trial of a search may go on from another's state with settings of its own. Where it
    is of another kind, which keeps other moments, it begins with none.

    Raises CheckpointError where the optimizer has other parameters.
    """
    saved, groups = state["param_groups"], optimizer.param_groups
    if [len(group["params"]) for group in saved] != [len(group["params"]) for group in groups]:
        raise CheckpointError(
            f"the saved optimizer has groups of {[len(group['params']) for group in saved]} parameters, and this "
            f"one of {[len(group['params']) for group in groups]}",
            "were train.optimizer or the frozen layers changed? Start again with --fresh",
        )
    if list(map(_moments, saved)) != list(map(_moments, groups)):
        return
    parameters = [parameter for group in groups for parameter in group["params"]]
    flat = {
        f"{number}/{name}": value for number, entry in state["state"].items() for name, value in entry.items()
    }
    # What has its parameter's shape goes with it; the rest, as a count of steps, stays whole.
    likes = {path: parameters[int(path.partition("/")[0])] for path in flat}
    spread = _spread(flat, likes, "optimizer/state", read)
    entries = {
        number: {name: spread[f"{number}/{name}"] for name in entry}
        for number, entry in state["state"].items()
    }
    settings = [
        {**old, **{name: value for name, value in group.items() if name != "params"}}
        for old, group in zip(saved, groups, strict=True)
    ]
    optimizer.load_state_dict({"state": entries, "param_groups": settings})
    if not sharded(parallel):
        _lay_out(optimizer)


def _moments(group: Mapping[str, Any]) -> tuple[bool, ...]:
    """What tells which moments an optimizer keeps, by the settings that only one kind has: those of SGD, Adam, RMSprop
    and Adagrad."""
    kind = (name in group for name in ("dampening", "betas", "alpha", "lr_decay"))
    return *kind, bool(group.get("momentum")), bool(group.get("centered"))


def load_ema_state(ema: Ema, state: Mapping[str, Any], read: ReadRows | None = None) -> None:
    """Load averaged weights, as `load_model_state`."""
    own = ema.state_dict()["averages"]
    ema.load_state_dict({**state, "averages": _spread(state["averages"], own, "ema/averages", read)})


def _spread(
    state: Mapping[str, Any], likes: Mapping[str, Any], path: str, read: ReadRows | None
) -> dict[str, Any]:
    """The state, sharded where `likes` has a sharded tensor of the same name and shape, else whole."""
    fit = fitted(state, likes, path, read)
    for name, value in state.items():
        like = likes.get(name)
        if (
            isinstance(value, torch.Tensor)
            and like is not None
            and is_sharded(like)
            and like.shape == value.shape
        ):
            fit[name] = as_sharded(fit[name], like)
    return fit


def _lay_out(optimizer: torch.optim.Optimizer) -> None:
    """Give the state its parameter's memory layout, which may not be the one it was saved in (channels-last).

    torch's fused optimizers walk through both in the order of memory, and would mix up the elements.
    """
    for parameter, entry in optimizer.state.items():
        for name, value in entry.items():
            alike = isinstance(value, torch.Tensor) and value.shape == parameter.shape
            if alike and value.stride() != parameter.stride():
                entry[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _gathered(state: Mapping[str, Any]) -> dict[str, Any]:
    """The state with whole tensors on the CPU; empty beyond rank 0. Collective."""
    from torch.distributed.tensor import DTensor

    lead = collectives.rank() == 0
    whole = {}
    for name, value in state.items():
        full = value.full_tensor() if isinstance(value, DTensor) else value
        if lead:
            whole[name] = full.detach().cpu() if isinstance(full, torch.Tensor) else full
    return whole


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None
