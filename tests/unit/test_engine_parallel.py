"""What of DDP and FSDP one process can show; the rest is in tests/distributed/test_parallel.py."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from orchestrator.engine.device.precision import Precision
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.parallel.batch_norm import synchronize_batch_norm
from orchestrator.engine.parallel.compression import TrafficMeter
from orchestrator.engine.parallel.gradients import clip_gradients, gradient_norm
from orchestrator.engine.parallel.recompute import parts_of, recompute_activations
from orchestrator.engine.parallel.state import (
    load_model_state,
    load_optimizer_state,
    model_state,
)
from orchestrator.engine.parallel.wrap import bare, no_sync, parallelize, sharded
from orchestrator.errors import CheckpointError, UsageError
from orchestrator.spec.train import Parallel

CPU = torch.device("cpu")
FP32 = Precision("fp32", "cpu")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.4)) for _ in range(3)
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.stem(inputs)
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return hidden


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"strategy": "fsdp", "gradient_compression": "fp16"},
            "gradient_compression: works with strategy ddp",
        ),
        ({"strategy": "fsdp", "static_graph": True}, "static_graph: works with strategy ddp"),
        (
            {"strategy": "fsdp", "find_unused_parameters": True},
            "find_unused_parameters: works with strategy ddp",
        ),
        ({"static_graph": True, "find_unused_parameters": True}, "remove one of static_graph"),
        ({"strategy": "fsdp"}, "sync_batch_norm: true"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parallelize(Residual(), Parallel(**settings), WorkerLink(world_size=2), FP32)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_one_worker_gets_the_model_itself(strategy: str) -> None:
    model, meter = Residual(), TrafficMeter()
    section = Parallel.model_validate({"strategy": strategy, "gradient_compression": "none"})
    parallel = parallelize(model, section, WorkerLink(), FP32, meter)
    assert parallel is model
    assert bare(parallel) is model
    assert not sharded(parallel)
    with no_sync(parallel):
        parallel(torch.ones(2, 6)).sum().backward()
    assert meter.take() == 0


def test_the_parts_of_a_model() -> None:
    model = Residual()
    assert parts_of(model) == list(model.blocks)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    assert parts_of(flat) == [flat[1], flat[3]]
    assert parts_of(nn.Sequential(nn.ReLU(), flat)) == [flat[1], flat[3]]
    listed = nn.Module()
    listed.first, listed.layers = nn.Linear(1, 1), nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
    assert parts_of(listed) == [listed.first, *listed.layers]
    assert parts_of(nn.Linear(1, 1)) == []


def test_recomputing_activations_changes_no_bit() -> None:
    """Gradients with dropout, the running statistics of BatchNorm, the random state and the names."""
    torch.manual_seed(1)
    plain = Residual()
    again = copy.deepcopy(plain)
    recompute_activations(again)
    inputs = torch.randn(5, 6)
    calls = {"plain": 0, "again": 0}
    after = []
    for name, model in (("plain", plain), ("again", again)):
        layer = next(model.blocks[0].children())
        layer.register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
        torch.manual_seed(2)
        for _ in range(2):
            model(inputs).square().sum().backward()
        after.append(torch.rand(3))
    assert torch.equal(*after)
    assert calls == {"plain": 2, "again": 4}, "it was not recomputed"
    for (name, one), (_, other) in zip(plain.named_parameters(), again.named_parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad), name
    assert list(plain.state_dict()) == list(again.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_nothing_is_recomputed_in_evaluation() -> None:
    model = Residual()
    reference = copy.deepcopy(model).eval()
    recompute_activations(model)
    model.eval()
    with torch.no_grad():
        assert torch.equal(model(torch.ones(2, 6)), reference(torch.ones(2, 6)))


@pytest.mark.parametrize("change", [recompute_activations, lambda model: synchronize_batch_norm(model, CPU)])
def test_a_copy_computes_with_its_own_weights(change: Any) -> None:
    model = Residual().eval()
    change(model)
    copied = copy.deepcopy(model)
    before = model(torch.ones(2, 6))
    for parameter in copied.parameters():
        parameter.data.zero_()
    assert torch.equal(model(torch.ones(2, 6)), before)
    assert not torch.equal(copied(torch.ones(2, 6)), before)


def test_one_worker_s_batch_is_the_global_batch() -> None:
    norm = nn.BatchNorm2d(3)
    synchronized = synchronize_batch_norm(copy.deepcopy(norm), CPU)
    inputs = torch.randn(4, 3, 2, 2)
    assert torch.equal(synchronized(inputs), norm(inputs))
    assert torch.equal(synchronized.eval()(inputs), norm.eval()(inputs))


@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_clipping_by_norm_is_torchs(max_norm: float) -> None:
    torch.manual_seed(0)
    model = Residual()
    model(torch.randn(5, 6)).square().sum().backward()
    reference = copy.deepcopy(model)
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        other.grad = None if one.grad is None else one.grad.clone()
    wanted = torch.nn.utils.clip_grad_norm_(reference.parameters(), max_norm)
    assert torch.equal(gradient_norm(model.parameters()), wanted)
    norm = clip_gradients(model.parameters(), max_norm=max_norm)
    assert norm is not None
    assert torch.equal(norm, wanted)
    for one, other in zip(model.parameters(), reference.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        assert torch.equal(one.grad, other.grad)


def test_clipping_by_value_comes_after_the_norm() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, -4.0])
    assert clip_gradients([parameter]) is None
    assert clip_gradients([parameter], max_value=3.5) is None
    assert parameter.grad.tolist() == [3.0, -3.5]
    parameter.grad = torch.tensor([3.0, -4.0])
    assert clip_gradients([parameter], max_norm=2.5, max_value=1.75) == torch.tensor(5.0)
    torch.testing.assert_close(parameter.grad, torch.tensor([1.5, -1.75]))
    parameter.grad = None
    assert clip_gradients([parameter], max_norm=1.0) == torch.tensor(0.0)


def test_a_norm_that_is_no_number_is_told() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([1.0, float("nan")])
    assert gradient_norm([parameter]).isnan()


def test_state_fits_weights_in_another_memory_layout() -> None:
    """A fused optimizer whose state lies otherwise in memory than the weight would take wrong elements."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 4, 2)
    second = copy.deepcopy(first).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    inputs = torch.randn(2, 3, 5, 5)
    optimizers = [torch.optim.AdamW(model.parameters(), lr=0.1, fused=True) for model in (first, second)]

    def step(index: int) -> None:
        (first, second)[index](inputs).square().sum().backward()
        optimizers[index].step()
        optimizers[index].zero_grad(set_to_none=True)

    step(0)
    load_model_state(second, copy.deepcopy(model_state(first)))
    load_optimizer_state(second, optimizers[1], copy.deepcopy(optimizers[0].state_dict()))
    step(0)
    step(1)
    torch.testing.assert_close(second.weight, first.weight)


def test_an_optimizer_of_other_parameters_is_refused() -> None:
    model = Residual()
    saved = torch.optim.SGD(model.parameters(), lr=0.1).state_dict()
    model.stem.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with pytest.raises(CheckpointError, match=r"groups of \[14\] parameters, and this one of \[12\]"):
        load_optimizer_state(model, torch.optim.SGD(trained, lr=0.1), saved)


def test_a_frozen_batch_norm_is_not_synchronized_on_gpus() -> None:
    """Only the conversion is looked at, which needs no GPU."""
    model = nn.Sequential(nn.BatchNorm1d(2), nn.Sequential(nn.BatchNorm1d(2)))
    frozen = model[1][0]
    frozen.requires_grad_(False)
    converted = synchronize_batch_norm(model, torch.device("cuda"))
    assert type(converted[0]) is nn.SyncBatchNorm
    assert converted[1][0] is frozen
