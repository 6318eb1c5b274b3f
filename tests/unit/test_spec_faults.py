from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec import load_spec
from tests.unit.spec_helpers import FULL_YAML, faults_of, minimal


@pytest.mark.parametrize(
    ("sections", "field", "words"),
    [
        ({"train": {"max_epoch": 3}}, "train.max_epoch", "Did you mean 'max_epochs'?"),
        ({"train": {"batch_size": 3}}, "train.batch_size", "'global_batch_size'"),
        ({"train": {"Max-Epochs": 3}}, "train.Max-Epochs", "Did you mean 'max_epochs'?"),
        ({"max_epochs": 3}, "max_epochs", "'max_epochs' belongs under 'train:'"),
        ({"max_epoch": 3}, "max_epoch", "'max_epochs' belongs under 'train:'"),
        ({"train": {"lr": 3}}, "train.lr", "belongs under 'train.optimizer:'"),
        ({"train": {"num_workers": 3}}, "train.num_workers", "belongs under 'resources:'"),
        ({"train": {"storage": "x"}}, "train.storage", "belongs at the top level"),
        ({"mlflow": {"zzz": 1}}, "mlflow.zzz", "tracking_uri, experiment_name, registered_model_name"),
        (
            {"train": {"optimizer": {"kind": "sgd", "betas": [0, 0]}}},
            "train.optimizer.betas",
            "goes with kind: adam or adamw",
        ),
        (
            {"train": {"optimizer": {"lr": 1}}},
            "train.optimizer.kind",
            "is missing. Write one of: sgd, rmsprop",
        ),
        ({"train": {"optimizer": {"kind": "adamv"}}}, "train.optimizer.kind", "Did you mean 'adam"),
        ({"train": {"optimizer": {"kind": 3}}}, "train.optimizer.kind", "adamw, adagrad, not 3"),
        ({"train": {"optimizer": "sgd"}}, "train.optimizer", 'must be a section with keys, not "sgd"'),
        ({"train": {"optimizer": []}}, "train.optimizer", "must be a section with keys, not a list"),
        ({"train": None}, "train", "Remove 'train:', or give it keys"),
        ({"train": {"schedule": {"kind": "cosin"}}}, "train.schedule.kind", "Did you mean 'cosine'?"),
        ({"train": {"schedule": {"warmup_steps": "x"}}}, "train.schedule.warmup_steps", "must be a number"),
        ({"train": {"schedule": {"warmup_steps": -1}}}, "train.schedule.warmup_steps", "at least 0"),
        ({"train": {"max_epochs": "3"}}, "train.max_epochs", "Remove the quotes"),
        ({"train": {"max_epochs": True}}, "train.max_epochs", "must be a whole number, not true"),
        ({"train": {"max_epochs": 3.0}}, "train.max_epochs", "Write 3"),
        ({"train": {"max_epochs": 0}}, "train.max_epochs", "must be at least 1, not 0"),
        ({"train": {"drop_last": "yes"}}, "train.drop_last", "Write true"),
        ({"train": {"drop_last": 1}}, "train.drop_last", "must be true or false, not 1"),
        ({"train": {"clip_grad_norm": 0}}, "train.clip_grad_norm", "must be greater than 0"),
        ({"train": {"metrics": "accuracy"}}, "train.metrics", 'must be a list, not "accuracy"'),
        ({"train": {"metrics": ["acc"]}}, "train.metrics", "no metric is named 'acc'"),
        ({"train": {"loss": "mymodule:"}}, "train.loss.name", "no loss is named"),
        (
            {"train": {"microbatch_size": 65}},
            "train",
            "microbatch_size (65) is larger than global_batch_size (64)",
        ),
        ({"name": "No Spaces"}, "name", "must be 1 to 63 of"),
        ({"description": 3}, "description", "Put it in quotes"),
        ({"tags": {"a": 1}}, "tags.a", "must be text, not 1"),
        ({"seed": -1}, "seed", "at least 0"),
        ({"seed": 2**32}, "seed", "less than"),
        ({"resources": {"start_timeout": "soon"}}, "resources.start_timeout", "'soon' is not a duration"),
        (
            {"resources": {"resources_per_worker": {"CPU": True}}},
            "resources.resources_per_worker.CPU",
            "number",
        ),
        (
            {"resources": {"resources_per_worker": {"CPU": -1}}},
            "resources.resources_per_worker",
            "zero or more",
        ),
        ({"resources": {"resources_per_worker": {"GPU": 1}}}, "resources", "use_gpu"),
        (
            {"resources": {"num_workers": "1:4"}},
            "resources.num_workers",
            "pair [min, max] as in [1, 4], not '1:4'",
        ),
        (
            {"resources": {"num_workers": {"min": 1}}},
            "resources.num_workers",
            "[min, max] as in [1, 4], not a sec",
        ),
        ({"resources": {"num_workers": [1, 2, 3]}}, "resources.num_workers", "it holds 3"),
        ({"resources": {"num_workers": [4, 2]}}, "resources.num_workers", "[min, max]: 2 is less than 4"),
        ({"resources": {"num_workers": [0, 2]}}, "resources.num_workers", "must be at least 1"),
        ({"resources": {"num_workers": 0}}, "resources.num_workers", "must be at least 1"),
        ({"resources": {"num_workers": [1, True]}}, "resources.num_workers", "not True"),
        ({"resources": {"num_workers": None}}, "resources.num_workers", "not None"),
        ({"failure": {"recover_on_exit_codes": [0]}}, "failure.recover_on_exit_codes.0", "at least 1"),
        ({"failure": {"max_retries": 1}}, "failure.max_retries", "Known here: max_failures"),
        (
            {"failure": {"initial_backoff": "2m"}},
            "failure",
            "max_backoff (60 s) is less than initial_backoff",
        ),
        ({"runtime_env": {"env_vars": {"A B": "x"}}}, "runtime_env.env_vars.A B", "environment variable"),
        ({"model": {"name": "resnet18"}}, "model.name", "torchvision/resnet18"),
        ({"model": {"name": "cnn", "args": []}}, "model.args", "must be a section with keys, not a list"),
    ],
)
def test_a_fault_names_the_field_and_the_mend(sections: dict[str, Any], field: str, words: str) -> None:
    faults = faults_of(minimal(**sections))
    assert list(faults) == [field]
    assert words in str(faults[field])


