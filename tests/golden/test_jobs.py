"""The ready job specs: each is valid, reaches the result that its header states, and registers a model that
repeats the run's test figures from raw rows.

Each spec but those that search is trained once, in this process and in fp32, some shortened. What the figures should
be is computed by scikit-learn from the registered model's predictions and from the labels in the source.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from sklearn import linear_model, metrics, preprocessing

import orchestrator
from orchestrator.cli.app import run_app
from orchestrator.data.columns import array_values, image_bytes
from orchestrator.data.prepared.prepared import Prepared
from orchestrator.data.preparing.prepare import prepare
from orchestrator.data.sources.read import read_source
from orchestrator.errors import SpecError
from orchestrator.runners.result import Result
from orchestrator.spec import JobSpec, load_spec
from orchestrator.storage import Folder
from tests.golden.losses import searches
from tests.golden.made import LARGE, SMALL_VGG, VARIABLES, made_data
from tests.raw_rows import raw_rows

JOBS = Path(__file__).parents[2] / "jobs"
ALL = sorted(path.stem for path in JOBS.glob("*.yaml"))
NAMES = [name for name in ALL if not searches(JOBS / f"{name}.yaml")]
SHORTENED: dict[str, dict[str, Any]] = {
    "cats_dogs_vgg16": SMALL_VGG,
    "char_lm": {
        "data.source.args.max_characters": 60_000,
        "data.text.length": 32,
        "model.args": {"width": 64, "layers": 2, "heads": 4},
        "train.max_epochs": 3,
    },
    "image_folder": {"train.max_epochs": 10},
}
EXACT = {"train.precision": "fp32"}
"""bf16, which a job may choose, repeats no figure to six digits."""


@dataclass(frozen=True)
class Case:
    """A spec that was run: its result, and its test part as a user of the model would see it."""

    name: str
    spec: JobSpec
    result: Result
    prepared: Prepared
    rows: Any = field(repr=False)
    """Raw rows: an array, or a DataFrame."""
    targets: list[Any] = field(repr=False)
    """Labels or numbers, as the source holds them."""


@pytest.fixture(scope="module")
def own_data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Data for the jobs that ship none, by job."""
    return made_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] if name in LARGE else []) for name in NAMES],
)
def case(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, own_data: dict[str, Path]
) -> Iterator[Case]:
    name, storage = request.param, tmp_path_factory.mktemp("storage") / "runs"
    overrides = SHORTENED.get(name, {}) | EXACT | {"storage": str(storage)}
    if name in own_data:
        overrides["data.source.path"] = str(own_data[name])
    search_path = list(sys.path)
    result = orchestrator.run(JOBS / f"{name}.yaml", inline=True, quiet=True, **overrides)
    spec = load_spec(JOBS / f"{name}.yaml", overrides_dict=overrides).spec
    prepared = prepare(spec.data, task=spec.train.task, seed=spec.seed, storage=Folder.at(storage))
    if spec.data.target is None:
        rows, targets = beginnings(prepared)
    else:
        test_rows = pa.array(prepared.part("test").source_rows())
        rows = as_sent(raw_rows(spec.data, prepared, "test"), prepared)
        targets = read_source(spec.data)[spec.data.target].take(test_rows).to_pylist()
    yield Case(name=name, spec=spec, result=result, prepared=prepared, rows=rows, targets=targets)
    sys.path[:] = search_path
    for module in ("custom_model", "made_data", "stdlib_text"):
        sys.modules.pop(module, None)


def as_sent(rows: pa.Table, prepared: Prepared) -> Any:
    """Raw rows as one sends them to a model: an array of arrays, or a DataFrame with images as bytes."""
    schema = prepared.pipeline.raw_schema
    if schema.kind == "array":
        return array_values(rows[schema.columns[0]])
    if schema.kind == "encoded_image":
        return pd.DataFrame({schema.columns[0]: image_bytes(rows[schema.columns[0]]).to_pylist()})
    return rows.to_pandas()


def beginnings(prepared: Prepared) -> tuple[pd.DataFrame, list[str]]:
    """For a language model: each beginning of each test sample as text, and the character that follows it."""
    tokenizer, part = prepared.pipeline.tokenizer, prepared.part("test")
    assert tokenizer is not None
    samples = part.gather(np.arange(part.num_rows))
    texts = [[tokenizer.token(index) or "\ufffd" for index in row] for row in samples.features.tolist()]
    following = [tokenizer.token(index) for row in samples.targets.tolist() for index in row]
    ends = range(1, len(texts[0]) + 1)
    return pd.DataFrame({"text": ["".join(text[:end]) for text in texts for end in ends]}), following


@pytest.mark.parametrize("name", ALL)
def test_the_spec_is_valid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in VARIABLES:
        monkeypatch.setenv(VARIABLES[name], "/data")
    spec = load_spec(JOBS / f"{name}.yaml").spec
    assert spec.name == name
    assert spec.mlflow.registered_model_name == name
    header = (JOBS / f"{name}.yaml").read_text().partition("\nname:")[0]
    assert f"orchestrator run jobs/{name}.yaml" in header
    assert "Expect:" in header


