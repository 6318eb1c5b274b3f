"""Learning rates against torch's own schedulers, and against formulas written out here."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.optim import lr_scheduler as reference

from orchestrator.engine.optim.schedule import Scheduler, learning_rate_factor
from orchestrator.errors import UsageError
from orchestrator.spec.optim import Schedule

LR, GROUP_LR = 0.1, 0.02


def optimizer() -> torch.optim.Optimizer:
    """Of two groups, the second with a learning rate of its own."""
    groups: list[dict[str, Any]] = [
        {"params": [torch.zeros(1)]},
        {"params": [torch.zeros(1)], "lr": GROUP_LR},
    ]
    return torch.optim.SGD(groups, lr=LR)


def rates(scheduler: Any, optimizer: torch.optim.Optimizer, steps: int) -> list[list[float]]:
    """Of both groups, before each step."""
    found = []
    for _ in range(steps):
        found.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return found


def ours(steps: int, total_steps: int = 24, **section: Any) -> list[list[float]]:
    made = optimizer()
    scheduler = Scheduler(Schedule(**section), made, total_steps=total_steps, steps_per_epoch=6)
    return rates(scheduler, made, steps)


def theirs(steps: int, build: Any) -> list[list[float]]:
    made = optimizer()
    return rates(build(made), made, steps)


def both(got: list[list[float]], wanted: list[list[float]]) -> None:
    assert [pair[0] for pair in got] == pytest.approx([pair[0] for pair in wanted])
    assert [pair[1] for pair in got] == pytest.approx([pair[1] for pair in wanted])


def test_constant_and_step_are_torchs() -> None:
    both(ours(24), theirs(24, lambda made: reference.ConstantLR(made, factor=1.0)))
    wanted = theirs(24, lambda made: reference.StepLR(made, step_size=12, gamma=0.5))
    both(ours(24, kind="step", step_epochs=2, gamma=0.5), wanted)


def test_cosine_and_linear_are_torchs() -> None:
    both(ours(25, kind="cosine"), theirs(25, lambda made: reference.CosineAnnealingLR(made, T_max=24)))
    wanted = theirs(30, lambda made: reference.LinearLR(made, 1.0, end_factor=0.2, total_iters=24))
    both(ours(30, kind="linear", min_lr=0.2 * LR), wanted)


@pytest.mark.parametrize("kind", ["constant", "cosine", "linear"])
def test_warm_up_goes_before(kind: str) -> None:
    def build(made: torch.optim.Optimizer) -> Any:
        warm_up = reference.LinearLR(made, start_factor=1 / 5, total_iters=4)
        after: Any = reference.ConstantLR(made, factor=1.0) if kind == "constant" else None
        if kind == "cosine":
            after = reference.CosineAnnealingLR(made, T_max=20)
        if kind == "linear":
            after = reference.LinearLR(made, 1.0, end_factor=1e-9, total_iters=20)
        return reference.SequentialLR(made, [warm_up, after], milestones=[4])

    wanted = theirs(24, build)
    both(ours(24, kind=kind, warmup_steps=4, min_lr=1e-9 * LR if kind == "linear" else 0.0), wanted)


def test_cosine_with_warm_up_is_the_formula() -> None:
    section = Schedule(kind="cosine", warmup_steps=4, min_lr=0.01)
    factor = learning_rate_factor(section, base_lr=0.1, total_steps=24, steps_per_epoch=6)
    assert [factor(step) for step in range(4)] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    for step in range(4, 24):
        lr = 0.01 + (0.1 - 0.01) * 0.5 * (1 + math.cos(math.pi * (step - 4) / 20))
        assert 0.1 * factor(step) == pytest.approx(lr)
    assert 0.1 * factor(24) == pytest.approx(0.01)


def test_warm_up_as_a_share_and_steps_by_epochs() -> None:
    section = Schedule(kind="step", warmup_steps=0.1, step_epochs=2, gamma=0.5)
    factor = learning_rate_factor(section, base_lr=1.0, total_steps=100, steps_per_epoch=10)
    assert factor(0) == pytest.approx(1 / 11)
    assert [factor(step) for step in (10, 19, 20, 39, 40, 99)] == [1, 1, 0.5, 0.5, 0.25, 0.5**4]


@pytest.mark.parametrize("total_steps", [8, 24, 101])
@pytest.mark.parametrize("pct_start", [0.3, 0.5, 0.9])
def test_one_cycle_is_torchs(total_steps: int, pct_start: float) -> None:
    wanted = theirs(
        total_steps,
        lambda made: reference.OneCycleLR(
            made,
            max_lr=[LR, GROUP_LR],
            total_steps=total_steps,
            pct_start=pct_start,
            div_factor=10.0,
            final_div_factor=100.0,
            cycle_momentum=False,
        ),
    )
    got = ours(
        total_steps,
        total_steps,
        kind="one_cycle",
        pct_start=pct_start,
        div_factor=10.0,
        final_div_factor=100.0,
    )
    both(got, wanted)
    assert max(pair[0] for pair in got) <= LR
    assert got[-1][0] == pytest.approx(LR / 1000)


@pytest.mark.parametrize("total_steps", [1, 2, 3])
def test_one_cycle_of_few_steps_begins_at_the_peak(total_steps: int) -> None:
    got = ours(total_steps + 1, total_steps, kind="one_cycle")
    assert got[0] == [LR, GROUP_LR]
    assert all(math.isfinite(rate) for pair in got for rate in pair)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_plateau_is_torchs(mode: Any) -> None:
    values = [5.0, 4.0, 4.0, 4.5, 4.0, 3.99999, 3.9, 3.9, math.nan, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4]
    section = Schedule(kind="plateau", patience=2, gamma=0.5, mode=mode, min_lr=0.01)
    mine, other = optimizer(), optimizer()
    scheduler = Scheduler(section, mine, total_steps=100, steps_per_epoch=10)
    wanted = reference.ReduceLROnPlateau(
        other, mode, factor=0.5, patience=2, min_lr=[0.1 * LR, 0.1 * GROUP_LR]
    )
    for index, value in enumerate(values):
        scheduler.plateau(value if mode == "min" else 10 - value)
        wanted.step(value if mode == "min" else 10 - value)
        scheduler.step()  # steps change nothing after the warm-up
        for one, theirs in zip(mine.param_groups, other.param_groups, strict=True):
            assert one["lr"] == pytest.approx(theirs["lr"]), index
    assert mine.param_groups[0]["lr"] == pytest.approx(0.01)
    assert scheduler.metric == "val/loss"


def test_the_state_goes_on_where_it_was() -> None:
    section = Schedule(kind="plateau", warmup_steps=4, patience=1, gamma=0.5)
    first, second = optimizer(), optimizer()
    one = Scheduler(section, first, total_steps=20, steps_per_epoch=5)
    for value in (1.0, 2.0, 2.0, 2.0):
        one.step()
        one.plateau(value)
    other = Scheduler(section, second, total_steps=20, steps_per_epoch=5)
    second.load_state_dict(first.state_dict())
    other.load_state_dict(one.state_dict())
    assert other.factor == 0.5
    for value in (2.0, 2.0):
        assert [group["lr"] for group in first.param_groups] == [group["lr"] for group in second.param_groups]
        for scheduler in (one, other):
            scheduler.step()
            scheduler.plateau(value)
    assert second.param_groups[1]["lr"] == GROUP_LR * 0.25


def test_other_schedules_take_no_notice_of_metrics() -> None:
    made = optimizer()
    scheduler = Scheduler(Schedule(), made, total_steps=10, steps_per_epoch=5)
    for _ in range(10):
        scheduler.plateau(1.0)
    assert scheduler.metric is None
    assert made.param_groups[0]["lr"] == LR


def test_a_floor_above_the_rate_is_refused() -> None:
    with pytest.raises(UsageError, match=r"min_lr \(0.2\) is above train.optimizer.lr \(0.1\)"):
        ours(1, kind="cosine", min_lr=0.2)
