from __future__ import annotations

from typing import Any

import pytest

from orchestrator.spec.space import NoValue
from tests.unit.tune_case import SPACE, loaded, space_of

SAMPLED = {
    "train.optimizer.lr": 0.01,
    "train.global_batch_size": 64,
    "train.optimizer.kind": "sgd",
    "train.optimizer.momentum": 0.8,
}


def test_a_trial_has_what_holds_and_what_follows() -> None:
    space = space_of(loaded())
    assert list(space.domains) == list(SPACE)[:-1]
    assert not space.has_grid
    assert space.resolve(SAMPLED) == {**SAMPLED, "train.schedule.warmup_steps": 64}
    assert list(space.resolve(SAMPLED)) == list(SPACE)
    other = space.resolve(SAMPLED | {"train.optimizer.kind": "adamw"})
    assert "train.optimizer.momentum" not in other
    assert space.is_active("train.optimizer.momentum", SAMPLED)
    assert not space.is_active("train.optimizer.momentum", {"train.optimizer.kind": "adamw"})
    assert not space.is_active("train.optimizer.momentum", {})
    assert space.is_active("train.optimizer.lr", {})


def test_conditions_and_expressions_reach_into_fixed_fields_and_one_another() -> None:
    space = space_of(
        loaded(
            {
                "train.schedule.warmup_steps": {"expr": "train.global_batch_size * 2", "when": {"seed": 0}},
                "train.global_batch_size": {"expr": "train.max_epochs + model.args.hidden.0"},
                "model.args.hidden": {"choice": [[64], [128, 64]]},
                "train.clip_grad_norm": {"choice": [None, 1.0], "when": {"train.ema": None}},
                "train.clip_grad_value": {"choice": [1, 2], "when": {"train.clip_grad_norm": [1, 2]}},
                "train.loss.gamma": {"choice": [1.5], "when": {"train.clip_grad_value": 2, "seed": [0, 1]}},
            }
        )
    )
    sampled = {
        "model.args.hidden": [128, 64],
        "train.clip_grad_norm": 1.0,
        "train.clip_grad_value": 2,
        "train.loss.gamma": 1.5,
    }
    assert space.resolve(sampled) == {
        "train.schedule.warmup_steps": 296,
        "train.global_batch_size": 148,
        **sampled,
    }
    # With the first condition of the chain falls the whole of it.
    assert list(space.resolve(sampled | {"train.clip_grad_norm": None}))[2:] == [
        "model.args.hidden",
        "train.clip_grad_norm",
    ]


def test_a_value_that_is_a_section_answers_for_what_lies_in_it() -> None:
    space = space_of(
        loaded(
            {
                "train.optimizer": {"choice": [{"kind": "sgd", "lr": 0.1}, {"kind": "adamw"}]},
                "train.optimizer.momentum": {"uniform": [0, 0.9], "when": {"train.optimizer.kind": "sgd"}},
            }
        )
    )
    assert len(space.resolve({"train.optimizer": {"kind": "sgd"}, "train.optimizer.momentum": 0.5})) == 2
    assert len(space.resolve({"train.optimizer": {"kind": "adamw"}, "train.optimizer.momentum": 0.5})) == 1


def test_numbers_of_numpy_become_pythons() -> None:
    import numpy as np

    found = space_of(loaded()).resolve(
        SAMPLED | {"train.optimizer.lr": np.float64(0.5), "train.global_batch_size": np.int64(32)}
    )
    assert {type(value) for value in found.values()} == {float, int, str}
    assert found["train.schedule.warmup_steps"] == 128


def test_an_expression_without_a_value_names_its_parameter() -> None:
    space = space_of(loaded({
        "train.optimizer.kind": {"choice": ["sgd", "adamw"]},
        "train.global_batch_size": {"choice": [3, 64]},
        "train.schedule.warmup_steps": {"expr": "100 // (train.global_batch_size - 2)"},
    }))  # fmt: skip
    with pytest.raises(NoValue) as caught:
        space.resolve({"train.global_batch_size": 2})
    assert str(caught.value) == (
        "train.schedule.warmup_steps: divides by zero (with train.global_batch_size = 2)"
    )
    with pytest.raises(NoValue, match="global_batch_size has no value here"):
        space.resolve({})


def grid(**params: Any) -> dict[str, Any]:
    return {f"model.args.{name}": values for name, values in params.items()}


def test_a_grid_is_walked_the_last_one_fastest() -> None:
    space = space_of(
        loaded(grid(a={"grid_search": [1, 2]}, b={"grid_search": ["x", "y"]}, c={"uniform": [0, 1]}))
    )
    points = [tuple(point.values()) for point in space.grid_points()]
    assert points == [(1, "x"), (1, "y"), (2, "x"), (2, "y")]
    assert space.has_grid
    assert space.num_trials(3) == 12
    assert space_of(loaded()).grid_points() == [{}]


def test_points_of_a_grid_in_which_a_condition_does_not_hold_are_one() -> None:
    when = {"model.args.a": 1}
    space = space_of(loaded(grid(b={"grid_search": [5, 6], "when": when}, a={"grid_search": [1, True, [1]]})))
    assert [dict(point) for point in space.grid_points()] == [
        grid(b=5, a=1), grid(a=True), grid(a=[1]), grid(b=6, a=1),
    ]  # fmt: skip
    drawn = space_of(loaded(grid(b={"grid_search": [5, 6], "when": when}, a={"choice": [1, 2]})))
    assert len(drawn.grid_points()) == 2
    fixed = space_of(loaded(grid(b={"grid_search": [5, 6], "when": {"seed": 0}})))
    assert len(fixed.grid_points()) == 2