@pytest.mark.parametrize(
    ("data", "field", "words"),
    [
        ({}, "data.source", "is missing"),
        ({"source": {"kind": "sklern"}}, "data.source.kind", "Did you mean 'sklearn'?"),
        ({"source": {"name": "digits"}}, "data.source.kind", "csv"),
        ({"source": {"kind": "csv"}}, "data.source.path", "is missing. Add 'path:' under 'data.source:'"),
        ({"source": {"kind": "csv", "path": ""}}, "data.source.path", "at least 1"),
        ({"source": {"kind": "csv", "path": "a", "delimiter": "ab"}}, "data.source.delimiter", "at most 1"),
        ({"source": {"kind": "linear", "coefficients": []}}, "data.source.coefficients", "at least 1"),
        ({"source": {"kind": "python", "function": "f"}}, "data.source.function", "module:object"),
        ({"path": "x"}, "data.path", "belongs under 'data.source:'"),
        (
            {"clean": [{"kind": "fill_nulls", "value": True}]},
            "data.clean.0.value",
            "a number or text, not true",
        ),
        ({"clean": [{"kind": "drop_nulls"}, {"kind": "x"}]}, "data.clean.1.kind", "drop_duplicates"),
        ({"clean": [{"kind": "drop_nulls", "z": 1}]}, "data.clean.0.z", "goes with kind: drop_outliers"),
        ({"clean": {"kind": "drop_nulls"}}, "data.clean", "must be a list, not a section"),
        ({"image": {"size": [1, "2"]}}, "data.image.size.1", "whole number"),
        ({"image": {"size": [1, 2, 3]}}, "data.image.size", "at most 2"),
        ({"image": {"size": [0, 1]}}, "data.image.size.0", "at least 1"),
        ({"split": {"train": 0.5}}, "data.split", "must be 1, not 0.8"),
        ({"features": ["label"]}, "data", "also among the features"),
        ({"transforms": [{"kind": "scale", "by": 0}]}, "data.transforms.0.by", "greater than 0"),
        ({"transforms": ["standardize"]}, "data.transforms.0", "must be a section with keys"),
        ({"text": {}, "augment": [{"kind": "mixup"}]}, "data", "(mixup) changes numbers"),
        (
            {"source": {"kind": "csv", "path": "a"}, "augment": [{"kind": "mixup"}, {"kind": "flip"}]},
            "data",
            "(flip) changes images, and a source of kind csv has none",
        ),
        (
            {"source": {"kind": "image_folder", "path": "a"}, "augment": [{"kind": "crop", "padding": 32}]},
            "data",
            "of 32×32; write a padding of at most 31",
        ),
    ],
)
def test_faults_of_the_data_section(data: dict[str, Any], field: str, words: str) -> None:
    complete = (
        {"source": {"kind": "sklearn", "name": "digits"}, "target": "label"} if data else {"target": "y"}
    )
    faults = faults_of(minimal(data=complete | data))
    assert words in str(faults[field])
    assert len(faults) == 1


