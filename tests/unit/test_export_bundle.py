"""A bundle gives back the model it was made of, for every kind of raw rows, and notices damage."""

from __future__ import annotations

import io
import json
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch import nn

from orchestrator.data.features.pipeline import Pipeline
from orchestrator.data.features.schema import RawSchema
from orchestrator.data.features.tokens import Tokenizer
from orchestrator.data.features.transforms import Affine
from orchestrator.data.preparing.prepare import prepare
from orchestrator.errors import CheckpointError, DataError, UsageError, UserCodeError
from orchestrator.export.bundle import Bundle, load_bundle, write_bundle
from orchestrator.imports import add_search_paths
from orchestrator.models.build import build_model
from orchestrator.spec.data import DataSection
from orchestrator.spec.model import ModelSection
from orchestrator.storage import Folder
from orchestrator.user_code import imported_from
from tests.raw_rows import raw_rows

ARRAYS = Pipeline(
    RawSchema("array", ("image",), ("float64",), (8, 8)),
    transforms=(Affine("standardize", (4.0,), (2.0,)),),
    classes=[3, 7, 9],
)
TABLE = Pipeline(
    RawSchema("table", ("width", "count"), ("float64", "int64")),
    changes=({"do": "fill", "column": "width", "value": 0.5},),
    transforms=(Affine("standardize", (1.0, 10.0), (2.0, 5.0)),),
    target_transform=Affine("standardize", (100.0,), (20.0,)),
)
IMAGES = Pipeline(
    RawSchema("encoded_image", ("photo",), ("bytes",)), image_size=(6, 5), classes=["cat", "dog"]
)


def array_rows(n: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 17, (n, 8, 8)).astype(np.float64)


def png(value: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (5, 6), (value, 40, 90)).save(buffer, "PNG")
    return buffer.getvalue()


def write(
    folder: Path, pipeline: Pipeline, task: str, model: ModelSection, example: pa.Table, **options: Any
) -> nn.Module:
    """A bundle of an untrained model; gives that model, in eval mode."""
    num_outputs = len(pipeline.classes or []) if task in ("multiclass", "multilabel") else 1
    if task == "language_modeling":
        num_outputs = pipeline.vocab_size or 0
    module = build_model(model, pipeline.input_shape, num_outputs).eval()
    write_bundle(
        Folder.at(folder),
        model=model,
        model_state=module.state_dict(),
        pipeline=pipeline,
        task=task,
        num_outputs=num_outputs,
        input_example=example,
        **options,
    )
    return module


HERE = Path(__file__).parent


def write_reviews(folder: Path) -> DataSection:
    import pyarrow.parquet as pq

    rng = np.random.default_rng(0)
    rows = {
        "review": [" ".join(rng.choice(["good", "bad", "so", "so,"], 5)) for _ in range(60)],
        "stars": [0, 1] * 30,
    }
    pq.write_table(pa.table(rows), folder / "reviews.parquet")
    source = {"kind": "parquet", "path": str(folder / "reviews.parquet")}
    return DataSection.model_validate({"source": source, "target": "stars", "text": {"length": 6}})


def write_arrays(folder: Path, name: str = "cnn", **options: Any) -> nn.Module:
    example = pa.table({"image": pa.array(array_rows(2).tolist())})
    return write(folder, ARRAYS, "multiclass", ModelSection(name=name), example, **options)


def test_arrays_predict_as_the_model_does_and_in_any_batch_size(tmp_path: Path) -> None:
    model = write_arrays(tmp_path)
    rows = array_rows(11)
    with torch.no_grad():
        logits = model(torch.tensor((rows - 4) / 2, dtype=torch.float32).reshape(11, 1, 8, 8))
    expected = logits.double().softmax(1).numpy()
    bundle = load_bundle(tmp_path)
    frame = bundle.predict(rows)
    assert list(frame.columns) == ["prediction", "probability_3", "probability_7", "probability_9"]
    np.testing.assert_allclose(frame.iloc[:, 1:].to_numpy(), expected, atol=1e-6)
    assert frame["prediction"].tolist() == [[3, 7, 9][i] for i in expected.argmax(1)]
    assert frame["prediction"].dtype == np.int64
    np.testing.assert_allclose(frame.iloc[:, 1:].sum(axis=1), 1)
    pd.testing.assert_frame_equal(bundle.predict(rows, batch_size=4), frame, atol=1e-6)
    pd.testing.assert_frame_equal(bundle.predict([{"image": row.tolist()} for row in rows]), frame, atol=1e-6)
    assert bundle.predict(rows[:0]).shape == (0, 4)
    example = np.load(tmp_path / "input_example.npy")
    np.testing.assert_array_equal(example, rows[:2])


