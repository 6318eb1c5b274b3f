from __future__ import annotations

import copy

import pytest

from orchestrator.spec.document import Document, Place, parse
from orchestrator.spec.overrides import apply_nested, apply_overrides

TEXT = """\
name: x
tags:
data:
  source: {kind: csv, path: a.csv}
  transforms:
    - kind: standardize
    - {kind: scale, by: 255}
train: {max_epochs: 3}
"""


def document() -> Document:
    read, faults = parse(TEXT, "job.yaml")
    assert not faults
    return read


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("train.max_epochs=5", ("train", "max_epochs"), 5),
        ("train.optimizer.lr=1e-2", ("train", "optimizer", "lr"), 0.01),
        ("tags.team=a=b", ("tags", "team"), "a=b"),
        ("data.transforms.1.by=2", ("data", "transforms", 1, "by"), 2),
        ("data.transforms.2.kind=min_max", ("data", "transforms", 2, "kind"), "min_max"),
        ("data.transforms=[]", ("data", "transforms"), []),
        (
            "data.source={kind: sklearn, name: digits}",
            ("data", "source"),
            {"kind": "sklearn", "name": "digits"},
        ),
        ("resources.num_workers=2", ("resources", "num_workers"), 2),
        ("resources.num_workers=[1,4]", ("resources", "num_workers"), [1, 4]),
        ("name=", ("name",), None),
        (" name = y", ("name",), "y"),
    ],
)
def test_an_override_puts_its_value_there(override: str, path: tuple[str | int, ...], value: object) -> None:
    before = document()
    untouched = copy.deepcopy(before.values)
    after, faults = apply_overrides(before, [override])
    assert faults == []
    found: object = after.values
    for part in path:
        found = found[part]  # type: ignore[index]
    assert found == value
    assert after.place(path) == Place("command line")
    assert after.place(("data", "source", "path") if path != ("data", "source") else ("name",)).file
    assert before.values == untouched


def test_the_last_override_wins_and_the_rest_keeps_its_line() -> None:
    after, _ = apply_overrides(document(), ["train.max_epochs=5", "train.max_epochs=6"])
    assert after.values["train"] == {"max_epochs": 6}
    assert after.place(("data", "transforms", 1, "by")).line == 7


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("train.max_epochs", "key.path=value"),
        ("=3", "key.path=value"),
        ("train..lr=3", "key.path=value"),
        ("", "key.path=value"),
        ("name.first=3", "name is text"),
        ("train.max_epochs.x.y=3", "train.max_epochs is a number"),
        ("data.transforms.first.kind=scale", "is no index"),
        ("data.transforms.-1.kind=scale", "is no index"),
        ("data.transforms.7.kind=scale", "has 2 items"),
        ("train.lr=[1", "not valid YAML"),
        ("train.lr=.nan", "finite"),
    ],
)
def test_a_faulty_override_is_explained_and_left_out(override: str, words: str) -> None:
    after, faults = apply_overrides(document(), [override, "seed=1"])
    assert len(faults) == 1
    assert words in faults[0].reason
    assert faults[0].file == "command line"
    assert faults[0].field
    assert after.values["seed"] == 1


def test_nested_overrides_merge_sections_and_replace_the_rest() -> None:
    after, faults = apply_nested(
        document(),
        {"train": {"max_steps": 9}, "data": {"transforms": [{"kind": "min_max"}]}, "tags": {"a": "b"}},
    )
    assert faults == []
    assert after.values["train"] == {"max_epochs": 3, "max_steps": 9}
    assert after.values["data"]["transforms"] == [{"kind": "min_max"}]
    assert after.values["data"]["source"] == {"kind": "csv", "path": "a.csv"}
    assert after.values["tags"] == {"a": "b"}
    assert after.place(("train", "max_steps")).file == "Python overrides"
    assert after.place(("train", "max_epochs")).line == 8
    assert document().values["train"] == {"max_epochs": 3}


def test_a_nested_override_of_another_kind_replaces_the_section() -> None:
    source = {"kind": "sklearn", "name": "digits"}
    after, _ = apply_nested(document(), {"data": {"source": source}})
    assert after.values["data"]["source"] == source
    after, _ = apply_nested(document(), {"data": {"source": {"kind": "csv", "delimiter": ";"}}})
    assert after.values["data"]["source"] == {"kind": "csv", "path": "a.csv", "delimiter": ";"}


def test_arguments_of_another_network_do_not_merge_with_those_of_the_old_one() -> None:
    values = {"model": {"name": "cnn", "args": {"channels": [8], "dropout": 0.1}}}
    nested = lambda model: apply_nested(Document(values, {}), {"model": model})[0].values["model"]  # noqa: E731
    assert nested({"name": "mlp", "args": {"hidden": [4]}}) == {"name": "mlp", "args": {"hidden": [4]}}
    assert nested({"name": "cnn", "args": {"dropout": 0.2}})["args"] == {"channels": [8], "dropout": 0.2}
    assert nested({"name": "linear"}) == {"name": "linear"}