@pytest.mark.parametrize("name", VARIABLES)
@pytest.mark.parametrize("verb", ["run", "validate", "submit"])
def test_without_data_the_job_says_how_to_get_some(
    name: str, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_app([verb, str(JOBS / f"{name}.yaml")]) == 2
    said = capsys.readouterr().err
    assert f"export {VARIABLES[name]}=PATH" in said
    assert "data.source.path=PATH" in said
    assert "https://" in said
    assert "Traceback" not in said
    with pytest.raises(SpecError, match=r"data.source.path"):
        orchestrator.run(JOBS / f"{name}.yaml")


def test_the_result_is_as_the_header_states(case: Case) -> None:
    figures = case.result.metrics
    assert case.result.status == "SUCCEEDED"
    if case.name == "linear_regression":
        assert figures["test/mse"] == pytest.approx(0.1**2, rel=0.1)
        assert trained_weights(case) == pytest.approx([3, 2], abs=0.02)
    elif case.name == "diabetes":
        rmse, r2 = ridge_regression(case)
        assert figures["test/rmse"] < 1.05 * rmse
        assert figures["test/r2"] > 0.95 * r2
    elif case.name == "char_lm":
        assert figures["test/bits_per_token"] < 4.0  # of some 6.5 that guessing takes
    else:
        assert figures["test/accuracy"] >= LEAST_ACCURACY[case.name]


LEAST_ACCURACY = {
    "breast_cancer": 0.95,
    "cats_dogs_vgg16": 0.0,  # one epoch from nothing: that it runs, and is exported, is all there is to see
    "custom_model": 0.94,
    "digits": 0.97,
    "image_folder": 0.95,  # of the stripes: photographs are not as easy
    "mnist": 0.9,
    "moons_mlp": 0.95,
    "parquet_images": 0.93,  # of scikit-learn's few digits: MNIST has more of them
    "sentiment_lstm": 0.92,
}


def trained_weights(case: Case) -> list[float]:
    """The one weight matrix in the model's bundle; its bias is near zero."""
    import safetensors.numpy

    tensors = safetensors.numpy.load_file(Path(case.result.folder) / "model" / "model.safetensors")
    matrix, bias = sorted(tensors.values(), key=lambda tensor: -tensor.ndim)
    assert abs(bias.item()) < 0.02
    return list(matrix.ravel())


def ridge_regression(case: Case) -> tuple[float, float]:
    """RMSE and R² of scikit-learn's Ridge on the same parts, standardised in the same way."""
    train = case.prepared.part("train").source_rows()
    source = read_source(case.spec.data).to_pandas()
    columns = list(case.prepared.pipeline.raw_schema.columns)
    scaler = preprocessing.StandardScaler().fit(source[columns].iloc[train])
    ridge = linear_model.Ridge().fit(
        scaler.transform(source[columns].iloc[train]), source["target"].iloc[train]
    )
    predicted = ridge.predict(scaler.transform(case.rows))
    return (
        metrics.root_mean_squared_error(case.targets, predicted),
        metrics.r2_score(case.targets, predicted),
    )


def test_the_registered_model_repeats_the_test_figures_from_raw_rows(
    case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own imports
        import mlflow.pyfunc
    assert case.result.model == f"models:/{case.name}/1"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", case.result.tracking_uri)
    predicted = mlflow.pyfunc.load_model(case.result.model).predict(case.rows)
    assert len(predicted) == len(case.targets) == len(case.rows) > 0
    logged = {key: value for key, value in case.result.metrics.items() if key.startswith("test/")}
    if case.name == "char_lm":  # the model gives texts, so only their share of right ones can be counted
        right = np.mean(predicted["prediction"].to_numpy() == np.array(case.targets, dtype=object))
        assert logged["test/accuracy"] == pytest.approx(right, abs=1e-6)
        assert logged["test/bits_per_token"] == pytest.approx(np.log2(logged["test/perplexity"]))
        return
    assert len(predicted) == case.prepared.manifest.rows["test"]
    figures = regression_figures if case.name in ("linear_regression", "diabetes") else class_figures
    expected = figures(case, predicted)
    assert logged == pytest.approx({f"test/{name}": value for name, value in expected.items()}, 1e-6, 1e-6)


def regression_figures(case: Case, predicted: pd.DataFrame) -> dict[str, float]:
    mse = metrics.mean_squared_error(case.targets, predicted["prediction"])
    variance = 1.0
    if case.spec.data.target_transform:
        train = case.prepared.part("train").source_rows()
        variance = float(np.var(np.asarray(read_source(case.spec.data)["target"])[train]))
    return {
        "loss": mse / variance,  # of the standardised target
        "mse": mse,
        "rmse": mse**0.5,
        "mae": metrics.mean_absolute_error(case.targets, predicted["prediction"]),
        "r2": metrics.r2_score(case.targets, predicted["prediction"]),
    }


def class_figures(case: Case, predicted: pd.DataFrame) -> dict[str, float]:
    classes = sorted(set(case.targets))
    right = np.array([classes.index(target) for target in case.targets])
    shares = predicted[[f"probability_{label}" for label in classes]].to_numpy()
    assert [classes[i] for i in shares.argmax(axis=1)] == predicted["prediction"].to_list()
    share_of_right = shares[np.arange(len(right)), right]
    guesses = shares.argmax(axis=1)
    # A model that learned little may predict one class only: its precision is 0, as torchmetrics has it too.
    how: dict[str, Any] = {"average": "binary" if len(classes) == 2 else "macro", "zero_division": 0}
    if case.name == "custom_model":
        return {
            "loss": float(np.mean((1 - share_of_right) ** 2 * -np.log(share_of_right))),
            "accuracy": metrics.accuracy_score(right, guesses),
            "f1": metrics.f1_score(right, guesses, **how),
            "worst_class_recall": min(metrics.recall_score(right, guesses, average=None)),
        }
    figures = {
        "loss": float(np.mean(-np.log(share_of_right))),
        "accuracy": metrics.accuracy_score(right, guesses),
        "precision": metrics.precision_score(right, guesses, **how),
        "recall": metrics.recall_score(right, guesses, **how),
        "f1": metrics.f1_score(right, guesses, **how),
    }
    return figures | ({"auroc": metrics.roc_auc_score(right, shares[:, 1])} if len(classes) == 2 else {})
