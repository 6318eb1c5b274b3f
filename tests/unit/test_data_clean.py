"""Cleaning steps against what pandas or plain counting says."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pydantic import TypeAdapter, ValidationError

from orchestrator.errors import SourceError
from orchestrator.spec.data import CleanStep
from tests.unit.cleaning_case import Cleaned, clean, refit_fills

_STEP: TypeAdapter[CleanStep] = TypeAdapter(CleanStep)


def _clean(table: pa.Table, *steps: dict[str, object], target: str = "y") -> Cleaned:
    features = [name for name in table.column_names if name != target]
    return clean(table, [_STEP.validate_python(step) for step in steps], features=features, target=target)


TABLE = pa.table(
    {
        "a": [1.0, None, 3.0, float("nan"), 3.0, 100.0],
        "b": pa.array([1, 2, 3, 4, 3, None]),
        "y": ["p", "q", "p", "q", "p", None],
    }
)


def test_drop_nulls_sees_nulls_and_nan() -> None:
    cleaned = _clean(TABLE, {"kind": "drop_nulls"})
    assert cleaned.rows.tolist() == [0, 2, 4]
    assert cleaned.report == ({"step": "drop_nulls", "columns": [], "rows": 3},)
    assert _clean(TABLE, {"kind": "drop_nulls", "columns": ["b"]}).rows.tolist() == [0, 1, 2, 3, 4]


def test_drop_duplicates_keeps_the_first_as_pandas_does() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"a": rng.integers(0, 3, 60), "b": rng.choice([1.5, np.nan], 60), "y": rng.choice(["p", "q"], 60)}
    )
    table = pa.Table.from_pandas(frame, preserve_index=False)
    kept = frame.index[~frame.duplicated()].tolist()
    assert _clean(table, {"kind": "drop_duplicates"}).rows.tolist() == kept
    kept = frame.index[~frame.duplicated(["a"])].tolist()
    assert _clean(table, {"kind": "drop_duplicates", "columns": ["a"]}).rows.tolist() == kept


def test_drop_duplicates_compares_images() -> None:
    pixels = np.zeros((4, 2, 2))
    pixels[2] = 1
    arrays = pa.table({"image": pa.FixedShapeTensorArray.from_numpy_ndarray(pixels), "y": [0, 0, 0, 1]})
    assert _clean(arrays, {"kind": "drop_duplicates"}).rows.tolist() == [0, 2, 3]
    files = [{"bytes": b"x", "path": "1"}, {"bytes": b"x", "path": "2"}, {"bytes": b"z", "path": "3"}]
    encoded = pa.table({"image": files, "y": [0, 0, 0]})
    assert _clean(encoded, {"kind": "drop_duplicates"}).rows.tolist() == [0, 2]


def test_drop_outliers_by_standard_deviations() -> None:
    values = np.append(np.random.default_rng(0).normal(size=100), 50.0)
    table = pa.table({"a": values, "constant": np.ones(101), "y": np.append(np.zeros(100), 1e9)})
    cleaned = _clean(table, {"kind": "drop_outliers", "z": 5})
    assert cleaned.rows.tolist() == list(range(100))


def test_gaps_are_filled_from_training_rows_only() -> None:
    table = pa.table(
        {"a": [1.0, 2.0, None, 900.0, None], "b": pa.array([4, None, 6, 8, 800]), "y": [0, 1, 0, 1, 0]}
    )
    cleaned = _clean(table, {"kind": "fill_nulls", "value": "mean"})
    assert cleaned.report[0]["rows"] == 3
    filled, values = refit_fills(cleaned, np.array([0, 1, 2]))
    assert values == {"a": 1.5, "b": 5.0}
    assert filled["a"].to_pylist() == [1.0, 2.0, 1.5, 900.0, 1.5]
    assert filled["b"].to_pylist() == [4.0, 5.0, 6.0, 8.0, 800.0]


def test_a_later_step_keeps_gaps_and_rows_together() -> None:
    table = pa.table({"a": [None, 1.0, None, 5.0], "y": [None, 1, 0, 1]})
    cleaned = _clean(table, {"kind": "fill_nulls"}, {"kind": "drop_nulls"})
    filled, values = refit_fills(cleaned, np.array([0, 2]))
    assert cleaned.rows.tolist() == [1, 2, 3]
    assert values == {"a": 3.0}
    assert filled["a"].to_pylist() == [1.0, 3.0, 5.0]


def test_constants_fill_too() -> None:
    filled, values = refit_fills(_clean(TABLE, {"kind": "fill_nulls", "value": 0}), np.array([0]))
    assert filled["a"].to_pylist() == [1.0, 0.0, 3.0, 0.0, 3.0, 100.0]
    assert values == {"a": 0, "b": 0}
    text, _ = refit_fills(
        _clean(TABLE, {"kind": "fill_nulls", "columns": ["y"], "value": "r"}), np.array([0])
    )
    assert text["y"].to_pylist()[-1] == "r"


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ({"kind": "drop_nulls", "columns": ["aa"]}, r"data.clean\[0\].*no column 'aa'.*did you mean 'a'"),
        ({"kind": "drop_outliers", "columns": ["y"]}, "'y' has the type string"),
        ({"kind": "fill_nulls", "columns": ["y"]}, "'y' has the type string"),
        ({"kind": "fill_nulls", "columns": ["a"], "value": "none"}, "'a' holds numbers"),
    ],
)
def test_unfit_columns_are_refused(step: dict[str, object], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        _clean(TABLE, step)


def test_more_refusals() -> None:
    with pytest.raises(SourceError, match="no value to learn"):
        _clean(pa.table({"a": [1.0], "y": [2.0]}), {"kind": "fill_nulls", "columns": ["y"], "value": "mean"})
    with pytest.raises(SourceError, match="dropped all 2 rows"):
        _clean(pa.table({"a": pa.array([None, None], pa.float64()), "y": [1, 2]}), {"kind": "drop_nulls"})
    cleaned = _clean(pa.table({"a": [None, 1.0], "y": [1, 2]}), {"kind": "fill_nulls"})
    with pytest.raises(SourceError, match="null in every training row"):
        refit_fills(cleaned, np.array([0]))
    with pytest.raises(ValidationError, match="name the columns"):
        _STEP.validate_python({"kind": "fill_nulls", "value": "unknown"})
