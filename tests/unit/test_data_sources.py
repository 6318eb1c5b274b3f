"""Sources: each kind read as a user has it, and every fault of a path or column explained."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from orchestrator.data.features.schema import describe_features, require_complete
from orchestrator.data.sources.read import read_source, to_table
from orchestrator.errors import SourceError, UsageError, UserCodeError
from orchestrator.spec.data import DataSection


def _section(source: dict[str, Any], target: str = "label", **more: Any) -> DataSection:
    return DataSection.model_validate({"source": source, "target": target, **more})


def _png(shade: int = 0, mode: str = "L") -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (4, 3), shade).save(buffer, "PNG")
    return buffer.getvalue()


def test_sklearn_digits_are_arrays() -> None:
    table = read_source(_section({"kind": "sklearn", "name": "digits"}))
    assert table.num_rows == 1797
    assert table.schema.field("image").type == pa.fixed_shape_tensor(pa.float64(), (8, 8))
    assert sorted(set(table["label"].to_pylist())) == list(range(10))


@pytest.mark.parametrize(
    ("name", "columns", "labels"),
    [
        ("breast_cancer", 30, {"benign", "malignant"}),
        ("iris", 4, {"setosa", "versicolor", "virginica"}),
        ("wine", 13, {"class_0", "class_1", "class_2"}),
        ("diabetes", 10, None),
    ],
)
def test_sklearn_tables_have_names(name: str, columns: int, labels: set[str] | None) -> None:
    section = _section({"kind": "sklearn", "name": name}, target="target")
    table = read_source(section)
    schema = describe_features(table, section)
    assert (schema.kind, len(schema.columns)) == ("table", columns)
    if labels is None:
        assert pa.types.is_floating(table["target"].type)
    else:
        assert set(table["target"].to_pylist()) == labels
    if name == "breast_cancer":
        assert schema.columns[0] == "mean radius"
        assert table["target"].to_pylist().count("benign") == 357


def test_linear_rows_follow_their_function() -> None:
    source = {"kind": "linear", "coefficients": [3, 2], "noise": 0.1, "rows": 2000, "seed": 1}
    table = read_source(_section(source, target="y"))
    x = np.stack([table["x1"].to_numpy(), table["x2"].to_numpy()], axis=1)
    weights, residual, *_ = np.linalg.lstsq(x, table["y"].to_numpy(), rcond=None)
    np.testing.assert_allclose(weights, [3, 2], atol=0.02)
    assert abs(np.sqrt(residual[0] / 2000) - 0.1) < 0.01
    assert table.equals(read_source(_section(source, target="y")))


def test_image_folder_follows_torchvision(tmp_path: Path) -> None:
    for name in ("dog/2.PNG", "dog/deep/1.png", "cat/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(_png())
    (tmp_path / "cat/notes.txt").write_text("no image")
    table = read_source(_section({"kind": "image_folder", "path": str(tmp_path)}))
    assert table["label"].to_pylist() == ["cat", "dog", "dog"]
    assert [row["path"] for row in table["image"].to_pylist()] == ["cat/1.png", "dog/2.PNG", "dog/deep/1.png"]
    assert table["image"][0].as_py()["bytes"] == _png()


@pytest.mark.parametrize("name", ["a.parquet", "sub/../a.parquet", "*.parquet", "."])
def test_parquet_by_file_glob_and_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    pq.write_table(pa.table({"x": [1.0], "label": [0], "more": ["s"]}), tmp_path / "a.parquet")
    section = _section({"kind": "parquet", "path": f"{tmp_path}/{name}"}, features=["x"])
    assert read_source(section).to_pydict() == {"x": [1.0], "label": [0]}


def test_hugging_face_labels_get_their_names(tmp_path: Path) -> None:
    features = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    table = pa.table({"image": [{"bytes": _png(), "path": None}] * 3, "label": [1, 0, -1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "train.parquet")
    section = _section({"kind": "parquet", "path": str(tmp_path / "train.parquet")})
    read = read_source(section)
    assert read["label"].to_pylist() == ["dog", "cat", None]
    assert describe_features(read, section).kind == "encoded_image"


def test_parquet_keeps_arrays(tmp_path: Path) -> None:
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(pixels)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(pixels.reshape(-1)), 12)
    nested = pa.array(pixels.tolist())
    for column, shape in ((tensors, (3, 4)), (lists, (12,)), (nested, (3, 4))):
        pq.write_table(pa.table({"image": column, "label": [0, 1]}), tmp_path / "a.parquet")
        section = _section({"kind": "parquet", "path": str(tmp_path)})
        assert describe_features(read_source(section), section).shape == shape


def test_csv_files_are_read_together(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('x;label\n1;"yes"\n;no\n')
    (tmp_path / "b.csv").write_text("x;label\n2.5;\n")
    table = read_source(_section({"kind": "csv", "path": str(tmp_path), "delimiter": ";"}))
    assert table.to_pydict() == {"x": [1.0, None, 2.5], "label": ["yes", "no", None]}


@pytest.mark.parametrize(
    "rows",
    [
        pa.table({"x": [1.0, 2.0], "label": ["a", "b"]}),
        pd.DataFrame({"x": [1.0, 2.0], "label": ["a", "b"]}),
        {"x": np.array([1.0, 2.0]), "label": np.array(["a", "b"])},
        [{"x": 1.0, "label": "a"}, {"x": 2.0, "label": "b"}],
    ],
    ids=lambda rows: type(rows).__name__,
)
def test_rows_in_many_forms(rows: object) -> None:
    assert to_table(rows).to_pydict() == {"x": [1.0, 2.0], "label": ["a", "b"]}


def test_arrays_in_dicts_and_frames_become_tensors() -> None:
    pixels = np.zeros((2, 8, 8), dtype=np.float32)
    expected = pa.fixed_shape_tensor(pa.float32(), (8, 8))
    assert to_table({"image": pixels}).schema.field("image").type == expected
    assert to_table(pd.DataFrame({"image": list(pixels)})).schema.field("image").type == expected


def test_python_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_reader.py").write_text(
        "def good(n):\n    return {'x': [0.5] * n, 'label': [1] * n}\n"
        "def bad():\n    return 7\n"
        "def ragged():\n    return {'x': [1], 'label': [1, 2]}\n"
        "def broken():\n    raise KeyError('oh')\n"
    )
    source = {"kind": "python", "function": "my_reader:good", "args": {"n": 3}}
    assert read_source(_section(source)).num_rows == 3
    with pytest.raises(SourceError, match="my_reader:bad returned is no table"):
        read_source(_section({"kind": "python", "function": "my_reader:bad"}))
    with pytest.raises(SourceError, match="my_reader:ragged returned is no table"):
        read_source(_section({"kind": "python", "function": "my_reader:ragged"}))
    with pytest.raises(UserCodeError, match="raised KeyError"):
        read_source(_section({"kind": "python", "function": "my_reader:broken"}))
    with pytest.raises(UsageError, match="no module 'my_raeder'"):
        read_source(_section({"kind": "python", "function": "my_raeder:good"}))


@pytest.mark.parametrize("kind", ["image_folder", "parquet", "csv"])
def test_a_path_that_does_not_exist(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError) as caught:
        read_source(_section({"kind": kind, "path": "nowhere"}))
    assert str(tmp_path / "nowhere") in caught.value.reason
    assert "data.source.path" in caught.value.reason


def test_paths_that_hold_nothing_of_use(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no subfolder"):
        read_source(_section({"kind": "image_folder", "path": str(tmp_path)}))
    (tmp_path / "cat").mkdir()
    with pytest.raises(SourceError, match=r"no image in .*cat"):
        read_source(_section({"kind": "image_folder", "path": str(tmp_path)}))
    with pytest.raises(SourceError, match=r"holds no \.parquet"):
        read_source(_section({"kind": "parquet", "path": str(tmp_path)}))
    with pytest.raises(SourceError, match="no file matches"):
        read_source(_section({"kind": "csv", "path": f"{tmp_path}/*.csv"}))
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        read_source(_section({"kind": "parquet", "path": str(tmp_path)}))
    (tmp_path / "a.csv").write_text("x,x,label\n1,2,3\n")
    with pytest.raises(SourceError, match="several columns 'x'"):
        read_source(_section({"kind": "csv", "path": str(tmp_path)}))
    (tmp_path / "a.csv").write_text("x,label\n")
    with pytest.raises(SourceError, match="no rows"):
        read_source(_section({"kind": "csv", "path": str(tmp_path)}))
    (tmp_path / "a.csv").write_text("x,label\n1\n")
    with pytest.raises(SourceError, match="cannot be read as CSV"):
        read_source(_section({"kind": "csv", "path": str(tmp_path)}))


def test_unknown_columns_are_refused_with_a_guess() -> None:
    source = {"kind": "sklearn", "name": "iris"}
    with pytest.raises(SourceError, match=r"data.target.*'targt'.*did you mean 'target'"):
        read_source(_section(source, target="targt"))
    with pytest.raises(SourceError, match=r"data.features.*did you mean 'petal width \(cm\)'"):
        read_source(_section(source, target="target", features=["petal width"]))


def _describe(table: pa.Table, **more: Any) -> Any:
    section = _section({"kind": "linear", "coefficients": [1]}, **more)
    return describe_features(table, section)


def test_features_that_do_not_fit() -> None:
    pixels = pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 2, 2)))
    with pytest.raises(SourceError, match=r"'name' is string.*data.features: \[x\]"):
        _describe(pa.table({"x": [1.0], "name": ["a"], "label": [0]}))
    with pytest.raises(SourceError, match=r"'path' is string. name other columns by data.features"):
        _describe(pa.table({"path": ["1.png"], "label": [0]}))
    with pytest.raises(SourceError, match="cannot be used together"):
        _describe(pa.table({"image": pixels, "x": [1, 2], "label": [0, 1]}))
    with pytest.raises(SourceError, match="no column but the target"):
        _describe(pa.table({"label": [0, 1]}))
    with pytest.raises(SourceError, match="differ in length"):
        _describe(pa.table({"x": [[1, 2], [3]], "label": [0, 1]}))
    with pytest.raises(SourceError, match="shape"):
        _describe(
            pa.table(
                {"x": pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 1, 1, 1, 1))), "label": [0, 1]}
            )
        )
    assert (
        _describe(pa.table({"image": pixels, "x": [1, 2], "label": [0, 1]}), features=["image"]).kind
        == "array"
    )


def test_gaps_left_after_cleaning_are_refused() -> None:
    table = pa.table({"x": [1.0, None, float("nan")], "y": [1.0, None, 3.0], "z": [1.0, np.inf, 1e300]})
    with pytest.raises(
        SourceError, match=r"feature 'x' is null or NaN in 2 of 3 rows.*drop_nulls.*fill_nulls"
    ):
        require_complete(table, ("x",), "z")
    with pytest.raises(SourceError, match=r"target 'y' is null or NaN in 1 of 3 rows.*drop_nulls") as caught:
        require_complete(table.select(["y"]), (), "y")
    assert "fill_nulls" not in caught.value.mend
    with pytest.raises(SourceError, match=r"'z' is infinite .* in 2 of 3 rows"):
        require_complete(pa.table({"z": table["z"], "y": [0, 1, 0]}), ("z",), "y")
