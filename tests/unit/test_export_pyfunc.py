"""A logged bundle takes raw rows through MLflow, here and in a process that knows nothing of this package."""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
import warnings
from dataclasses import replace
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

from orchestrator.data.features.encoders import Encoder
from orchestrator.data.features.pipeline import Pipeline
from orchestrator.data.features.schema import RawSchema
from orchestrator.data.features.tokens import Tokenizer
from orchestrator.data.features.transforms import Affine
from orchestrator.export.bundle import load_bundle, write_bundle
from orchestrator.export.manifest import code_paths, pip_requirements, pyfunc_fields, signature
from orchestrator.models.build import build_model
from orchestrator.spec.model import ModelSection
from orchestrator.storage import Folder
from orchestrator.user_code import imported_from

ARRAYS = Pipeline(
    RawSchema("array", ("image",), ("float64",), (8, 8)),
    transforms=(Affine("scale", (0.0,), (16.0,)),),
    classes=[0, 1, 2],
)
TABLE = Pipeline(
    RawSchema("table", ("width", "count", "flag"), ("float32", "int32", "bool")), classes=["no", "yes"]
)
IMAGES = Pipeline(
    RawSchema("encoded_image", ("photo",), ("bytes",)), image_size=(6, 5), classes=[False, True]
)
NUMBERS = Pipeline(RawSchema("table", ("x1", "x2"), ("float64", "float64")))
LABELS = Pipeline(RawSchema("table", ("x1", "x2"), ("float64", "float64")), classes=["a", "b"])
TEXTS = Pipeline(
    RawSchema("text", ("review",), ("str",), (4,)), classes=[0, 1], tokenizer=Tokenizer("char", ("a", "b"))
)
CATEGORIES = Pipeline(
    RawSchema("table", ("color", "shop", "new", "size"), ("str", "int64", "bool", "float64")),
    encoders={
        "color": Encoder("one_hot", "str", ("blue", "red")),
        "shop": Encoder("target", "int64", (1, 5), (0.5,), ((0.25,), (0.75,))),
        "new": Encoder("hashing", "bool", buckets=3),
    },
    classes=["no", "yes"],
)
STREAM = Pipeline(RawSchema("text", ("text",), ("str",), (4,)), tokenizer=Tokenizer("byte", keep_end=True))


def png(value: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (5, 6), (value, 40, 90)).save(buffer, "PNG")
    return buffer.getvalue()


ARRAY_ROWS = np.arange(3 * 64, dtype=np.float64).reshape(3, 8, 8)
TABLE_ROWS = pd.DataFrame({"width": [1.5, 2.5], "count": [3, 4], "flag": [True, False]})
CATEGORY_ROWS = pd.DataFrame(
    {
        "color": ["red", "green", "blue"],
        "shop": [5, 1, 7],
        "new": [True, False, True],
        "size": [0.5, 1.5, 2.5],
    }
)
IMAGE_ROWS = pd.DataFrame({"photo": [png(3), png(200)]})
NUMBER_ROWS = pd.DataFrame({"x1": [0.5, 1.5], "x2": [1.0, -1.0]})
REVIEW_ROWS = pd.DataFrame({"review": ["abba", "b"]})
TEXT_ROWS = pd.DataFrame({"text": ["to be or not", "a"]})
CASES: dict[str, tuple[Pipeline, str, Any]] = {
    "array": (ARRAYS, "multiclass", ARRAY_ROWS),
    "table": (TABLE, "binary", TABLE_ROWS),
    "categories": (CATEGORIES, "binary", CATEGORY_ROWS),
    "image": (IMAGES, "binary", IMAGE_ROWS),
    "regression": (NUMBERS, "regression", NUMBER_ROWS),
    "multilabel": (LABELS, "multilabel", NUMBER_ROWS),
    "text": (TEXTS, "binary", REVIEW_ROWS),
    "stream": (STREAM, "language_modeling", TEXT_ROWS),
}
USER_MODELS = {"text": "text_net:Bag", "stream": "text_net:bigram"}
HERE = Path(__file__).parent


def write(
    folder: Path, pipeline: Pipeline, task: str, rows: Any, name: str = "linear", **options: Any
) -> None:
    num_outputs = len(pipeline.classes or []) if task in ("multiclass", "multilabel") else 1
    if task == "language_modeling":
        num_outputs = pipeline.vocab_size or 0
    section = ModelSection(name=name)
    table = (
        pa.table({"image": pa.array(rows.tolist())})
        if isinstance(rows, np.ndarray)
        else pa.Table.from_pandas(rows)
    )
    write_bundle(
        Folder.at(folder),
        model=section,
        model_state=build_model(section, pipeline.input_shape, num_outputs).state_dict(),
        pipeline=pipeline,
        task=task,
        num_outputs=num_outputs,
        input_example=table,
        **options,
    )