def test_table_regression_is_in_the_targets_own_unit(tmp_path: Path) -> None:
    example = pa.table({"width": [1.5, None], "count": [3, 4]})
    model = write(tmp_path, TABLE, "regression", ModelSection(name="linear"), example)
    weight, bias = (parameter.detach().numpy() for parameter in model.parameters())
    frame = pd.DataFrame(
        {"count": [5, 10, 20], "width": [1.0, np.nan, 4.0], "ignored": list("abc")}, index=[7, 8, 9]
    )
    width, count = (np.array([1.0, 0.5, 4.0]) - 1) / 2, (np.array([5, 10, 20]) - 10) / 5
    expected = (np.column_stack([width, count]) @ weight[0] + bias[0]) * 20 + 100
    bundle = load_bundle(tmp_path)
    result = bundle.predict(frame)
    assert list(result.columns) == ["prediction"]
    assert list(result.index) == [7, 8, 9]
    np.testing.assert_allclose(result["prediction"], expected, rtol=1e-5)
    rows = [{"width": 1.0, "count": 5}, {"width": None, "count": 10}, {"width": 4.0, "count": 20}]
    np.testing.assert_allclose(bundle.predict(rows)["prediction"], expected, rtol=1e-5)
    np.testing.assert_allclose(
        bundle.predict(np.array([[1.0, 5], [0.5, 10], [4, 20]]))["prediction"], expected, rtol=1e-5
    )
    columns = {"width": [1.0, 0.5, 4.0], "count": [5, 10, 20]}
    np.testing.assert_allclose(bundle.predict(columns)["prediction"], expected, rtol=1e-5)
    assert json.loads((tmp_path / "input_example.json").read_text()) == [
        {"width": 1.5, "count": 3},
        {"width": None, "count": 4},
    ]


def test_every_label_is_predicted_by_itself(tmp_path: Path) -> None:
    pipeline = Pipeline(RawSchema("table", ("x", "y"), ("float64", "float64")), classes=["a", "b", "c"])
    rows = np.random.default_rng(0).normal(size=(20, 2)) * 3
    example = pa.table({"x": [1.0], "y": [2.0]})
    torch.manual_seed(0)
    model = write(tmp_path, pipeline, "multilabel", ModelSection(name="linear"), example)
    with torch.no_grad():
        on = model(torch.tensor(rows, dtype=torch.float32)).double().sigmoid().numpy()
    frame = load_bundle(tmp_path).predict(pd.DataFrame(rows, columns=["x", "y"], index=range(5, 25)))
    assert list(frame.columns) == ["prediction", "probability_a", "probability_b", "probability_c"]
    np.testing.assert_allclose(frame.iloc[:, 1:].to_numpy(), on, atol=1e-6)
    expected = [[label for label, share in zip("abc", row, strict=True) if share >= 0.5] for row in on]
    assert frame["prediction"].tolist() == expected
    assert len({len(labels) for labels in expected}) > 1
    assert list(frame.index) == list(range(5, 25))


