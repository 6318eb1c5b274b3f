"""One suite for every sink: what a run recorded reads back, and applying anything twice changes nothing."""

import base64
import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from orchestrator.records import Point
from orchestrator.tracking import (
    EndRun,
    LogArtifact,
    LogMetrics,
    LogModel,
    LogParams,
    MemorySink,
    RunState,
    SetTags,
    Sink,
    SinkRefused,
    SinkUnavailable,
    StartRun,
)
from orchestrator.tracking.mlflow_sink import MlflowSink, calling, connect, mark_dead, mlflow_process

# What mlflow warns about, of itself, while it is imported.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint:UserWarning"),
]

START = StartRun(
    "digits", "digits-1", {"kind": "test"}, {"lr": "0.1"}, "**text**", key="digits-1.k", time_ms=1000
)
LOADER = """
import json, pathlib

class Scaler:
    def __init__(self, factor):
        self.factor = factor

    def predict(self, rows):
        return rows * self.factor

def _load_pyfunc(path):
    return Scaler(json.loads((pathlib.Path(path) / "factor.json").read_text()))
"""


@dataclass
class Recorded:
    """What a store holds of one run, in the words of the tests."""

    status: str
    name: str
    tags: dict[str, str]
    params: dict[str, str]
    points: list[Point] = field(default_factory=list)
    artifacts: set[str] = field(default_factory=set)


class Store(Protocol):
    sink: Sink

    def read(self, run_id: str) -> Recorded: ...

    def num_runs(self) -> int: ...

    def num_versions(self, name: str) -> int: ...


class MemoryStore:
    def __init__(self) -> None:
        self.sink = MemorySink()

    def read(self, run_id: str) -> Recorded:
        run = self.sink.runs[run_id]
        return Recorded(
            run.status, run.name, run.tags, run.params, sort(run.points.values()), set(run.artifacts)
        )

    def num_runs(self) -> int:
        return len(self.sink.runs)

    def num_versions(self, name: str) -> int:
        return len(self.sink.versions.get(name, []))


class MlflowStore:
    def __init__(self, uri: str, sink: Sink | None = None) -> None:
        self.sink = sink or MlflowSink(uri)
        self.client = connect(uri)

    def read(self, run_id: str) -> Recorded:
        run = self.client.get_run(run_id)
        points = [
            Point(metric.key, metric.value, metric.step, metric.timestamp)
            for key in run.data.metrics
            for metric in self.client.get_metric_history(run_id, key)
        ]
        words = {"RUNNING": "RUNNING", "FINISHED": "SUCCEEDED", "FAILED": "FAILED", "KILLED": "STOPPED"}
        status = words[run.info.status]
        name = run.info.run_name
        return Recorded(status, name, run.data.tags, run.data.params, sort(points), self._files(run_id))

    def _files(self, run_id: str, folder: str | None = None) -> set[str]:
        found: set[str] = set()
        for entry in self.client.list_artifacts(run_id, folder):
            found |= self._files(run_id, entry.path) if entry.is_dir else {entry.path}
        return found

    def num_runs(self) -> int:
        experiments = [experiment.experiment_id for experiment in self.client.search_experiments()]
        return len(self.client.search_runs(experiments))

    def num_versions(self, name: str) -> int:
        return len(self.client.search_model_versions(f"name = '{name}'"))


def sort(points: Any) -> list[Point]:
    return sorted(points, key=lambda point: (point.key, point.step))


@pytest.fixture(scope="module")
def fresh_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with its tables and nothing in them: making the tables takes seconds, copying them none."""
    file = tmp_path_factory.mktemp("fresh") / "mlflow.db"
    connect(f"sqlite:///{file}")
    return file


@pytest.fixture(scope="module")
def mlflow_uri(fresh_database: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A path with a space and a working directory elsewhere: nothing may depend on either."""
    folder = tmp_path_factory.mktemp("my store")
    shutil.copy(fresh_database, folder)
    return f"sqlite:///{folder}/mlflow.db"


@pytest.fixture(scope="module")
def in_process(mlflow_uri: str) -> Iterator[Sink]:
    """One for all tests, which is there before the first: what a test starts must be gone after it."""
    with mlflow_process(mlflow_uri) as sink:
        sink.apply(replace(START, key="first"), RunState())
        yield sink