def write_case(folder: Path, kind: str) -> None:
    pipeline, task, rows = CASES[kind]
    torch.manual_seed(0)  # MLflow cannot infer the type of nothing but empty lists
    with imported_from(HERE, ["text_net"]):
        write(folder, pipeline, task, rows, USER_MODELS.get(kind, "linear"), search_paths=[HERE])


@pytest.fixture(scope="module")
def pyfunc() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's own imports
        import mlflow.pyfunc
    return mlflow.pyfunc


def save(pyfunc: Any, bundle: Path, target: Path, example: Any) -> None:
    from mlflow.models import ModelSignature

    fields = pyfunc_fields(bundle)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pyfunc.save_model(
            str(target),
            data_path=str(bundle),
            loader_module=fields["loader_module"],
            code_paths=list(fields["code_paths"]),
            pip_requirements=list(fields["pip_requirements"]),
            signature=ModelSignature.from_dict(fields["signature"]),
            input_example=example,
        )


@pytest.mark.parametrize("kind", CASES)
def test_a_saved_model_takes_raw_rows_with_its_signature_enforced(
    kind: str, tmp_path: Path, pyfunc: Any
) -> None:
    from mlflow.exceptions import MlflowException

    rows = CASES[kind][2]
    write_case(tmp_path / "bundle", kind)
    save(pyfunc, tmp_path / "bundle", tmp_path / "saved", rows)
    loaded = pyfunc.load_model(str(tmp_path / "saved"))
    expected = load_bundle(tmp_path / "bundle").predict(rows)
    pd.testing.assert_frame_equal(loaded.predict(rows), expected)
    wrong = rows.astype(np.float32) if isinstance(rows, np.ndarray) else rows.drop(columns=rows.columns[0])
    with pytest.raises(MlflowException):
        loaded.predict(wrong)


