from __future__ import annotations

from pathlib import Path

import yaml

from orchestrator.runs.identity import Identity, code_hash, differences, identify
from tests.unit.runs_helpers import identity_of, make_spec


def test_free_keys_do_not_count_and_all_others_do() -> None:
    base = identity_of(make_spec())
    for same in (
        {"train": {"max_epochs": 50, "max_steps": 7}},
        {"resources": {"num_workers": 3}},
        {"resources": {"num_workers": [1, 4]}},
        {"failure": {"max_failures": 9}},
        {"checkpoint": {"num_to_keep": 5}},
        {"storage": "elsewhere"},
        {"description": "new words"},
    ):
        assert identity_of(make_spec(**same)) == base, same
    data = make_spec().model_dump(mode="json")["data"]
    for free in ({"quality": {"report": False}}, {"preparation": {"by": "ray"}}):
        assert identity_of(make_spec(data=data | free)) == base, free
    assert identity_of(make_spec(data=data | {"preparation": {"chunk_size": 10**6}})) != base
    for other, section in (
        ({"seed": 1}, "seed"),
        ({"model": {"name": "mlp"}}, "model"),
        ({"train": {"max_epochs": 5, "optimizer": {"kind": "sgd"}}}, "train"),
        ({"data": {"source": {"kind": "sklearn", "name": "digits"}, "target": "y"}}, "data"),
    ):
        changed = identity_of(make_spec(**other))
        assert changed.hash != base.hash
        assert [name for name in base.sections if base.sections[name] != changed.sections[name]] == [section]
    assert (
        identify(make_spec(), "other-data", []).sections["data_fingerprint"]
        != base.sections["data_fingerprint"]
    )
    assert Identity.from_dict(base.to_dict()) == base


def test_code_hash_covers_every_module_that_the_spec_names(tmp_path: Path) -> None:
    spec = make_spec(
        data={"source": {"kind": "python", "function": "rows:read"}, "target": "y"},
        model={"name": "nets:Net"},
        train={"loss": "losses:Loss", "metrics": ["accuracy", "scores:Score"]},
    )
    names = ("rows.py", "nets.py", "losses.py", "scores.py", "helper.py")
    for name in names:
        (tmp_path / name).write_text("import helper\n" if name == "scores.py" else "")
    hashes = {code_hash(spec, [str(tmp_path)])}
    for name in names:
        (tmp_path / name).write_text("import helper  # changed\n")
        hashes.add(code_hash(spec, [str(tmp_path)]))
    assert len(hashes) == 1 + len(names)
    sections = identify(spec, "same-data", [str(tmp_path)]).sections
    assert sections["code"] != identify(spec, "same-data", []).sections["code"]


def test_differences_name_keys_with_old_and_new_values() -> None:
    old, new = (
        make_spec(),
        make_spec(seed=3, train={"max_epochs": 9, "optimizer": {"kind": "adamw", "lr": 0.5}}),
    )
    text = yaml.safe_dump(old.model_dump(mode="json"))
    told = differences(identity_of(old), identify(new, "other", []), text, new)
    assert told == ["the content of the data changed", "seed: 0 → 3", "train.optimizer.lr: 0.001 → 0.5"]
    assert differences(identity_of(old), identity_of(new)) == ["seed changed", "train changed"]
    assert differences(identity_of(old), identity_of(new), "{", new) == ["seed changed", "train changed"]
    assert differences(identity_of(old), identity_of(old), text, old) == []


def test_what_a_search_searches_counts_and_how_long_does_not() -> None:
    def searching(
        scheduler: str = "asha", train: dict[str, object] | None = None, **tune: object
    ) -> Identity:
        section = {
            "param_space": {"train.optimizer.lr": {"uniform": [0.1, 0.2]}},
            "search_alg": {"kind": "random"},
            "scheduler": {"kind": scheduler},
        }
        return identity_of(make_spec(tune=section | tune, train={"max_epochs": 9} | (train or {})))

    base = searching()
    assert base.sections["tune"]
    assert "tune" not in identity_of(make_spec()).sections
    for same in (
        {"num_samples": 99},
        {"time_budget": 60.0},
        {"max_concurrent_trials": 2},
        {"max_equal_failures": 3},
        {"recycle_worker_at": 10**9},
        {"then": "nothing"},
    ):
        assert searching(**same) == base, same
    for other in (
        {"param_space": {"train.optimizer.lr": {"uniform": [0.1, 0.3]}}},
        {"metric": "val/accuracy"},
        {"mode": "max"},
        {"seed": 5},
        {"search_alg": {"kind": "optuna"}},
        {"scheduler": "fifo"},
        {"stop": {"patience": 5}},
        {"points_to_evaluate": [{"train.optimizer.lr": 0.15}]},
    ):
        changed = searching(**other)  # type: ignore[arg-type]
        assert [name for name in base.sections if base.sections[name] != changed.sections[name]] == ["tune"]
    assert searching(train={"max_epochs": 10}).sections["train"] != base.sections["train"]
    for scheduler in ("pbt", "pb2", "hyperband"):
        assert searching(scheduler) != searching(scheduler, num_samples=99)
    told = differences(
        base,
        searching(metric="val/accuracy"),
        yaml.safe_dump(make_spec(tune={"param_space": {"seed": {"choice": [1]}}}).model_dump(mode="json")),
        make_spec(tune={"param_space": {"seed": {"choice": [2]}}, "metric": "val/accuracy"}),
    )
    assert "tune.param_space.seed.choice.0: 1 → 2" in told
    assert "tune.metric: val/loss → val/accuracy" in told
