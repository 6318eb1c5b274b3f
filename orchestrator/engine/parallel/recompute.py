"""The parts of a model, and computing their activations again instead of keeping them. Imports: torch."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from orchestrator.engine.parallel.batch_norm import BATCH_NORMS


def parts_of(model: nn.Module) -> list[nn.Module]:
    """What a model is cut into, in its own order: its `blocks`, else its direct children that have parameters.

    A list of modules counts as its members; where there is only one child, its children are the parts.
    """
    blocks = getattr(model, "blocks", None)
    if isinstance(blocks, nn.ModuleList):
        return list(blocks)
    parts: list[nn.Module] = []
    for child in model.children():
        members = child.children() if isinstance(child, nn.ModuleList | nn.ModuleDict) else [child]
        parts += [member for member in members if next(member.parameters(), None) is not None]
    if len(parts) == 1 and parts_of(parts[0]):
        return parts_of(parts[0])
    return parts


def recompute_activations(model: nn.Module) -> None:
    """Keep only the inputs of the model's parts; the backward pass computes the rest again.

    Chen et al. 2016 (arXiv:1604.06174). Gradients, dropout and batch statistics stay the same, and so do the
    names of the state.
    """
    for part in dict.fromkeys(parts_of(model)):  # one may stand in two places
        norms = [module for module in part.modules() if isinstance(module, BATCH_NORMS)]
        # Not a closure: a deep copy of the model must call the copied part.
        part.forward = functools.partial(_recomputed, part.forward, norms)


def _recomputed(
    forward: Callable[..., Any], norms: Sequence[BATCH_NORMS], *inputs: Any, **named_inputs: Any
) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **named_inputs)
    if norms:
        named_inputs["context_fn"] = lambda: (contextlib.nullcontext(), _statistics_kept(norms))
    return checkpoint(forward, *inputs, use_reentrant=False, **named_inputs)


@contextlib.contextmanager
def _statistics_kept(norms: Sequence[BATCH_NORMS]) -> Iterator[None]:
    """BatchNorm counts a batch in the forward pass, and not once more when that is repeated."""
    kept = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked = norm.num_batches_tracked.clone()
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, kept, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count
