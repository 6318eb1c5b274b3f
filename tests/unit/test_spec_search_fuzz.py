"""Broken searches by the thousand: each is refused in words, or is sound and makes trials."""

from __future__ import annotations

import copy
import random
from typing import Any

from orchestrator.spec import load_spec, to_plain
from orchestrator.spec.space import NoValue
from orchestrator.spec.trials import trial_spec
from tests.unit.test_spec_fuzz import WRONG_VALUES, inside, paths_in, put, refused
from tests.unit.tune_case import SPACE, searching, space_of


def full() -> dict[str, Any]:
    """A job in which every field of `tune` stands."""
    return to_plain(
        load_spec(
            searching(
                SPACE
                | {
                    "train.early_stopping": {"choice": [None, {"patience": 3}]},
                    "seed": {"grid_search": [1, 2]},
                },
                points_to_evaluate=[{"train.optimizer.lr": 0.01}],
                stop={"metric": {"val/accuracy": 0.9}, "plateau": {}, "trial_time": "10m", "patience": 3},
                time_budget="1h",
                seed=3,
            )
        ).spec
    )


def check(document: dict[str, Any]) -> bool:
    """Whether it was refused; what was not makes a trial."""
    if refused(copy.deepcopy(document)):
        return True
    found = load_spec(document)
    if found.spec.tune:
        space = space_of(found)
        for sampled in space.ends():
            try:
                params = space.resolve(sampled)
            except NoValue as error:
                raise AssertionError(str(error)) from error
            trial_spec(found, params)
    return False


def test_wrong_values_at_every_field() -> None:
    document = full()
    paths = [path for path in paths_in(document) if path[0] == "tune"]
    count = sum(check(put(document, path, wrong)) for path in paths for wrong in WRONG_VALUES)
    assert count > 1000


def test_swapped_and_missing_fields_and_strange_paths() -> None:
    document, rng = full(), random.Random(1)
    paths = [path for path in paths_in(document) if path[0] == "tune"]
    count = 0
    for path in paths:
        broken = copy.deepcopy(document)
        del inside(broken, path[:-1])[path[-1]]
        count += check(broken)
    for _ in range(500):
        one, other = rng.sample(paths, 2)
        count += check(put(document, one, copy.deepcopy(inside(document, other))))
    everything = [".".join(map(str, path)) for path in paths_in(document)]
    domains: list[Any] = [
        {"choice": [1, "a", None, [1], {"kind": "sgd"}]},
        {"uniform": [0, 1]},
        {"expr": "seed / 2"},
    ]
    for path in [
        *everything,
        "",
        ".",
        "a..b",
        "train.",
        "data.clean.0",
        "data.clean.x",
        "model.args.0.1",
        "__class__",
    ]:
        for domain in domains:
            count += refused(searching({path: domain}))
            count += refused(searching({"seed": {"choice": [1], "when": {path: 1}}}))
            count += refused(searching({"model.args.x": {"expr": path}}))
    assert count > 500