def test_raw_texts_predict_as_the_prepared_ones(tmp_path: Path) -> None:
    section = write_reviews(tmp_path)
    prepared = prepare(section, task="auto", seed=0, storage=Folder.at(tmp_path / "storage"))
    with imported_from(HERE, ["text_net"]):
        model = write(
            tmp_path / "model",
            prepared.pipeline,
            prepared.manifest.task,
            ModelSection(name="text_net:Bag"),
            prepared.raw_example(),
            search_paths=[HERE],
        )
    part = prepared.part("test")
    with torch.no_grad():
        inputs = prepared.pipeline.transform(part.gather(np.arange(part.num_rows)).features)
        second = model(inputs).double().sigmoid().numpy()[:, 0]
    texts = raw_rows(section, prepared, "test")["review"].to_pylist()
    bundle = load_bundle(tmp_path / "model")
    frame = bundle.predict(texts)
    np.testing.assert_allclose(frame["probability_1"], second, atol=1e-6)
    pd.testing.assert_frame_equal(bundle.predict(pd.DataFrame({"review": texts})), frame)
    pd.testing.assert_frame_equal(bundle.predict([{"review": text} for text in texts], batch_size=2), frame)
    example = json.loads((tmp_path / "model" / "input_example.json").read_text())
    assert [row["review"] for row in example] == prepared.raw_example()["review"].to_pylist()


def test_a_language_model_names_the_next_token(tmp_path: Path) -> None:
    """The weights say which token follows which; only the last of a text counts, however long it is."""
    pipeline = Pipeline(
        RawSchema("text", ("text",), ("str",), (4,)),
        tokenizer=Tokenizer("char", ("a", "b", "c"), keep_end=True),
    )
    with imported_from(HERE, ["text_net"]):
        section = ModelSection(name="text_net:bigram")
        write(
            tmp_path, pipeline, "language_modeling", section, pa.table({"text": ["a"]}), search_paths=[HERE]
        )
    bundle = load_bundle(tmp_path)
    following = {1: 2, 2: 3, 3: 4, 4: 2}
    embedding, head = bundle.model.children()
    assert isinstance(embedding, nn.Embedding)
    assert isinstance(head, nn.Linear)
    with torch.no_grad():
        embedding.weight.copy_(torch.eye(5, 8))
        head.weight.zero_()
        head.bias.copy_(torch.tensor([9.0, 9.0, 0.0, 0.0, 0.0]))  # padding and unknown are no answer
        for token, after in following.items():
            head.weight[after, token] = 1
    texts = ["a", "ab", "abc", "ccccccca", "?"]
    frame = bundle.predict(pd.DataFrame({"text": texts}, index=range(3, 8)))
    assert frame["prediction"].tolist() == ["b", "c", "a", "b", "a"]
    assert list(frame.index) == [3, 4, 5, 6, 7]
    assert bundle.predict(texts, batch_size=1)["prediction"].tolist() == frame["prediction"].tolist()
    with pytest.raises(DataError, match="empty"):
        bundle.predict(["a", ""])


def test_encoded_images_and_the_single_output_of_a_binary_model(tmp_path: Path) -> None:
    photos = [png(10), png(250), png(120)]
    example = pa.table({"photo": [{"bytes": photos[0], "path": "a.png"}]})
    model = write(tmp_path, IMAGES, "binary", ModelSection(name="linear"), example)
    pixels = np.zeros((3, 3, 6, 5), dtype=np.float32)
    pixels[:, 0] = np.array([10, 250, 120]).reshape(3, 1, 1)
    pixels[:, 1], pixels[:, 2] = 40, 90
    with torch.no_grad():
        dog = model(torch.from_numpy(pixels)).double().sigmoid().numpy()[:, 0]
    bundle = load_bundle(tmp_path)
    frame = bundle.predict(photos)
    assert list(frame.columns) == ["prediction", "probability_cat", "probability_dog"]
    np.testing.assert_allclose(frame["probability_dog"], dog, atol=1e-6)
    np.testing.assert_allclose(frame["probability_cat"], 1 - dog, atol=1e-6)
    assert frame["prediction"].tolist() == ["dog" if p > 0.5 else "cat" for p in dog]
    pd.testing.assert_frame_equal(bundle.predict(pd.DataFrame({"photo": photos})), frame)
    pd.testing.assert_frame_equal(bundle.predict([{"photo": photo} for photo in photos]), frame)


