"""Convolutions that are computed as linear layers give what torch's give, and their gradients."""

from __future__ import annotations

import copy

import pytest
import torch

from orchestrator.engine.device.tiny_maps import speed_up_tiny_maps


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [
        ((1, 1), 3, 1, 1),
        ((2, 2), 3, 2, 1),
        ((1, 2), 3, 2, 1),
        ((4, 4), 4, 1, 0),
        ((1, 1), 1, 1, 0),
        ((1, 1), 1, 2, 0),
        ((3, 1), (3, 1), 1, 0),
        ((2, 1), (2, 5), 3, (0, 2)),
        ((5, 5), 3, 1, 1),
        ((2, 1), 3, 1, 1),
        ((1, 1), 2, 1, 1),
    ],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_outputs_and_gradients(
    size: tuple[int, int], kernel: object, stride: int, padding: object, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(5, 4, kernel, stride, padding).to(memory_format=layout)  # type: ignore[arg-type,call-overload]
    fast = copy.deepcopy(plain)
    speed_up_tiny_maps(fast)
    inputs = [torch.randn(3, 5, *size).to(memory_format=layout).requires_grad_() for _ in range(1)]
    inputs.append(inputs[0].detach().clone().requires_grad_())
    outputs = [net(one) for net, one in zip((plain, fast), inputs, strict=True)]
    torch.testing.assert_close(outputs[1], outputs[0])
    weights = torch.randn_like(outputs[0])
    for one in outputs:
        (one * weights).sum().backward()
    torch.testing.assert_close(inputs[1].grad, inputs[0].grad)
    for one, other in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_others_are_left_alone() -> None:
    nets = [
        torch.nn.Conv2d(4, 4, 3, groups=2),
        torch.nn.Conv2d(4, 4, 3, dilation=2),
        torch.nn.Conv2d(4, 4, 3, padding="same"),
        torch.nn.Conv2d(4, 4, 3, padding_mode="circular", padding=1),
        torch.nn.Conv1d(4, 4, 3),
    ]
    speed_up_tiny_maps(torch.nn.ModuleList(nets))
    assert all("forward" not in vars(net) for net in nets)
    model = torch.nn.Conv2d(2, 2, 3)
    names = list(model.state_dict())
    speed_up_tiny_maps(model)
    assert list(model.state_dict()) == names
