from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec import load_spec, render, to_plain
from tests.unit.spec_helpers import FULL_YAML, MINIMAL, faults_of, minimal


def test_a_file_gives_the_spec_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "full.yaml").write_text(FULL_YAML)
    monkeypatch.chdir(tmp_path)
    loaded = load_spec("jobs/full.yaml")
    spec = loaded.spec
    assert loaded.path == Path("jobs/full.yaml")
    assert loaded.search_paths == (str(tmp_path / "jobs"), str(tmp_path))
    assert (spec.name, spec.seed, spec.tags["when"]) == ("full", 7, "2026-11-01")
    assert spec.data.image.size == (28, 28)
    assert spec.train.optimizer.lr == 0.001
    assert spec.train.schedule.warmup_steps == 0.1
    assert spec.resources.start_timeout == 300.0
    assert spec.failure.stop_grace == 90.0
    assert spec.data.clean[2].value == 0  # type: ignore[union-attr]
    assert loaded.document["train"]["max_epochs"] == 3


def test_overrides_go_over_python_overrides_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "full.yaml"
    path.write_text(FULL_YAML)
    loaded = load_spec(
        path, ["train.max_epochs=9", "tags.b=c"], {"train": {"max_epochs": 5, "max_steps": 50}, "seed": 1}
    )
    assert (loaded.spec.train.max_epochs, loaded.spec.train.max_steps, loaded.spec.seed) == (9, 50, 1)
    assert loaded.spec.tags == {"team": "vision", "when": "2026-11-01", "b": "c"}
    assert loaded.document["train"]["max_epochs"] == 9


def test_a_dict_is_read_like_the_yaml_and_not_changed() -> None:
    source = minimal(train={"optimizer": {"kind": "adamw", "betas": (0.9, 0.99)}})
    loaded = load_spec(source, ["train.optimizer.lr=0.5"])
    assert loaded.spec.train.optimizer.lr == 0.5
    assert source["train"] == {"optimizer": {"kind": "adamw", "betas": (0.9, 0.99)}}
    assert loaded.path is None
    assert loaded.search_paths == (str(Path.cwd()),)


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(FULL_YAML.encode())))
    assert load_spec("-").spec.name == "full"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"name: [")))
    assert faults_of("-")[""].file == "standard input"


def test_text_of_the_environment_takes_the_type_of_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"N": "12", "F": "1e-2", "B": "true", "T": "90", "U": "0.25", "NAME": "run-7"}.items():
        monkeypatch.setenv(f"JOB_TEST_{name}", value)
    loaded = load_spec(
        minimal(
            name="${env:JOB_TEST_NAME}",
            description="${env:JOB_TEST_N}",
            tags={"n": "${env:JOB_TEST_N}"},
            train={
                "max_epochs": "${env:JOB_TEST_N}",
                "drop_last": "${env:JOB_TEST_B}",
                "optimizer": {"kind": "sgd", "lr": "${env:JOB_TEST_F}"},
                "schedule": {"warmup_steps": "${env:JOB_TEST_U}"},
            },
            resources={"start_timeout": "${env:JOB_TEST_T}", "num_workers": "${env:JOB_TEST_NONE:-2}"},
        )
    )
    spec = loaded.spec
    assert (spec.name, spec.description, spec.tags) == ("run-7", "12", {"n": "12"})
    assert (spec.train.max_epochs, spec.train.drop_last, spec.train.optimizer.lr) == (12, True, 0.01)
    assert (spec.resources.start_timeout, spec.resources.num_workers) == (90.0, 2)
    assert spec.train.schedule.warmup_steps == 0.25
    assert loaded.env_names == tuple(f"JOB_TEST_{name}" for name in ("B", "F", "N", "NAME", "T", "U"))
    assert loaded.document["train"]["max_epochs"] == "${env:JOB_TEST_N}"


def test_text_of_the_environment_that_does_not_fit_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_TEST_N", "many")
    faults = faults_of(minimal(train={"max_epochs": "${env:JOB_TEST_N}"}))
    assert "must be a whole number" in faults["train.max_epochs"].reason
    monkeypatch.setenv("JOB_TEST_N", "0")
    assert (
        "at least 1, not 0"
        in faults_of(minimal(train={"max_epochs": "${env:JOB_TEST_N}"}))["train.max_epochs"].reason
    )


