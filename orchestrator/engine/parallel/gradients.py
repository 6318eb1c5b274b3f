"""The size of the gradients, and its limits, whole or sharded over workers. Imports: torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, TypeGuard

import torch

from orchestrator.engine import collectives

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def gradient_norm(parameters: Iterable[torch.nn.Parameter]) -> torch.Tensor:
    """The Euclidean norm of all gradients together, a scalar tensor that is the same on every worker.

    Where gradients are sharded (FSDP) this is collective. It is not a number, or infinite, where any
    gradient is.
    """
    grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm([local(one) for one in grads])
    if not any(is_sharded(grad) for grad in grads):
        return norm
    # A worker may hold no element at all: then torch gives a zero on the CPU.
    return collectives.sum_over_ranks(norm.to(grads[0].device).double().square()).sqrt().float()


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[torch.nn.Parameter], max_norm: float | None = None, max_value: float | None = None
) -> torch.Tensor | None:
    """Scale all gradients together down to `max_norm`, then cut each value to ±`max_value`.

    Returns the norm before, where `max_norm` is given (Pascanu et al. 2013, arXiv:1211.5063), and is
    collective then where gradients are sharded.
    """
    parameters = list(parameters)
    norm = None
    grads = [local(parameter.grad) for parameter in parameters if parameter.grad is not None]
    if max_norm is not None:
        norm = gradient_norm(parameters)
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        if grads:
            torch._foreach_mul_(grads, scale)
    if max_value is not None:
        for grad in grads:
            grad.clamp_(-max_value, max_value)
    return norm


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This rank's shard of a sharded tensor, sharing its memory; any other tensor itself."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def is_sharded(tensor: torch.Tensor) -> TypeGuard[DTensor]:
    """By a method that only sharded tensors have: importing their class takes a second."""
    return hasattr(tensor, "to_local")
