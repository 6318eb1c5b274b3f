"""Columns of categories: each encoder against scikit-learn's, and target means that do not leak."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import (
    FunctionTransformer,
    MinMaxScaler,
    OneHotEncoder,
    OrdinalEncoder,
    RobustScaler,
    StandardScaler,
    TargetEncoder,
)

from orchestrator.data.features import categories
from orchestrator.data.features.categories import FOLDS, fold_numbers
from orchestrator.data.features.encoders import bucket_number
from orchestrator.data.features.pipeline import Pipeline
from orchestrator.data.features.schema import describe_features
from orchestrator.data.features.survey import fit_features, survey_features
from orchestrator.data.preparing.prepare import prepare
from orchestrator.data.splitmix import place_keys
from orchestrator.errors import DataError, SourceError
from orchestrator.spec.data import DataSection
from orchestrator.storage import Folder
from tests.raw_rows import raw_rows

RNG = np.random.default_rng(0)
ROWS = 300
FRAME = pd.DataFrame(
    {
        "size": RNG.normal(50, 20, ROWS).astype(np.float32),
        "weight": RNG.exponential(3, ROWS).astype(np.float32),
        "color": RNG.choice(["red", "green", "blue", "äther"], ROWS),
        "shop": RNG.integers(-3, 9, ROWS),
        "new": RNG.random(ROWS) < 0.3,
        "y": RNG.normal(size=ROWS),
    }
)
NEW = pd.DataFrame(
    {
        "size": np.float32([1.0, 99.0, 3.0]),
        "weight": np.float32([0.0, 2.0, 1.0]),
        "color": ["green", "violet", "red"],
        "shop": [4, 99, -3],
        "new": [True, False, True],
    }
)
FEATURES = list(NEW.columns)
KEYS = place_keys(np.arange(ROWS), seed=1)


def _section(*steps: dict[str, Any], features: list[str] | None = None) -> DataSection:
    return DataSection.model_validate(
        {
            "source": {"kind": "parquet", "path": "rows.parquet"},
            "target": "y",
            "features": features or FEATURES,
            "transforms": list(steps),
        }
    )


def _fit(
    section: DataSection,
    frame: pd.DataFrame = FRAME,
    *,
    targets: np.ndarray | None = None,
    classes: list[Any] | None = None,
    train: np.ndarray | None = None,
    chunk: int = 1000,
    keys: np.ndarray = KEYS,
) -> Pipeline:
    table = pa.Table.from_pandas(frame, preserve_index=False)
    pipeline = Pipeline(describe_features(table, section), classes=classes)
    y = frame["y"].to_numpy() if targets is None else targets
    train = np.ones(len(frame), bool) if train is None else train
    partials = [
        pickle.loads(
            pickle.dumps(
                survey_features(
                    section,
                    pipeline,
                    table.slice(start, chunk),
                    train[start : start + chunk],
                    y[start : start + chunk],
                    keys[start : start + chunk],
                )
            )
        )
        for start in range(0, len(frame), chunk)
    ]
    return fit_features(section, pipeline, partials)


def _inputs(pipeline: Pipeline, rows: Any) -> np.ndarray:
    stored = pipeline.encode(rows)
    assert stored.dtype == np.float32
    assert stored.shape[1:] == pipeline.stored_shape
    inputs = pipeline.transform(torch.from_numpy(stored))
    assert inputs.is_contiguous()
    assert tuple(inputs.shape[1:]) == pipeline.input_shape
    return inputs.numpy()


def _step(kind: str, *columns: str, **more: Any) -> dict[str, Any]:
    return {"kind": kind, **({"columns": list(columns)} if columns else {}), **more}


ALL_NUMBERS = ["size", "weight", "shop", "new"]
ONE_HOT, ORDINAL = (
    OneHotEncoder(handle_unknown="ignore", sparse_output=False),
    OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1),
)


@pytest.mark.parametrize(
    ("steps", "theirs"),
    [
        (
            [_step("one_hot"), _step("standardize")],
            [
                (StandardScaler(), ["size", "weight"]),
                (ONE_HOT, ["color"]),
                (StandardScaler(), ["shop", "new"]),
            ],
        ),
        (
            [_step("ordinal"), _step("min_max")],
            [(MinMaxScaler(), ["size", "weight"]), (ORDINAL, ["color"]), (MinMaxScaler(), ["shop", "new"])],
        ),
        (
            [_step("robust", "weight"), _step("one_hot", "color", "shop"), _step("ordinal", "new")],
            [
                ("passthrough", ["size"]),
                (RobustScaler(), ["weight"]),
                (ONE_HOT, ["color", "shop"]),
                (ORDINAL, ["new"]),
            ],
        ),
        (
            [_step("scale", "new", by=4.0), _step("one_hot"), _step("scale", "size", "color", by=2.0)],
            [
                (FunctionTransformer(lambda x: x / 2), ["size"]),
                ("passthrough", ["weight"]),
                (make_pipeline(ONE_HOT, FunctionTransformer(lambda x: x / 2)), ["color"]),
                ("passthrough", ["shop"]),
                (FunctionTransformer(lambda x: x / 4), ["new"]),
            ],
        ),
        (
            [
                _step("min_max", "size"),
                _step("robust", "size", "weight"),
                _step("one_hot"),
                _step("standardize", "color", "size"),
            ],
            [
                (make_pipeline(MinMaxScaler(), RobustScaler(), StandardScaler()), ["size"]),
                (RobustScaler(), ["weight"]),
                (make_pipeline(ONE_HOT, StandardScaler()), ["color"]),
                ("passthrough", ["shop", "new"]),
            ],
        ),
        (
            [_step("ordinal", "shop", "color"), _step("robust", "shop"), _step("min_max", "color")],
            [
                ("passthrough", ["size", "weight"]),
                (make_pipeline(ORDINAL, MinMaxScaler()), ["color"]),
                (make_pipeline(ORDINAL, RobustScaler()), ["shop"]),
                ("passthrough", ["new"]),
            ],
        ),
    ],
)
@pytest.mark.parametrize("chunk", [1000, 37])
def test_tables_are_as_scikit_learn_has_them(steps: list[Any], theirs: list[Any], chunk: int) -> None:
    section = _section(*steps)
    transformer = ColumnTransformer([(str(i), step, names) for i, (step, names) in enumerate(theirs)])
    transformer.fit(FRAME[FEATURES].astype({"new": int}))
    pipeline = _fit(section, chunk=chunk)
    for rows in (FRAME[FEATURES], NEW):
        expected = transformer.transform(rows.astype({"new": int})).astype(np.float64)
        np.testing.assert_allclose(_inputs(pipeline, rows), expected, rtol=1e-5, atol=2e-6)


TARGETS = {
    "regression": (RNG.normal(100, 5, ROWS) + 10 * (FRAME["color"] == "red"), None),
    "binary": ((RNG.random(ROWS) < 0.3 + 0.5 * FRAME["new"]).astype(np.int64), ["no", "yes"]),
    "multiclass": (np.where(FRAME["color"] == "red", RNG.integers(0, 3, ROWS), 1), ["a", "b", "c"]),
}


@pytest.mark.parametrize("task", TARGETS)
@pytest.mark.parametrize("smooth", ["auto", 7, 0.0])
@pytest.mark.parametrize("chunk", [1000, 41])
def test_target_means_are_as_scikit_learn_has_them(task: str, smooth: Any, chunk: int) -> None:
    targets, classes = (np.asarray(TARGETS[task][0]), TARGETS[task][1])
    named = ["color", "shop", "new"]
    section = _section(_step("target", *named, smooth=smooth), features=named)
    train = np.arange(ROWS) % 4 > 0
    pipeline = _fit(section, targets=targets, classes=classes, train=train, chunk=chunk)
    kind = {"regression": "continuous"}.get(task, task)
    encoder = TargetEncoder(smooth=smooth, target_type=kind)
    encoder.fit(FRAME.loc[train, named], targets[train])
    for rows in (FRAME[named], NEW[named]):
        expected = encoder.transform(rows)
        np.testing.assert_allclose(_inputs(pipeline, rows), expected, rtol=1e-5, atol=1e-6)
    # A training row's value is that of an encoder which saw only the other folds.
    folds = np.where(train, fold_numbers(KEYS), -1)
    stored = pipeline.encode_training(FRAME[named], folds)
    np.testing.assert_array_equal(stored[~train], pipeline.encode(FRAME[named])[~train])
    for fold in range(FOLDS):
        others, rows = train & (folds != fold), folds == fold
        encoder.fit(FRAME.loc[others, named], targets[others])
        np.testing.assert_allclose(
            stored[rows], encoder.transform(FRAME.loc[rows, named]), rtol=1e-5, atol=1e-6
        )


def test_each_label_has_a_mean_of_its_own() -> None:
    targets = np.column_stack([FRAME["color"] == "red", FRAME["new"]]).astype(np.float32)
    section = _section(_step("target", "color", smooth=0.0), features=["color"])
    inputs = _inputs(_fit(section, targets=targets, classes=["a", "b"]), FRAME)
    expected = FRAME.groupby("color")["new"].transform("mean")
    np.testing.assert_allclose(inputs, np.column_stack([FRAME["color"] == "red", expected]), rtol=1e-6)


def test_target_means_need_a_target() -> None:
    section = _section(_step("target"), features=["color"])
    table = pa.Table.from_pandas(FRAME)
    pipeline = Pipeline(describe_features(table, section))
    with pytest.raises(SourceError, match="needs a target"):
        survey_features(section, pipeline, table, np.ones(ROWS, bool), None, KEYS)


def test_a_fold_that_holds_all_rows_takes_their_means() -> None:
    section = _section(_step("target", smooth=0.0), features=["color"])
    pipeline = _fit(section, keys=np.zeros(ROWS, np.uint64))
    stored = pipeline.encode_training(FRAME, np.zeros(ROWS, np.int64))
    np.testing.assert_array_equal(stored, pipeline.encode(FRAME))


def test_a_random_target_does_not_leak_into_its_own_rows() -> None:
    rng = np.random.default_rng(5)
    n = 4000
    frame = pd.DataFrame({"id": rng.integers(0, n // 3, n).astype(str), "y": rng.normal(size=n)})
    section = _section(_step("target", "id", smooth=1.0), features=["id"])
    keys = place_keys(np.arange(n))
    pipeline = _fit(section, frame, keys=keys)
    naive = pipeline.encode(frame)[:, 0]
    guarded = pipeline.encode_training(frame, fold_numbers(keys))[:, 0]
    assert np.corrcoef(naive, frame["y"])[0, 1] > 0.5
    assert abs(np.corrcoef(guarded, frame["y"])[0, 1]) < 0.05


def test_scaled_target_means_are_scaled_as_the_training_rows_have_them() -> None:
    section = _section(_step("target"), _step("standardize", "color"), features=["color", "size"])
    pipeline = _fit(section)
    stored = pipeline.encode_training(FRAME, fold_numbers(KEYS))
    inputs = pipeline.transform(torch.from_numpy(stored)).numpy().astype(np.float64)
    np.testing.assert_allclose((inputs[:, 0].mean(), inputs[:, 0].std()), (0, 1), atol=1e-4)
    np.testing.assert_array_equal(inputs[:, 1], FRAME["size"])


def test_hashed_categories_have_buckets_that_never_change() -> None:
    assert [bucket_number(value, 1000) for value in ("red", 7, True, None)] == HASHED
    script = (
        "from orchestrator.data.features.encoders import bucket_number; print(bucket_number('red', 1000))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) == HASHED[0]
    pipeline = _fit(_section(_step("hashing", "color", "shop", buckets=8)))
    inputs = _inputs(pipeline, NEW)
    assert (pipeline.stored_shape, pipeline.input_shape) == ((5,), (2 + 8 + 8 + 1,))
    for i, row in NEW.iterrows():
        assert inputs[i, 2:10].tolist() == [float(b == bucket_number(row["color"], 8)) for b in range(8)]
        assert inputs[i, 10:18].tolist() == [float(b == bucket_number(row["shop"], 8)) for b in range(8)]
    scaled = _fit(_section(_step("hashing", buckets=4), _step("standardize", "color"), features=["color"]))
    np.testing.assert_allclose(_inputs(scaled, FRAME).mean(axis=0), 0, atol=1e-5)


HASHED = [261, 255, 869, 836]


@pytest.mark.parametrize(
    ("step", "known", "unknown", "null"),
    [
        (_step("one_hot"), [[1, 0, 0], [0, 1, 0]], [0, 0, 0], [0, 0, 1]),
        (_step("ordinal"), [[0], [1]], [-1], [2]),
        (_step("ordinal", unknown=9), [[0], [1]], [9], [2]),
        (_step("target", smooth=0.0), [[1], [2]], [2.5], [4.5]),
    ],
)
@pytest.mark.parametrize("values", [["a", "b", "z"], [5, 10, 7]])
def test_unknown_categories_and_nulls(
    step: dict[str, Any], known: list[Any], unknown: list[Any], null: list[Any], values: list[Any]
) -> None:
    low, high, new = values
    column = pa.array([low, high, None, None])
    table = pa.table({"x": column, "y": [1.0, 2.0, 3.0, 6.0]})
    section = _section({**step, "columns": ["x"]}, features=["x"])
    pipeline = Pipeline(describe_features(table, section))
    partial = survey_features(
        section, pipeline, table, np.ones(4, bool), table["y"].to_numpy(), place_keys(np.arange(4))
    )
    fitted = fit_features(section, pipeline, [partial])
    unknown = [3.0] if step["kind"] == "target" else unknown
    expected = [*known, null, unknown]
    for rows in (
        {"x": [low, high, None, new]},
        pd.DataFrame({"x": [low, high, None, new]}),
        [{"x": low}, {"x": high}, {"x": None}, {"x": new}],
        pa.table({"x": pa.array([low, high, None, new]).dictionary_encode()}),
        np.array([[low], [high], [None], [new]], dtype=object),
        [[low], [high], [None], [new]],
    ):
        np.testing.assert_allclose(_inputs(fitted, rows), expected)
    # Where the training part has no null, a null is unknown.
    partial = survey_features(
        section, pipeline, table, np.arange(4) < 2, table["y"].to_numpy(), place_keys(np.arange(4))
    )
    fitted = fit_features(section, pipeline, [partial])
    np.testing.assert_array_equal(*_inputs(fitted, {"x": [None, new]}))


def test_nulls_that_were_filled_in_training_are_filled_in_raw_rows() -> None:
    pipeline = _fit(_section(_step("one_hot"), features=["color"]))
    filled = Pipeline.from_dict(
        pipeline.to_dict() | {"changes": [{"do": "fill", "column": "color", "value": "red"}]}
    )
    np.testing.assert_array_equal(filled.encode({"color": [None]}), pipeline.encode({"color": ["red"]}))


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b", "c", "é", None]), st.integers(0, 2)), min_size=5, max_size=60
    ),
    st.integers(1, 30),
)
@settings(max_examples=60, deadline=None)
def test_encoders_do_not_depend_on_chunks(rows: list[tuple[str | None, int]], chunk: int) -> None:
    names, y = zip(*rows, strict=True)
    frame = pd.DataFrame({"x": pd.Series(names, dtype=object), "k": np.arange(len(rows)) % 7, "y": y})
    table = pa.table({"x": pa.array(names, pa.string()), "k": frame["k"], "y": y})
    section = _section(_step("target", "x"), _step("one_hot", "k"), features=["x", "k"])
    pipeline = Pipeline(describe_features(table, section), classes=["p", "q", "r"])
    keys = place_keys(np.arange(len(rows)))

    def fitted(step: int) -> Pipeline:
        partials = [
            survey_features(
                section,
                pipeline,
                table.slice(i, step),
                np.ones(len(y[i : i + step]), bool),
                np.array(y[i : i + step]),
                keys[i : i + step],
            )
            for i in range(0, len(rows), step)
        ]
        return fit_features(section, pipeline, partials)

    whole, parted = fitted(len(rows)), fitted(chunk)
    assert whole.encoders["k"] == parted.encoders["k"]
    one, other = whole.encoders["x"], parted.encoders["x"]
    assert one.categories == other.categories
    np.testing.assert_allclose(one.values, other.values, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(one.out_of_fold, other.out_of_fold, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], r"'color' is .*encode them by data.transforms: \[\{kind: one_hot, columns: \[color\]\}\]"),
        (
            [_step("one_hot", "colour")],
            r"transforms\[0\] \(one_hot\).*no feature 'colour'.*did you mean 'color'",
        ),
        ([_step("one_hot", "y")], "no feature 'y'"),
        ([_step("one_hot", "size")], r"'size' is float.*categories are strings, booleans or integers"),
        ([_step("one_hot"), _step("ordinal", "color")], r"transforms\[1\] .*'color' is encoded twice"),
        ([_step("one_hot"), _step("ordinal")], "no column of strings is left"),
        ([_step("one_hot", "shop", "shop"), _step("ordinal")], "'shop' is encoded twice"),
        ([_step("standardize", "color"), _step("one_hot")], r"encoded only further down \(one_hot\)"),
        ([_step("standardize", "color")], r"'color' holds strings.*encode it first"),
    ],
)
def test_transforms_that_do_not_fit_the_columns(steps: list[Any], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        _fit(_section(*steps))


def test_too_many_categories(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(categories, "MAX_NUMBERS", 100)
    frame = FRAME.assign(color=[f"c{i}" for i in range(ROWS)])
    for chunk in (1000, 60):
        with pytest.raises(
            SourceError, match=r"'color' has .* distinct values.*kind: hashing, columns: \[color\]"
        ):
            _fit(_section(_step("ordinal")), frame, chunk=chunk)
    monkeypatch.undo()
    monkeypatch.setattr("orchestrator.data.features.encoders.MAX_ONE_HOT", 100)
    with pytest.raises(SourceError, match="one_hot makes at most 100 columns"):
        _fit(_section(_step("one_hot")), frame)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"color": [3], "shop": [1]}, "'color' must hold strings"),
        ({"color": ["red"], "shop": ["1"]}, "'shop' must hold whole numbers"),
        ({"color": ["red"], "shop": [1.5]}, "'shop' must hold whole numbers"),
        ({"color": ["red"]}, "no column 'shop'"),
        ([["red"], ["blue"]], "shape"),
        (["red", "blue"], "a row is a single value"),
    ],
)
def test_rows_that_do_not_fit(rows: Any, message: str) -> None:
    pipeline = _fit(_section(_step("one_hot", "color", "shop"), features=["color", "shop"]))
    with pytest.raises(DataError, match=message):
        pipeline.encode(rows)


@pytest.mark.parametrize("kind", ["one_hot", "ordinal", "hashing", "target"])
def test_a_pipeline_travels_with_its_encoders(kind: str) -> None:
    pipeline = _fit(_section(_step(kind, "color", "shop", "new"), _step("standardize")))
    saved = Pipeline.from_dict(json.loads(json.dumps(pipeline.to_dict())))
    copied = pickle.loads(pickle.dumps(pipeline))
    assert saved == copied == pipeline
    expected = _inputs(pipeline, NEW)
    np.testing.assert_array_equal(_inputs(saved, NEW), expected)
    np.testing.assert_array_equal(_inputs(copied, NEW), expected)
    folds = fold_numbers(KEYS)
    training = pipeline.encode_training(FRAME, folds)
    np.testing.assert_array_equal(copied.encode_training(FRAME, folds), training)
    if kind == "target":
        with pytest.raises(DataError, match="cannot encode training rows"):
            saved.encode_training(FRAME, folds)


def test_models_that_were_logged_before_there_were_encoders_still_load() -> None:
    pipeline = _fit(_section(_step("standardize"), features=["size", "weight"]))
    old = {name: value for name, value in pipeline.to_dict().items() if name != "encoders"}
    np.testing.assert_array_equal(_inputs(Pipeline.from_dict(old), NEW), _inputs(pipeline, NEW))


def test_prepared_rows_are_the_raw_rows_encoded(tmp_path: Path) -> None:
    frame = FRAME.assign(color=FRAME["color"].where(FRAME.index % 9 > 0, None))
    pq.write_table(pa.Table.from_pandas(frame), tmp_path / "rows.parquet")
    section = DataSection.model_validate(
        {
            "source": {"kind": "parquet", "path": str(tmp_path / "rows.parquet")},
            "target": "y",
            "transforms": [_step("one_hot"), _step("target", "shop"), _step("standardize")],
        }
    )
    prepared = prepare(section, task="auto", seed=0, storage=Folder.at(tmp_path / "storage"))
    assert prepared.manifest.stored_shape == (5,)
    assert prepared.manifest.input_shape == (2 + 5 + 1 + 1,)
    for name in ("train", "val"):
        part = prepared.part(name)
        stored = part.gather(np.arange(part.num_rows)).features.numpy()
        raw = prepared.pipeline.encode(raw_rows(section, prepared, name))
        others = [0, 1, 2, 4]
        np.testing.assert_array_equal(stored[:, others], raw[:, others])
        # A training row's own target is not in its features.
        assert np.array_equal(stored[:, 3], raw[:, 3]) == (name == "val")