@pytest.mark.parametrize("name", ["digits", "diabetes"])
def test_raw_rows_of_prepared_data_predict_as_the_prepared_rows(name: str, tmp_path: Path) -> None:
    import sklearn.datasets

    section = DataSection.model_validate(
        {
            "source": {"kind": "sklearn", "name": name},
            "target": "label" if name == "digits" else "target",
            "transforms": [{"kind": "standardize"}],
            "target_transform": None if name == "digits" else "standardize",
        }
    )
    prepared = prepare(section, task="auto", seed=0, storage=Folder.at(tmp_path / "storage"))
    part, pipeline = prepared.part("test"), prepared.pipeline
    model = write(
        tmp_path / "model", pipeline, prepared.manifest.task, ModelSection(name="mlp"), prepared.raw_example()
    )
    with torch.no_grad():
        outputs = model(pipeline.transform(part.gather(np.arange(part.num_rows)).features))
    rows = part.source_rows()
    if name == "digits":
        raw: Any = sklearn.datasets.load_digits().images[rows]
        expected = outputs.argmax(1).tolist()
    else:
        raw = sklearn.datasets.load_diabetes(as_frame=True, scaled=True).data.iloc[rows]
        expected = pipeline.inverse_targets(outputs)[:, 0].tolist()
    assert load_bundle(tmp_path / "model").predict(raw)["prediction"].tolist() == pytest.approx(
        expected, rel=1e-5
    )


def test_loading_leaves_the_random_state_alone_and_the_model_in_eval_mode(tmp_path: Path) -> None:
    write_arrays(tmp_path)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    bundle = load_bundle(tmp_path)
    assert torch.equal(torch.rand(1), expected)
    assert not bundle.model.training


@pytest.mark.parametrize("name", ["model.safetensors", "input_example.npy"])
def test_damage_is_noticed(tmp_path: Path, name: str) -> None:
    write_arrays(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[-3] ^= 1
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} is damaged"):
        load_bundle(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CheckpointError, match=rf"lacks {name}"):
        load_bundle(tmp_path)


