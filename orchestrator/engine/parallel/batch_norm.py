"""BatchNorm over the global batch: the same numbers for any number of workers. Imports: torch."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from orchestrator.engine import collectives

BATCH_NORMS = _BatchNorm


def has_batch_norm(model: torch.nn.Module) -> bool:
    """Whether the model keeps batch statistics."""
    return any(isinstance(module, BATCH_NORMS) and module.track_running_stats for module in model.modules())


def synchronize_batch_norm(model: torch.nn.Module, device: torch.device) -> torch.nn.Module:
    """Let all BatchNorm layers take their statistics over all workers; the names of the state stay.

    On GPUs torch's own `SyncBatchNorm`, which works nowhere else. Elsewhere the layers stay, and only what they
    compute in training changes. Every worker must run each layer equally often.
    """
    if device.type == "cuda":
        frozen = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, BATCH_NORMS) and not any(one.requires_grad for one in module.parameters())
        }
        converted: torch.nn.Module = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
        for name, layer in frozen.items():  # which take no batch's statistics at all
            if name and layer.affine:
                converted.set_submodule(name, layer)
        return converted
    for module in model.modules():
        if isinstance(module, BATCH_NORMS):
            # Not a closure: a deep copy of the model must call the copied layer.
            module.forward = functools.partial(_synchronized, module)  # type: ignore[method-assign]
    return model


@contextlib.contextmanager
def own_statistics(model: torch.nn.Module) -> Iterator[None]:
    """Within it the BatchNorm layers take this worker's statistics only, and talk to no other."""
    layers = [module for module in model.modules() if isinstance(module, BATCH_NORMS)]
    kept = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        layer.forward = functools.partial(_own, layer)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for layer, forward in zip(layers, kept, strict=True):
            del layer.forward
            if forward is not None:
                layer.forward = forward  # type: ignore[method-assign]


def _own(layer: _BatchNorm, inputs: torch.Tensor) -> torch.Tensor:
    """Plain BatchNorm; a single value, which has no variance, is taken twice."""
    if layer.training and inputs.numel() == inputs.shape[1]:
        return _BatchNorm.forward(layer, torch.cat([inputs, inputs]))[:1].clone()
    return _BatchNorm.forward(layer, inputs)


def _synchronized(layer: _BatchNorm, inputs: torch.Tensor) -> torch.Tensor:
    """BatchNorm of `inputs`, shape (n, channels, …), by the mean and variance over all workers' samples.

    Ioffe and Szegedy 2015 (arXiv:1502.03167). Two passes, for the variance loses no digits that way.
    """
    if not layer.training or collectives.world_size() == 1:
        outputs: torch.Tensor = type(layer).forward(layer, inputs)
        return outputs
    axes = [axis for axis in range(inputs.dim()) if axis != 1]
    shape = [-1 if axis == 1 else 1 for axis in range(inputs.dim())]
    values = inputs.float()
    count = values.new_tensor([inputs.numel() // inputs.shape[1]])
    sums = _sum_over_ranks(torch.cat([values.sum(axes), count]))
    total = sums[-1].detach()
    mean = sums[:-1] / total
    centred = values - mean.view(shape)
    squares = _sum_over_ranks(centred.square().sum(axes))
    if layer.track_running_stats:
        _update(layer, mean.detach(), (squares / (total - 1).clamp(min=1)).detach())
    normal = centred * torch.rsqrt(squares / total + layer.eps).view(shape)
    if layer.affine:
        normal = normal * layer.weight.float().view(shape) + layer.bias.float().view(shape)
    return normal.to(inputs.dtype)


@torch.no_grad()
def _update(layer: _BatchNorm, mean: torch.Tensor, variance: torch.Tensor) -> None:
    """Move the running statistics; `variance` is the unbiased one. Without a momentum they are plain means."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    layer.num_batches_tracked.add_(1)
    share = 1.0 / float(layer.num_batches_tracked) if layer.momentum is None else layer.momentum
    layer.running_mean.lerp_(mean.to(layer.running_mean.dtype), share)
    layer.running_var.lerp_(variance.to(layer.running_var.dtype), share)


class _SumOverRanks(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return collectives.sum_over_ranks(values.clone())

    @staticmethod
    def backward(_ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return collectives.sum_over_ranks(gradient.clone())


def _sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """y = Σ x over the ranks. Every rank's loss depends on every x, so the gradients are summed as well."""
    total: torch.Tensor = _SumOverRanks.apply(values)  # type: ignore[no-untyped-call]
    return total