def test_secrets_from_the_environment_are_named_and_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOB_TEST_TOKEN", "tr0ub4dor")
    loaded = load_spec(minimal(secrets={"TOKEN": "${env:JOB_TEST_TOKEN}"}))
    assert loaded.spec.secrets["TOKEN"].get_secret_value() == "tr0ub4dor"
    assert (loaded.env_names, loaded.secret_env_names) == ((), ("JOB_TEST_TOKEN",))
    assert "tr0ub4dor" not in f"{loaded!r} {loaded.document}"
    assert "literal" not in repr(load_spec(minimal(secrets={"TOKEN": "literal"})))


def test_a_missing_file_names_those_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("name: x")
    fault = faults_of(tmp_path / "digit.yaml")[""]
    assert fault.file == str(tmp_path / "digit.yaml")
    assert str(tmp_path / "digits.yaml") in fault.mend
    assert "is a folder" in faults_of(tmp_path)[""].reason
    assert faults_of(tmp_path / "no" / "where.yaml")[""].mend


def test_what_cannot_be_read(tmp_path: Path) -> None:
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"name: x\n\xff\xfe\x00")
    assert (faults_of(binary)[""].line, "UTF-8" in faults_of(binary)[""].reason) == (2, True)
    large = tmp_path / "large.yaml"
    large.write_bytes(b"#" * 1_000_001)
    assert "larger" in faults_of(large)[""].reason
    assert faults_of("nul\0byte.yaml")
    assert faults_of("x" * 5000)
    assert faults_of(binary / "below")


def test_a_byte_order_mark_does_not_hurt(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + FULL_YAML.encode())
    assert load_spec(path).spec.name == "full"


def test_faults_of_all_sources_come_together(tmp_path: Path) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(
        FULL_YAML.replace("seed: 7", "seed: ${env:NOT_THERE_AT_ALL}").replace("name: mlp", "name: nlp")
    )
    with pytest.raises(SpecError) as caught:
        load_spec(
            path,
            ["nonsense", "train.max_steps=x"],
            {"train": {"max_epochs": object()}, "checkpoint": {"a": 1}},
        )
    places = {(fault.field, fault.file) for fault in caught.value.faults}
    assert places == {
        ("seed", str(path)),
        ("model.name", str(path)),
        ("nonsense", "command line"),
        ("train.max_steps", "command line"),
        ("train.max_epochs", "Python overrides"),
        ("checkpoint.a", "Python overrides"),
    }


def test_the_minimal_job_is_valid() -> None:
    assert load_spec(MINIMAL).spec.train.optimizer.kind == "adamw"


@pytest.mark.parametrize(
    ("written", "limits", "rendered"),
    [("3", (3, 3), 3), ("[1, 4]", (1, 4), [1, 4]), ("[2,2]", (2, 2), [2, 2])],
)
def test_workers_are_a_number_or_a_pair(
    written: str, limits: tuple[int, int], rendered: object, tmp_path: Path
) -> None:
    file = tmp_path / "job.yaml"
    file.write_text(FULL_YAML.replace("num_workers: 2", f"num_workers: {written}"))
    for spec in (load_spec(file).spec, load_spec(minimal(), [f"resources.num_workers={written}"]).spec):
        resources = spec.resources
        assert resources.limits == (resources.min_workers, resources.max_workers) == limits
        assert to_plain(spec)["resources"]["num_workers"] == rendered
    file.write_text(render(spec))
    assert load_spec(file).spec == spec


def test_a_bundle_asks_for_the_accelerator_and_for_nothing_that_is_zero() -> None:
    section = {"use_gpu": True, "accelerator_type": "A100", "resources_per_worker": {"CPU": 0, "memory": 5e9}}
    resources = load_spec(minimal(resources=section)).spec.resources
    assert resources.bundle() == {"GPU": 1, "memory": 5e9, "accelerator_type:A100": 0.001}
