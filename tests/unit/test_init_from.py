"""Where `init_from` finds weights: runs, files, bundles, MLflow; that they are whole; and their part in identity."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pytest
import torch
from torch import nn

from orchestrator.data.features.pipeline import Pipeline
from orchestrator.data.features.schema import RawSchema
from orchestrator.errors import CheckpointError, UsageError
from orchestrator.export.bundle import write_bundle
from orchestrator.export.manifest import pyfunc_fields
from orchestrator.models.build import build_model
from orchestrator.models.init_from import load_initial, placed_weights
from orchestrator.runners.init_from import InitialWeights, fetch_initial, place_initial
from orchestrator.runs.folder import RunFolder, RunRecord
from orchestrator.runs.identity import differences, identify
from orchestrator.spec.model import InitFromSection, ModelSection
from orchestrator.storage import Folder
from orchestrator.tracking import LogModel, RunState, SinkUnavailable, StartRun
from orchestrator.tracking.mlflow_sink import MlflowSink, connect
from tests.unit.runs_helpers import identity_of, make_spec

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

NUMBERS = Pipeline(RawSchema("table", ("x1", "x2"), ("float64", "float64")))
LINEAR = ModelSection(name="linear")


def network(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return build_model(LINEAR, (2,), 1)


def bundle(folder: Folder, seed: int = 1) -> nn.Module:
    """A bundle of a model of this seed; gives the model."""
    model = network(seed)
    write_bundle(
        folder,
        model=LINEAR,
        model_state=model.state_dict(),
        pipeline=NUMBERS,
        task="regression",
        num_outputs=1,
        input_example=pa.table({"x1": [0.5], "x2": [1.0]}),
    )
    return model


def finished_run(storage: Folder, number: int, seed: int) -> RunFolder:
    run = RunFolder(storage, "digits", number)
    run.write_record(RunRecord("digits", number))
    bundle(run.model, seed)
    return run


def fetch(
    uri: str, storage: Folder, tmp_path: Path, tracking_uri: str = "http://127.0.0.1:9"
) -> InitialWeights:
    temporary = tmp_path / "temporary"
    temporary.mkdir(parents=True, exist_ok=True)
    return fetch_initial(InitFromSection(uri=uri), storage, tracking_uri, temporary)


def seed_of(file: Path) -> int:
    """Of the made-up models, the one whose weights a file holds."""
    model = network(0)
    assert load_initial(model, file) == []
    (seed,) = [
        seed
        for seed in range(1, 9)
        if all(torch.equal(a, b) for a, b in zip(model.parameters(), network(seed).parameters(), strict=True))
    ]
    return seed


def remote(tmp_path: Path) -> Folder:
    return Folder(pafs._MockFileSystem(datetime.now(UTC)), "runs")


def local(tmp_path: Path) -> Folder:
    return Folder.at(tmp_path / "runs")


@pytest.mark.parametrize("storage_at", [local, remote])
def test_a_run_by_its_name(storage_at: Any, tmp_path: Path) -> None:
    storage = storage_at(tmp_path)
    for number in (1, 2):
        finished_run(storage, number, seed=number)
    initial = fetch("digits-2", storage, tmp_path)
    assert seed_of(initial.file) == 2
    assert initial.sha256 == hashlib.sha256(initial.file.read_bytes()).hexdigest()
    assert initial.source == "digits-2"

    run = RunFolder(storage, "cats", 1)
    place_initial(initial, run)
    placed = placed_weights(run.init, tmp_path / "worker")
    assert (placed.name, seed_of(placed)) == (f"weights-{initial.sha256[:16]}.safetensors", 2)


def test_a_resumed_run_keeps_the_file_that_it_has(tmp_path: Path) -> None:
    storage = local(tmp_path)
    finished_run(storage, 1, seed=1)
    initial, run = fetch("digits-1", storage, tmp_path), RunFolder(storage, "cats", 1)
    place_initial(initial, run)
    before = placed_weights(run.init, tmp_path).stat()
    place_initial(initial, run)
    assert placed_weights(run.init, tmp_path).stat().st_ino == before.st_ino


@pytest.mark.parametrize("name", ["w.pt", "w.pth"])
def test_a_file(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"model": network(3).state_dict()}, tmp_path / name)
    run = RunFolder(local(tmp_path), "cats", 1)
    monkeypatch.chdir(tmp_path)
    for uri in (name, str(tmp_path / name)):
        place_initial(fetch(uri, local(tmp_path), tmp_path), run)
        placed = placed_weights(run.init, tmp_path)
        assert (placed.suffix, seed_of(placed)) == (Path(name).suffix, 3)


@pytest.mark.parametrize("inside", ["", "model"])
def test_a_folder_with_a_bundle_or_with_one_file(inside: str, tmp_path: Path) -> None:
    bundle(Folder.at(tmp_path / "there" / inside), seed=4)
    torch.save({}, tmp_path / "there" / "other.pt")
    assert seed_of(fetch(str(tmp_path / "there"), local(tmp_path), tmp_path).file) == 4
    step = tmp_path / "step-000000010"
    step.mkdir()
    torch.save({"model": network(5).state_dict()}, step / "state.pt")
    assert seed_of(fetch(str(step), local(tmp_path), tmp_path).file) == 5


def test_a_file_by_uri(tmp_path: Path) -> None:
    torch.save(network(6).state_dict(), tmp_path / "w.pt")
    assert seed_of(fetch((tmp_path / "w.pt").as_uri(), local(tmp_path), tmp_path).file) == 6


def test_a_damaged_bundle_is_refused(tmp_path: Path) -> None:
    run = finished_run(local(tmp_path), 1, seed=1)
    file = run.model.local_path() / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        fetch("digits-1", local(tmp_path), tmp_path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    storage = local(tmp_path)
    with pytest.raises(UsageError, match=r"'digits-9' is neither a run in .* no runs yet"):
        fetch("digits-9", storage, tmp_path)
    finished_run(storage, 1, seed=1)
    unfinished = RunFolder(storage, "digits", 2)
    unfinished.write_record(RunRecord("digits", 2))
    (tmp_path / "empty").mkdir()
    (tmp_path / "two").mkdir()
    for name in ("a.pt", "b.pt", "c.txt"):
        (tmp_path / "two" / name).write_bytes(b"")
    for uri, said in (
        ("digits", "known runs: digits-1, digits-2"),  # the newest one may be the run itself
        ("digits-2", r"digits-2 has no model.*state\.pt"),
        (str(tmp_path / "empty"), "holds no weights"),
        (str(tmp_path / "two"), r"several: a\.pt, b\.pt"),
        (str(tmp_path / "two" / "c.txt"), r"no file of weights.*\.safetensors"),
        (f"file://{tmp_path}/absent.pt", "there is no file"),
        ("models:/digits", "names no model.*@<alias>"),
        ("runs:/", "names no model"),
    ):
        with pytest.raises(UsageError, match=said) as caught:
            fetch(uri, storage, tmp_path)
        assert str(caught.value).startswith("init_from.uri: ")


@pytest.fixture(scope="module")
def mlflow_uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store with an experiment's run `run` in it, and models of the seeds 1 and 2 in that order, registered as
    digits 1 (alias champion) and 2."""
    folder = tmp_path_factory.mktemp("store")
    sink = MlflowSink(f"sqlite:///{folder}/mlflow.db")
    state = sink.apply(StartRun("digits", "digits-1", {}, {}, "", key="digits-1.k", time_ms=1000), RunState())
    for seed in (1, 2):
        place = folder / f"model{seed}"
        bundle(Folder.at(place), seed)
        op = LogModel(str(place), "model", registered_model_name="digits", **pyfunc_fields(place))
        state = sink.apply(replace(op, code_paths=()), state)
        shutil.rmtree(place)
    client = connect(sink.tracking_uri)
    client.set_registered_model_alias("digits", "champion", "1")
    client.set_experiment_tag(state.experiment_id, "run", state.run_id)
    return sink.tracking_uri