@pytest.fixture(params=["memory", "mlflow", "process"])
def store(
    request: pytest.FixtureRequest,
    mlflow_uri: str,
    in_process: Sink,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody may fall back on it
    before = dict(os.environ)
    if request.param == "memory":
        yield MemoryStore()
    elif request.param == "mlflow":
        yield MlflowStore(mlflow_uri)
    else:
        yield MlflowStore(mlflow_uri, in_process)
    for name in ("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        assert os.environ.get(name) == before.get(name)
    assert not list(tmp_path.glob("ml*")), "something was written into the working directory"


def started(store: Store, request: pytest.FixtureRequest, **changes: Any) -> tuple[StartRun, RunState]:
    """A run with a key of this test's own, since the MLflow store is shared by the module."""
    start = replace(START, key=f"digits-1.{request.node.name}", **changes)
    return start, store.sink.apply(start, RunState())


def test_a_run_reads_back(store: Store, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    _, state = started(store, request)
    assert state.run_id
    assert state.experiment_id
    points = [Point("train/loss", 1 / (step + 1), step, 1000 + step) for step in range(5)]
    ops = [
        LogMetrics((*points, Point("val/f1", 0.5, 4, 1004))),
        SetTags({"more": "tags"}),
        LogParams({"momentum": "0.9"}),
        EndRun("SUCCEEDED", 2000),
    ]
    for op in ops:
        state = store.sink.apply(op, state)
    run = store.read(str(state.run_id))
    assert run.status == "SUCCEEDED"
    assert run.name == "digits-1"
    assert run.tags.items() >= {"kind": "test", "more": "tags", "mlflow.note.content": "**text**"}.items()
    assert run.params == {"lr": "0.1", "momentum": "0.9"}
    assert run.points == sort([*points, Point("val/f1", 0.5, 4, 1004)])


@pytest.mark.parametrize("status", ["SUCCEEDED", "FAILED", "STOPPED"])
def test_how_a_run_ended(store: Store, request: pytest.FixtureRequest, status: Any) -> None:
    _, state = started(store, request)
    store.sink.apply(EndRun(status, 2000), state)
    assert store.read(str(state.run_id)).status == status


def test_applying_twice_changes_nothing(store: Store, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    start, state = started(store, request)
    file = tmp_path / "a.txt"
    file.write_text("x")
    ops = [
        LogMetrics((Point("loss", 1.0, 1, 10), Point("loss", math.nan, 2, 20))),
        SetTags({"a": "b"}),
        LogParams({"p": "1"}),
        LogArtifact(str(file), "texts"),
        EndRun("FAILED", 2000),
    ]
    for op in ops:
        store.sink.apply(op, state)
    num_runs = store.num_runs()
    once = store.read(str(state.run_id))
    # As after a crash that lost the state: the run is found by its key.
    state = store.sink.apply(start, RunState())
    for op in ops:
        store.sink.apply(op, state)
    assert store.num_runs() == num_runs
    assert repr(store.read(str(state.run_id))) == repr(once)
    assert once.artifacts == {"texts/a.txt"}
    assert [math.isnan(point.value) for point in once.points] == [False, True]


def test_starting_again_goes_on(store: Store, request: pytest.FixtureRequest) -> None:
    start, state = started(store, request)
    store.sink.apply(LogMetrics((Point("loss", 1.0, 7, 10),)), state)
    store.sink.apply(EndRun("STOPPED", 2000), state)
    again = store.sink.apply(replace(start, params={"lr": "0.2", "new": "1"}, tags={"attempt": "2"}), state)
    assert again.run_id == state.run_id
    run = store.read(str(state.run_id))
    assert run.status == "RUNNING"
    assert run.params == {"lr": "0.1", "new": "1"}
    assert run.tags.items() >= {"attempt": "2", "orchestrator.changed.lr": "0.1 -> 0.2"}.items()


def test_going_on_with_a_run_known_by_id_tells_its_last_steps(
    store: Store, request: pytest.FixtureRequest
) -> None:
    start, state = started(store, request)
    store.sink.apply(
        LogMetrics((Point("loss", 1.0, 7, 10), Point("loss", 1.0, 8, 11), Point("f1", 0.1, 5, 9))), state
    )
    other = replace(start, key="other", run_id=state.run_id)
    assert store.sink.apply(other, RunState()).last_steps == {"loss": 8, "f1": 5}


def test_two_runs_of_one_name_are_two(store: Store, request: pytest.FixtureRequest) -> None:
    start, state = started(store, request)
    other = store.sink.apply(replace(start, key=start.key + "2"), RunState())
    assert other.run_id != state.run_id
    assert other.experiment_id == state.experiment_id


def test_a_child_is_made_in_the_experiment_of_its_parent(
    store: Store, request: pytest.FixtureRequest
) -> None:
    _, parent = started(store, request)
    tags = {"mlflow.parentRunId": str(parent.run_id)}
    start = replace(START, key="digits-1.k/trial-1", experiment="another", run_name="trial-1", tags=tags)
    child = store.sink.apply(start, RunState(experiment_id=parent.experiment_id))
    assert child.experiment_id == parent.experiment_id
    assert child.run_id != parent.run_id
    assert store.read(str(child.run_id)).tags["mlflow.parentRunId"] == parent.run_id
    again = store.sink.apply(start, RunState(experiment_id=parent.experiment_id))
    assert again.run_id == child.run_id


def test_a_folder_is_uploaded_with_its_subfolders(
    store: Store, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    _, state = started(store, request)
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    (tmp_path / "pictures" / "a.png").write_text("a")
    (tmp_path / "pictures" / "deep" / "b.png").write_text("b")
    store.sink.apply(LogArtifact(str(tmp_path / "pictures"), "test"), state)
    store.sink.apply(LogArtifact(str(tmp_path / "pictures" / "a.png")), state)
    assert store.read(str(state.run_id)).artifacts == {"test/a.png", "test/deep/b.png", "a.png"}


def test_what_cannot_be_recorded_is_refused(
    store: Store, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    _, state = started(store, request)
    with pytest.raises(SinkRefused):
        store.sink.apply(LogArtifact(str(tmp_path / "nowhere")), state)
    with pytest.raises(SinkRefused):
        store.sink.apply(LogModel(str(tmp_path / "nowhere"), "model", "loader"), state)
    with pytest.raises(SinkRefused):
        store.sink.apply(SetTags({"a": "b"}), RunState())


def bundle(tmp_path: Path, factor: int = 3) -> LogModel:
    (tmp_path / "bundle").mkdir(exist_ok=True)
    (tmp_path / "bundle" / "factor.json").write_text(str(factor))
    np.save(tmp_path / "bundle" / "input_example.npy", np.ones((2, 8, 8), dtype=np.float32))
    (tmp_path / "contract_loader.py").write_text(LOADER)
    tensor = json.dumps([{"type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 8, 8]}}])
    return LogModel(
        model_dir=str(tmp_path / "bundle"),
        name="model",
        loader_module="contract_loader",
        registered_model_name="digits",
        code_paths=(str(tmp_path / "contract_loader.py"),),
        pip_requirements=("numpy",),
        signature={"inputs": tensor, "outputs": tensor},
        input_example="input_example.npy",
        metadata={"task": "test"},
    )


def test_a_model_is_registered_once_however_often_it_is_applied(
    store: Store, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    before = store.num_versions("digits")
    start, state = started(store, request)
    op = bundle(tmp_path)
    for _ in range(2):
        state = store.sink.apply(op, state)
    store.sink.apply(op, store.sink.apply(start, RunState()))
    assert store.num_versions("digits") == before + 1
    assert state.model_uri == f"models:/digits/{before + 1}"
    state = store.sink.apply(bundle(tmp_path, factor=4), state)
    assert store.num_versions("digits") == before + 2
    assert state.model_uri == f"models:/digits/{before + 2}"
    state = store.sink.apply(replace(bundle(tmp_path, factor=5), registered_model_name=None), state)
    assert store.num_versions("digits") == before + 2
    assert str(state.model_uri).startswith("models:/m-")


# From here on: what only the MLflow sink has to do.


@pytest.fixture
def mlflow_store(fresh_database: Path, tmp_path: Path) -> MlflowStore:
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    return MlflowStore(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_registered_model_loads_with_signature_example_and_metrics(
    mlflow_store: MlflowStore, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.pyfunc

    _, state = started(mlflow_store, request)
    mlflow_store.sink.apply(
        LogMetrics((Point("test/accuracy", 0.97, 9, 10), Point("train/loss", 0.1, 9, 10))), state
    )
    mlflow_store.sink.apply(bundle(tmp_path), state)
    (tmp_path / "contract_loader.py").unlink()

    monkeypatch.setattr("sys.path", list(sys.path))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store.sink.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/digits/1")
    rows = np.full((4, 8, 8), 2, dtype=np.float32)
    np.testing.assert_array_equal(model.predict(rows), rows * 3)
    assert model.metadata.signature.inputs.input_types()[0].name == "float32"
    assert model.input_example.shape == (2, 8, 8)
    assert model.metadata.metadata == {"task": "test"}
    assert model.metadata.run_id == state.run_id

    client = mlflow_store.client
    (logged,) = client.search_logged_models([state.experiment_id])
    assert model.metadata.model_id == logged.model_id
    assert [(metric.key, metric.value) for metric in logged.metrics] == [("test/accuracy", 0.97)]
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": "digits", "version": "1"}]
    run = client.get_run(state.run_id)
    assert [output.model_id for output in run.outputs.model_outputs] == [logged.model_id]
    version = client.get_model_version("digits", "1")
    assert (version.run_id, version.description) == (state.run_id, START.description)


def test_a_table_example_with_bytes(
    mlflow_store: MlflowStore, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    _, state = started(mlflow_store, request)
    op = bundle(tmp_path)
    rows = [{"image": base64.b64encode(b"\x89PNG").decode(), "age": 3.5}]
    (tmp_path / "bundle" / "rows.json").write_text(json.dumps(rows))
    columns = [
        {"type": "binary", "name": "image", "required": True},
        {"type": "double", "name": "age", "required": True},
    ]
    signature = {"inputs": json.dumps(columns), "outputs": json.dumps([{"type": "string"}])}
    mlflow_store.sink.apply(replace(op, signature=signature, input_example="rows.json"), state)
    (logged,) = mlflow_store.client.search_logged_models([state.experiment_id])
    assert str(logged.status) == "READY"


def test_a_half_logged_model_is_finished_by_the_replay(
    mlflow_store: MlflowStore, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, state = started(mlflow_store, request)
    with monkeypatch.context() as patch:

        def lost(*_: object) -> None:
            raise ConnectionError("the server went away")

        patch.setattr("mlflow.MlflowClient.finalize_logged_model", lost)
        with pytest.raises(SinkUnavailable):
            mlflow_store.sink.apply(bundle(tmp_path), state)
    mlflow_store.sink.apply(bundle(tmp_path), state)
    (logged,) = mlflow_store.client.search_logged_models([state.experiment_id])
    assert str(logged.status) == "READY"
    assert mlflow_store.num_versions("digits") == 1


def test_an_example_that_does_not_fit_is_refused_with_the_reason(
    mlflow_store: MlflowStore, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    _, state = started(mlflow_store, request)
    op = bundle(tmp_path)
    np.save(tmp_path / "bundle" / "input_example.npy", np.ones((2, 9), dtype=np.float32))
    with pytest.raises(SinkRefused, match="signature"):
        mlflow_store.sink.apply(op, state)


@pytest.mark.parametrize(
    "point", [Point("bad@key", 1.0, 1, 1), Point("loss", 1.0, 2**70, 1), Point("x" * 300, 1.0, 1, 1)]
)
def test_a_bad_point_is_refused_not_retried(
    mlflow_store: MlflowStore, request: pytest.FixtureRequest, point: Point
) -> None:
    _, state = started(mlflow_store, request)
    with pytest.raises(SinkRefused):
        mlflow_store.sink.apply(LogMetrics((Point("fine", 1.0, 1, 1), point)), state)


def test_a_run_that_somebody_deleted_is_refused_and_the_next_start_makes_another(
    mlflow_store: MlflowStore, request: pytest.FixtureRequest
) -> None:
    start, state = started(mlflow_store, request)
    mlflow_store.client.delete_run(state.run_id)
    with pytest.raises(SinkRefused):
        mlflow_store.sink.apply(SetTags({"a": "b"}), state)
    assert mlflow_store.sink.apply(start, state).run_id != state.run_id


def test_a_deleted_experiment_is_restored(mlflow_store: MlflowStore, request: pytest.FixtureRequest) -> None:
    start, state = started(mlflow_store, request)
    mlflow_store.client.delete_experiment(state.experiment_id)
    other = mlflow_store.sink.apply(replace(start, key="other"), RunState())
    assert other.experiment_id == state.experiment_id


def test_artifacts_lie_beside_the_database(
    mlflow_store: MlflowStore, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    started(mlflow_store, request, experiment="team/digits v2")
    experiment = mlflow_store.client.get_experiment_by_name("team/digits v2")
    assert experiment.artifact_location == (tmp_path / "mlartifacts" / "team_digits_v2").as_uri()
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_two_processes_may_be_the_first_on_a_database(tmp_path: Path) -> None:
    program = "import sys; from orchestrator.tracking.mlflow_sink import connect; connect(sys.argv[1])"
    command = [sys.executable, "-c", program, f"sqlite:///{tmp_path}/new/mlflow.db"]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def test_a_server_that_is_not_there_is_unavailable_at_once() -> None:
    with pytest.raises(SinkUnavailable, match=r"127\.0\.0\.1:9"):
        MlflowSink("http://127.0.0.1:9").apply(START, RunState())


def test_a_dead_job_is_marked(mlflow_store: MlflowStore, request: pytest.FixtureRequest) -> None:
    _, state = started(mlflow_store, request)
    uri, run_id = mlflow_store.sink.tracking_uri, str(state.run_id)
    assert mark_dead(uri, run_id, "KILLED", "its heartbeat stopped", end_time_ms=5000)
    info = mlflow_store.client.get_run(run_id).info
    assert (info.status, info.end_time) == ("KILLED", 5000)
    assert mlflow_store.read(run_id).tags["orchestrator.ended"] == "its heartbeat stopped"
    assert not mark_dead(uri, run_id, "FAILED", "again")
    assert mlflow_store.client.get_run(run_id).info.status == "KILLED"
    with pytest.raises(SinkRefused):
        mark_dead(uri, "f" * 32, "FAILED", "no such run")


def test_the_children_of_a_dead_job_end_with_it(
    mlflow_store: MlflowStore, request: pytest.FixtureRequest
) -> None:
    _, state = started(mlflow_store, request)
    uri, run_id = mlflow_store.sink.tracking_uri, str(state.run_id)
    children = []
    for number in range(3):
        tags = {"mlflow.parentRunId": run_id if number < 2 else "another"}
        child = replace(START, key=f"digits-1.k/{number}", tags=tags)
        children.append(mlflow_store.sink.apply(child, RunState(experiment_id=state.experiment_id)))
    mlflow_store.sink.apply(EndRun("SUCCEEDED", 2000), children[0])
    assert mark_dead(uri, run_id, "FAILED", "the driver died", end_time_ms=5000)
    infos = [mlflow_store.client.get_run(child.run_id).info for child in children]
    assert [(info.status, info.end_time) for info in infos] == [
        ("FINISHED", 2000),
        ("KILLED", 5000),
        ("RUNNING", None),
    ]
    assert mlflow_store.read(str(children[1].run_id)).tags["orchestrator.ended"] == "the driver died"
    assert mlflow_store.client.get_run(run_id).info.status == "FAILED"


def test_settings_for_mlflow_are_not_made_in_the_environment() -> None:
    """Ray's threads read it at any time: to change it under them ended a driver whose head was restarted."""
    from mlflow.environment_variables import MLFLOW_HTTP_REQUEST_MAX_RETRIES, MLFLOW_HTTP_REQUEST_TIMEOUT

    environment = dict(os.environ)
    usual = MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(), MLFLOW_HTTP_REQUEST_TIMEOUT.get()
    with calling("sqlite:///none.db", uploading=False):
        assert (MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(), MLFLOW_HTTP_REQUEST_TIMEOUT.get()) == (0, 5)
        with calling("sqlite:///none.db", uploading=True):
            assert MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 300
        assert MLFLOW_HTTP_REQUEST_TIMEOUT.get() == 5
        assert dict(os.environ) == environment
    assert (MLFLOW_HTTP_REQUEST_MAX_RETRIES.get(), MLFLOW_HTTP_REQUEST_TIMEOUT.get()) == usual