@pytest.mark.parametrize("kind", CASES)
def test_the_signature_is_the_one_that_mlflow_infers(kind: str, tmp_path: Path, pyfunc: Any) -> None:
    from mlflow.models import ModelSignature, infer_signature

    pipeline, task, rows = CASES[kind]
    write_case(tmp_path, kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that integer columns cannot hold missing values
        inferred = infer_signature(rows, load_bundle(tmp_path).predict(rows))
    ours = ModelSignature.from_dict(signature(pipeline, task))
    assert ours == inferred
    assert ours.to_dict() == signature(pipeline, task)


def test_nulls_that_are_categories_pass_the_signature(tmp_path: Path, pyfunc: Any) -> None:
    encoders = {
        "color": Encoder("one_hot", "str", ("red", None)),
        "shop": Encoder("ordinal", "int64", (1, 5, None)),
        "size": Encoder("ordinal", "int64", (1, 2)),
    }
    pipeline = Pipeline(
        RawSchema("table", ("color", "shop", "size"), ("str", "int64", "int64")), encoders=encoders
    )
    rows = pd.DataFrame({"color": ["red", None], "shop": [5, None], "size": [1, 2]})
    assert pipeline.encode(rows).tolist() == [[0, 1, 0], [1, 2, 1]]
    write(tmp_path / "bundle", pipeline, "regression", rows)
    save(pyfunc, tmp_path / "bundle", tmp_path / "saved", rows[:1])
    loaded = pyfunc.load_model(str(tmp_path / "saved"))
    expected = load_bundle(tmp_path / "bundle").predict(rows)
    pd.testing.assert_frame_equal(loaded.predict(rows), expected)
    without_nulls = loaded.predict(pd.DataFrame({"color": ["red"], "shop": [5.0], "size": [1]}))
    pd.testing.assert_frame_equal(without_nulls, expected[:1])
    as_dicts = load_bundle(tmp_path / "bundle").predict(
        [{"color": "red", "shop": 5, "size": 1}, {"color": None, "shop": None, "size": 2}]
    )
    pd.testing.assert_frame_equal(as_dicts, expected)


def test_the_example_of_images_is_base64_text(tmp_path: Path) -> None:
    write(tmp_path, IMAGES, "binary", IMAGE_ROWS)
    rows = json.loads((tmp_path / pyfunc_fields(tmp_path)["input_example"]).read_text())
    assert [base64.b64decode(row["photo"]) for row in rows] == list(IMAGE_ROWS["photo"])


def test_a_fresh_process_needs_nothing_but_the_saved_model(tmp_path: Path, pyfunc: Any) -> None:
    code = tmp_path / "code"
    code.mkdir()
    (code / "shipped_net.py").write_text(
        "import math\nfrom torch import nn\nfrom shipped_part import width\n\n\n"
        "def build(input_shape, num_outputs):\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(width(input_shape), num_outputs))\n"
    )
    (code / "shipped_part.py").write_text("import math\n\n\ndef width(shape):\n    return math.prod(shape)\n")
    sys.path.insert(0, str(code))
    try:
        write(tmp_path / "bundle", ARRAYS, "multiclass", ARRAY_ROWS, "shipped_net:build", search_paths=[code])
    finally:
        sys.path.remove(str(code))
        for name in ("shipped_net", "shipped_part"):
            sys.modules.pop(name, None)
    save(pyfunc, tmp_path / "bundle", tmp_path / "saved", ARRAY_ROWS)
    expected = load_bundle(tmp_path / "bundle").predict(ARRAY_ROWS)
    script = f"""
import json, sys
import mlflow.pyfunc, numpy as np
before = set(sys.modules)
model = mlflow.pyfunc.load_model({str(tmp_path / "saved")!r})
result = model.predict(np.arange(192, dtype=np.float64).reshape(3, 8, 8))
import orchestrator.export.pyfunc
files = [orchestrator.export.pyfunc.__file__, sys.modules["shipped_part"].__file__]
print(json.dumps([result.to_dict("list"), files, sorted(set(sys.modules) - before)]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=tmp_path,
        env={"PATH": "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    result, files, imported = json.loads(done.stdout.splitlines()[-1])
    pd.testing.assert_frame_equal(pd.DataFrame(result), expected)
    # Also where this package is installed: what was shipped with the model comes first.
    assert all(Path(file).is_relative_to(tmp_path / "saved") for file in files)
    loaded = {name.partition(".")[0] for name in imported}
    assert not loaded & {"ray", "sklearn", "torchmetrics", "torchvision", "filelock", "psutil"}


def test_requirements_cover_what_scoring_imports_and_name_no_local_build() -> None:
    script = """
import sys
sys.path.insert(0, sys.argv[1])
import json
from orchestrator.export.pyfunc import _load_pyfunc
import pandas, PIL.Image
print(json.dumps(sorted({name.partition(".")[0] for name in sys.modules})))
"""
    root = Path(code_paths()[0]).parent
    done = subprocess.run(
        [sys.executable, "-c", script, str(root)], capture_output=True, text=True, check=True
    )
    pinned = {line.partition("==")[0] for line in pip_requirements("cnn")}
    assert all("+" not in line and "==" in line for line in pip_requirements("torchvision/resnet18"))
    assert "torchvision" not in pinned
    assert "torchvision" in {line.partition("==")[0] for line in pip_requirements("torchvision/resnet18")}
    assert "tokenizers" not in pinned
    tokenizer = Tokenizer("bpe", ("a",))
    assert any(
        line.startswith("tokenizers==")
        for line in pip_requirements("cnn", replace(TEXTS, tokenizer=tokenizer))
    )
    distributions = packages_distributions()
    wanted = {
        distribution.lower()
        for module in json.loads(done.stdout)
        for distribution in distributions.get(module, [])
    }
    allowed = pinned | requirements_of(pinned)
    taken_by_torch_where_they_are = {"cloudpickle", "nvidia-ml-py", "tqdm"}
    assert wanted - allowed - taken_by_torch_where_they_are - {"ray-orchestrator"} == set()


def requirements_of(names: set[str]) -> set[str]:
    """All that these distributions require, directly or not, extras left out."""
    from importlib.metadata import PackageNotFoundError, requires

    from packaging.requirements import Requirement

    found: set[str] = set()
    waiting = list(names)
    while waiting:
        try:
            lines = requires(waiting.pop()) or []
        except PackageNotFoundError:
            continue
        for requirement in map(Requirement, lines):
            name = requirement.name.lower().replace("_", "-")
            if name not in found and (
                requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            ):
                found.add(name)
                waiting.append(name)
    return found | {name.replace("-", "_") for name in found}