def test_registered_models_and_runs_of_mlflow(mlflow_uri: str, tmp_path: Path) -> None:
    client = connect(mlflow_uri)
    experiment = client.get_experiment_by_name("digits")
    run_id = experiment.tags["run"]
    newest = max(
        client.search_logged_models([experiment.experiment_id]), key=lambda model: model.creation_timestamp
    )
    for number, (uri, seed) in enumerate(
        {
            "models:/digits@champion": 1,
            "models:/digits/1": 1,
            "models:/digits/2": 2,
            f"models:/{newest.model_id}": 2,
            f"runs:/{run_id}": 2,
            f"runs:/{run_id}/model": 2,
        }.items()
    ):
        initial = fetch(uri, local(tmp_path), tmp_path / str(number), mlflow_uri)
        assert seed_of(initial.file) == seed, uri
        assert initial.file.is_relative_to(tmp_path)


def test_what_mlflow_does_not_have_is_named(mlflow_uri: str, tmp_path: Path) -> None:
    client = connect(mlflow_uri)
    experiment = client.get_experiment_by_name("digits")
    empty = client.create_run(experiment.experiment_id).info.run_id
    for uri, said in (
        ("models:/digits@nobody", "has no model 'models:/digits@nobody'.*correct the alias"),
        ("models:/cats/1", "cats.*correct the version"),
        (f"runs:/{'f' * 32}", "correct the run"),
        (f"runs:/{empty}", f"run {empty} has no model"),
        (f"runs:/{experiment.tags['run']}/other", "has no model 'other'"),
    ):
        with pytest.raises(UsageError, match=f"init_from.uri: MLflow at .*{said}"):
            fetch(uri, local(tmp_path), tmp_path, mlflow_uri)


def test_an_mlflow_that_does_not_answer_is_no_fault_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(SinkUnavailable, match=r"127\.0\.0\.1:9"):
        fetch("models:/digits@champion", local(tmp_path), tmp_path)


def test_the_content_of_the_weights_is_part_of_a_runs_identity_and_their_place_is_not() -> None:
    def spec(**changes: Any) -> Any:
        return make_spec(init_from={"uri": "digits-3", **changes})

    plain = identity_of(make_spec())
    assert identify(make_spec(), "same-data", [], "") == plain
    base = identify(spec(), "same-data", [], "aaa")
    assert base.sections.keys() - plain.sections.keys() == {"init_from"}
    assert identify(spec(uri="models:/digits/2"), "same-data", [], "aaa") == base
    other = identify(spec(), "same-data", [], "bbb")
    kept = identify(spec(head="keep"), "same-data", [], "aaa")
    assert len({plain.hash, base.hash, other.hash, kept.hash}) == 4
    text = str(spec().model_dump(mode="json"))
    assert differences(base, other, text, spec()) == ["the weights of init_from changed"]
    assert differences(base, kept, text, spec(head="keep")) == ["init_from.head: auto → keep"]
    assert differences(plain, base) == ["the weights of init_from changed"]