def test_what_is_no_bundle_or_of_a_later_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no bundle\.json"):
        load_bundle(tmp_path)
    write_arrays(tmp_path)
    manifest = json.loads((tmp_path / "bundle.json").read_text())
    (tmp_path / "bundle.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(UsageError, match="format 99"):
        load_bundle(tmp_path)
    (tmp_path / "bundle.json").write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        load_bundle(tmp_path)


TIED = """
    import torch
    from parts.layers import Half

    class Net(torch.nn.Module):
        def __init__(self, input_shape, num_outputs):
            super().__init__()
            self.first = torch.nn.Linear(64, 64, bias=False)
            self.second = torch.nn.Linear(64, 64, bias=False)
            self.second.weight = self.first.weight
            self.scale = Half()
            self.last = torch.nn.Linear(64, num_outputs)

        def forward(self, images):
            return self.last(self.scale(self.second(self.first(images.flatten(1)))))
"""
LAYERS = """
    from torch import nn
    from .constants import FACTOR

    class Half(nn.Module):
        def forward(self, x):
            return FACTOR * x
"""


def write_user_code(folder: Path, factor: float) -> None:
    (folder / "parts").mkdir(parents=True)
    (folder / "bundled_net.py").write_text(textwrap.dedent(TIED))
    (folder / "parts" / "__init__.py").write_text("")
    (folder / "parts" / "layers.py").write_text(textwrap.dedent(LAYERS))
    (folder / "parts" / "constants.py").write_text(f"FACTOR = {factor}\n")
    (folder / "parts" / "unused.py").write_text("raise RuntimeError\n")


@pytest.fixture
def clean_imports() -> Any:
    """Forget user modules and search paths of a test."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.partition(".")[0] in ("bundled_net", "parts"):
            del sys.modules[name]


@pytest.mark.usefixtures("clean_imports")
def test_user_code_travels_with_the_bundle_and_two_versions_live_in_one_process(tmp_path: Path) -> None:
    rows = array_rows(3)
    models, expected = [], []
    for factor in (0.5, -2.0):
        code = tmp_path / f"code{factor}"
        write_user_code(code, factor)
        with imported_from(code, ["bundled_net", "parts"]):
            models.append(write_arrays(tmp_path / f"model{factor}", "bundled_net:Net", search_paths=[code]))
        with torch.no_grad():
            logits = models[-1](ARRAYS.transform(torch.from_numpy(ARRAYS.encode(rows))))
        expected.append(logits.double().softmax(1).numpy())
    files = sorted(
        path.relative_to(tmp_path / "model0.5").as_posix()
        for path in (tmp_path / "model0.5" / "code").rglob("*.py")
    )
    assert files == [
        "code/bundled_net.py", "code/parts/__init__.py", "code/parts/constants.py", "code/parts/layers.py",
    ]  # fmt: skip
    bundles = [load_bundle(tmp_path / f"model{factor}") for factor in (0.5, -2.0)]
    for bundle, probabilities in zip(bundles, expected, strict=True):
        np.testing.assert_allclose(bundle.predict(rows).iloc[:, 1:].to_numpy(), probabilities, atol=1e-6)
    assert bundles[0].manifest["tied_weights"] == {"second.weight": "first.weight"}
    assert bundles[0].model.second.weight is bundles[0].model.first.weight
    assert not list((tmp_path / "model0.5").rglob("__pycache__"))


@pytest.mark.usefixtures("clean_imports")
def test_a_module_imported_from_elsewhere_does_not_win_and_is_put_back(tmp_path: Path) -> None:
    write_user_code(tmp_path / "trained", 0.5)
    with imported_from(tmp_path / "trained", ["bundled_net", "parts"]):
        write_arrays(tmp_path / "model", "bundled_net:Net", search_paths=[tmp_path / "trained"])
    before = load_bundle(tmp_path / "model").predict(array_rows(3))
    for name in ("bundled_net", "parts", "parts.layers", "parts.constants"):
        sys.modules.pop(name, None)
    write_user_code(tmp_path / "other", 100.0)
    add_search_paths([tmp_path / "other"])
    import parts.layers  # type: ignore[import-not-found]

    pd.testing.assert_frame_equal(load_bundle(tmp_path / "model").predict(array_rows(3)), before)
    assert sys.modules["parts.layers"] is parts.layers
    assert Path(parts.layers.__file__).is_relative_to(tmp_path / "other")


def test_an_older_bundle_in_the_same_place_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "stale.py").write_text("")
    write_arrays(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "bundle.json", "input_example.npy", "model.safetensors",
    ]  # fmt: skip


def test_only_tensors_in_the_state(tmp_path: Path) -> None:
    with pytest.raises(UserCodeError, match="_extra_state"):
        write_bundle(
            Folder.at(tmp_path),
            model=ModelSection(name="linear"),
            model_state={"_extra_state": {"a": 1}},  # type: ignore[dict-item]
            pipeline=ARRAYS,
            task="multiclass",
            num_outputs=3,
            input_example=pa.table({"image": pa.array(array_rows(1).tolist())}),
        )


def test_weights_that_do_not_fit_are_a_checkpoint_error(tmp_path: Path) -> None:
    write_arrays(tmp_path)
    manifest = json.loads((tmp_path / "bundle.json").read_text())
    manifest["model"]["args"] = {"hidden": 5}
    (tmp_path / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="do not fit model 'cnn'"):
        load_bundle(tmp_path)


def test_user_code_that_is_no_python_is_not_carried(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("import helper\n")
    (tmp_path / "helper.py").write_text("def (:\n")
    with pytest.raises(UserCodeError, match=r"helper\.py"):
        write_bundle(
            Folder.at(tmp_path / "model"),
            model=ModelSection(name="net:Net"),
            model_state={},
            pipeline=ARRAYS,
            task="multiclass",
            num_outputs=3,
            input_example=pa.table({"image": pa.array(array_rows(1).tolist())}),
            search_paths=[tmp_path],
        )
    assert not (tmp_path / "model").exists()


def test_prediction_of_no_rows_keeps_the_columns() -> None:
    bundle = Bundle(nn.Identity(), TABLE, "regression", 1, torch.device("cpu"), SimpleNamespace())  # type: ignore[arg-type]
    assert list(bundle.predict([]).columns) == ["prediction"]
