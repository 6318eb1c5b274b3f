"""Convolutions with a single output position, computed as linear layers. Imports: torch.

Where a feature map has shrunk to a pixel or so, as in the last stage of a ResNet on 32 × 32 images, the CPU's
convolutions (oneDNN) take ten times as long as the matrix product that is left of them. The result is the same
but for the order of the sums.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F


def speed_up_tiny_maps(model: torch.nn.Module) -> None:
    """Let the model's plain convolutions choose the faster way by the size of each input. For CPUs."""
    for module in model.modules():
        if (
            type(module) is torch.nn.Conv2d
            and module.groups == 1
            and module.dilation == (1, 1)
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
        ):
            module.forward = functools.partial(_convolve, module)  # type: ignore[method-assign]


def _convolve(conv: torch.nn.Conv2d, inputs: torch.Tensor) -> torch.Tensor:
    if inputs.ndim == 4:
        taps = [
            _only_taps(
                inputs.shape[2 + axis], conv.kernel_size[axis], conv.stride[axis], int(conv.padding[axis])
            )
            for axis in (0, 1)
        ]
        if taps[0] is not None and taps[1] is not None:
            (rows, top), (columns, left) = taps[0], taps[1]
            weight = conv.weight[
                :, :, top : top + rows.stop - rows.start, left : left + columns.stop - columns.start
            ]
            seen = inputs[:, :, rows, columns]
            return F.linear(seen.flatten(1), weight.flatten(1), conv.bias)[:, :, None, None]
    return F.conv2d(inputs, conv.weight, conv.bias, conv.stride, conv.padding)


def _only_taps(size: int, kernel: int, stride: int, padding: int) -> tuple[slice, int] | None:
    """Along one axis with a single output position: the inputs that it sees, and the kernel's first tap on them;
    None where there are more positions."""
    if (size + 2 * padding - kernel) // stride:
        return None
    first = max(0, -padding)
    last = min(size, kernel - padding)
    return (slice(first, last), first + padding) if last > first else None
