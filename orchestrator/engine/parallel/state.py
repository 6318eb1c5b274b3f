"""The state of a model and its optimizer, the same whether it is whole or sharded over workers.

Names, order and shapes are those of the bare model and of `optimizer.state_dict()`, so that what one strategy
and number of workers wrote, any other can load. Under FSDP one tensor at a time is whole, and only rank 0
holds them all. Imports: torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from orchestrator.engine import collectives
from orchestrator.engine.optim.ema import Ema
from orchestrator.engine.parallel.wrap import bare, sharded
from orchestrator.errors import CheckpointError


class _Shape(NamedTuple):
    """What other ranks must know of a tensor that rank 0 is about to send."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def model_state(parallel: torch.nn.Module) -> dict[str, Any]:
    """The bare model's state. Collective under FSDP, where it is on the CPU, and empty beyond rank 0."""
    state = bare(parallel).state_dict()
    return _gathered(state) if sharded(parallel) else state


def load_model_state(parallel: torch.nn.Module, state: Mapping[str, Any]) -> None:
    """Load what `model_state` gave. Collective under FSDP, where only rank 0's `state` is read.

    Raises CheckpointError (under FSDP; else torch's RuntimeError) where it does not fit the model.
    """
    model = bare(parallel)
    if not sharded(parallel):
        model.load_state_dict(dict(state))
        return
    own = model.state_dict()
    lead = collectives.rank() == 0
    outline = collectives.broadcast_object(
        {name: _outline(value) for name, value in state.items()} if lead else None
    )
    wrong = [
        name
        for name in sorted(own.keys() | outline.keys())
        if name not in own or name not in outline or _outline(own[name]).shape != outline[name].shape
    ]
    if wrong:
        raise CheckpointError(
            f"the saved weights do not fit the model: {', '.join(wrong[:5])} are missing, unknown or of "
            "another shape",
            "was model.args changed? Start again with --fresh",
        )
    model.load_state_dict(
        {name: _spread(state[name] if lead else None, outline[name], like=own[name]) for name in own}
    )


def optimizer_state(parallel: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The optimizer's state by the parameters' numbers. Collective under FSDP, as `model_state`."""
    state: dict[str, Any] = optimizer.state_dict()
    if not sharded(parallel):
        return state
    entries = {number: _gathered(entry) for number, entry in state["state"].items()}
    return {"state": entries, "param_groups": state["param_groups"]} if collectives.rank() == 0 else {}


def load_optimizer_state(
    parallel: torch.nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """Load what `optimizer_state` gave. Collective under FSDP, where only rank 0's `state` is read.

    Raises CheckpointError where the optimizer has other parameters.
    """
    if not sharded(parallel):
        _check_fit(optimizer, state)
        optimizer.load_state_dict(dict(state))
        _lay_out(optimizer)
        return
    lead = collectives.rank() == 0
    outline = collectives.broadcast_object(
        {
            "state": {
                number: {name: _outline(value) for name, value in entry.items()}
                for number, entry in state["state"].items()
            },
            "param_groups": state["param_groups"],
        }
        if lead
        else None
    )
    _check_fit(optimizer, outline)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    entries = {}
    for number, entry in outline["state"].items():
        parameter = parameters[number]
        whole = state["state"][number] if lead else {}
        entries[number] = {
            name: _spread(
                whole.get(name),
                value,
                # What has the parameter's shape goes with it; the rest, as a count of steps, stays whole.
                like=parameter if _is_shape(value, parameter.shape) else None,
            )
            for name, value in entry.items()
        }
    optimizer.load_state_dict({"state": entries, "param_groups": outline["param_groups"]})


def _check_fit(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    saved, own = (
        [len(group["params"]) for group in groups]
        for groups in (state["param_groups"], optimizer.param_groups)
    )
    if saved != own:
        raise CheckpointError(
            f"the saved optimizer has groups of {saved} parameters, and this one of {own}",
            "were train.optimizer or the frozen layers changed? Start again with --fresh",
        )


def ema_state(parallel: torch.nn.Module, ema: Ema) -> dict[str, Any]:
    """The averaged weights. Collective under FSDP, as `model_state`."""
    state = ema.state_dict()
    if sharded(parallel):
        state["averages"] = _gathered(state["averages"])
    return state


def load_ema_state(parallel: torch.nn.Module, ema: Ema, state: Mapping[str, Any]) -> None:
    """Load what `ema_state` gave, which every rank must hold. Collective under FSDP."""
    averages = state["averages"]
    if sharded(parallel):
        own = ema.state_dict()["averages"]
        averages = {
            name: _spread(value, _outline(value), like=own.get(name)) for name, value in averages.items()
        }
    ema.load_state_dict({**state, "averages": averages})


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


def _outline(value: Any) -> Any:
    return _Shape(tuple(value.shape), value.dtype) if isinstance(value, torch.Tensor) else value


def _is_shape(value: Any, shape: torch.Size) -> bool:
    return isinstance(value, _Shape) and value.shape == tuple(shape)


def _spread(value: Any, outline: Any, *, like: torch.Tensor | None) -> Any:
    """Rank 0's `value` on every rank: sharded as `like` where that is, else whole. Collective."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(outline, _Shape):
        return outline
    device = torch.device("cpu") if like is None else like.device
    carrier = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else device
    if collectives.rank() == 0:
        whole = value.detach().to(carrier).contiguous()
    else:
        whole = torch.empty(outline.shape, dtype=outline.dtype, device=carrier)
    if isinstance(like, DTensor):
        return distribute_tensor(whole, like.device_mesh, like.placements)
    dist.broadcast(whole, src=0)
    return whole.to(device)
