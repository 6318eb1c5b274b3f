"""Optimizers from the spec: torch's own, with parameter groups and an L1 penalty. Imports: torch."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import torch

from orchestrator.engine.parallel.gradients import is_sharded, local
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.spec.optim import Optimizer

_WRAPPERS = ("_checkpoint_wrapped_module.", "_orig_mod.")
_FUSED_DEVICES = ("cpu", "cuda")
_FUSED_FOR_SHARDS = ("adam", "adamw")


def build_optimizer(
    section: Optimizer, model: torch.nn.Module, device: torch.device, *, fused: bool | None = None
) -> torch.optim.Optimizer:
    """The optimizer over the parameters that take gradients.

    `fused`: one kernel for all parameters, by default wherever torch has it (on CPUs and GPUs, all but
    RMSprop; of sharded parameters only Adam's and AdamW's). Elsewhere torch chooses: foreach on GPUs.
    Raises UsageError where no parameter is trained, or a group takes none.
    """
    groups = parameter_groups(section, model)
    parameters = [parameter for group in groups for parameter in group["params"]]
    if fused is None:
        fused = device.type in _FUSED_DEVICES and all(one.is_floating_point() for one in parameters)
        if any(is_sharded(one) for one in parameters):
            fused = fused and section.kind in _FUSED_FOR_SHARDS
    how: dict[str, Any] = {"fused": True} if fused else {}
    if section.kind == "sgd":
        return torch.optim.SGD(
            groups, lr=section.lr, momentum=section.momentum, nesterov=section.nesterov, **how
        )
    if section.kind == "rmsprop":
        return torch.optim.RMSprop(
            groups,
            lr=section.lr,
            alpha=section.alpha,
            eps=section.eps,
            momentum=section.momentum,
            centered=section.centered,
        )
    if section.kind == "adagrad":
        return torch.optim.Adagrad(
            groups,
            lr=section.lr,
            lr_decay=section.lr_decay,
            initial_accumulator_value=section.initial_accumulator_value,
            eps=section.eps,
            **how,
        )
    kind = torch.optim.AdamW if section.kind == "adamw" else torch.optim.Adam
    return kind(groups, lr=section.lr, betas=section.betas, eps=section.eps, **how)


def parameter_groups(section: Optimizer, model: torch.nn.Module) -> list[dict[str, Any]]:
    """Torch's groups: `params`, `lr`, `weight_decay` and, where there is a penalty, `l1`.

    One per group of the spec and one for the rest, each cut in two where `no_decay` spares some of its
    parameters; in the order of the parameters that come first. Raises UsageError as `build_optimizer` does.
    """
    named = {
        clean_name(name): parameter for name, parameter in model.named_parameters() if parameter.requires_grad
    }
    if not named:
        raise UsageError(
            "there is nothing to train: no parameter of the model takes gradients",
            "freeze fewer (model.freeze), or name another model",
        )
    taken_by = {name: _group_of(section, name) for name in named}
    _check_groups(section, list(named), set(taken_by.values()))
    found: dict[tuple[int | None, bool], dict[str, Any]] = {}
    for name, parameter in named.items():
        index = taken_by[name]
        spared = section.no_decay and parameter.ndim < 2
        if (index, spared) not in found:
            found[index, spared] = {"params": [], **_settings(section, index, spared)}
        found[index, spared]["params"].append(parameter)
    return list(found.values())


def _settings(section: Optimizer, index: int | None, spared: bool) -> dict[str, float]:
    own = section.groups[index] if index is not None else None
    decay = own.weight_decay if own and own.weight_decay is not None else section.weight_decay
    undecayed = spared or (own is not None and own.weight_decay == 0)
    settings = {
        "lr": own.lr if own and own.lr is not None else section.lr,
        "weight_decay": 0.0 if spared else decay,
    }
    return settings | ({"l1": section.l1} if section.l1 and not undecayed else {})


@torch.no_grad()
def add_l1(optimizer: torch.optim.Optimizer) -> None:
    """Add the slope of the L1 penalty, `l1 · sign(w)`, to the gradients of each group that has one.

    To be called once before each step, after unscaling and clipping: as for L2, which the optimizer adds
    itself, the clipped gradient is that of the loss alone. Undecayed parameters (`no_decay`, or a group with
    weight_decay 0) have no penalty.
    """
    for group in optimizer.param_groups:
        if not group.get("l1"):
            continue
        trained = [parameter for parameter in group["params"] if parameter.grad is not None]
        if trained:
            signs = torch._foreach_sign([local(parameter) for parameter in trained])
            torch._foreach_add_([local(parameter.grad) for parameter in trained], signs, alpha=group["l1"])


def clean_name(name: str) -> str:
    """A parameter's name as the user knows it, without those of wrappers (checkpointing, compiling)."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def _group_of(section: Optimizer, name: str) -> int | None:
    for index, group in enumerate(section.groups):
        if any(fnmatchcase(name, pattern) for pattern in group.match):
            return index
    return None


def _check_groups(section: Optimizer, names: Sequence[str], used: set[int | None]) -> None:
    """Each pattern must match a trained parameter, and each group get one."""
    for index, group in enumerate(section.groups):
        for pattern in group.match:
            if not any(fnmatchcase(name, pattern) for name in names):
                near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3) or names[:3]
                raise UsageError(
                    f"train.optimizer.groups.{index}.match: no trained parameter is named like '{pattern}'",
                    f"the nearest are: {', '.join(near)}",
                )
        if index not in used:
            raise UsageError(
                f"train.optimizer.groups.{index}.match: earlier groups take all parameters that "
                f"{', '.join(group.match)} matches",
                "put the narrower group first",
            )