def test_all_faults_come_at_once_each_with_its_line(tmp_path: Path) -> None:
    lines = FULL_YAML.splitlines()
    changes = {
        "seed: 7": "seed: x",
        "  target: label": "  traget: label",
        "    - {kind: drop_outliers, z: 3.5}": "    - {kind: drop_outliers, z: 0}",
        "    mode: grayscale": "    mode: grayscal",
        "  max_epochs: 3": "  max_epochs: ${env:NOT_THERE_AT_ALL}",
        "  num_workers: 2": "  num_workers: 0\n  num_workers: 2",
        "storage: s3://bucket/runs": "storage: [a]",
    }
    spec = tmp_path / "job.yaml"
    spec.write_text("\n".join(changes.get(line, line) for line in lines))
    found = {fault.field: fault.line for fault in faults_of(spec).values()}
    written = spec.read_text().splitlines()

    def line_of(text: str) -> int:
        return next(number for number, line in enumerate(written, 1) if text in line)

    assert found == {
        "seed": line_of("seed: x"),
        "data.target": line_of("data:"),
        "data.traget": line_of("traget"),
        "data.clean.1.z": line_of("drop_outliers"),
        "data.image.mode": line_of("grayscal"),
        "train.max_epochs": line_of("NOT_THERE"),
        "resources.num_workers": line_of("num_workers: 2"),
        "storage": line_of("storage"),
    }


def test_faults_are_printed_as_file_line_field_reason_mend(tmp_path: Path) -> None:
    spec = tmp_path / "job.yaml"
    spec.write_text(FULL_YAML.replace("max_epochs", "max_epoch"))
    with pytest.raises(SpecError) as caught:
        load_spec(spec)
    line = FULL_YAML.splitlines().index("  max_epochs: 3") + 1
    assert str(caught.value) == (
        f"{spec}:{line}: train.max_epoch: is not a known key. Did you mean 'max_epochs'?"
    )


def test_a_secret_is_in_no_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_TEST_SECRET", "tr0ub4dor")
    for secrets in (
        {"bad-name": "tr0ub4dor"},
        {"A": ["tr0ub4dor"]},
        {"A": {"b": "tr0ub4dor"}},
        "tr0ub4dor",
        ["tr0ub4dor"],
        {"bad-name": "${env:JOB_TEST_SECRET}"},
        {"A": "${env:JOB_TEST_SECRET} ${env:NOT_THERE_AT_ALL}"},
    ):
        with pytest.raises(SpecError) as caught:
            load_spec(minimal(secrets=secrets))
        assert "tr0ub4dor" not in f"{caught.value} {caught.value!r} {caught.value.__context__!r}"
    with pytest.raises(SpecError) as caught:
        load_spec(minimal(), ["secrets.bad-name=tr0ub4dor", "secrets.A=[tr0ub4dor"])
    assert "tr0ub4dor" not in str(caught.value)


def test_a_secret_too_short_to_mask_is_refused_and_an_empty_one_is_not() -> None:
    assert "too short" in str(faults_of(minimal(secrets={"A": "abc"}))["secrets"])
    assert load_spec(minimal(secrets={"A": "", "B": "abcd"})).spec.secrets["B"].get_secret_value() == "abcd"


def test_thousands_of_faults_are_cut_short() -> None:
    faults = faults_of(minimal(tags={f"t{n}": n for n in range(5000)}))
    assert len(faults) == 101
    assert "and 4900 more" in str(list(faults.values()))


def test_several_kinds_of_broken_places_are_found_without_a_file() -> None:
    faults = faults_of({})
    assert set(faults) == {"name", "data", "model"}
    assert all(fault.file is None for fault in faults.values())
