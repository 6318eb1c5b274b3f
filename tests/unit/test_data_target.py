"""What `task: auto` stands for, and which columns fit which task."""

import numpy as np
import pyarrow as pa
import pytest

from orchestrator.data.features.target import resolve_target
from orchestrator.errors import SourceError


def _resolve(values: object, task: str = "auto"):  # type: ignore[no-untyped-def]
    return resolve_target(pa.chunked_array([pa.array(values)]), task, "y")


@pytest.mark.parametrize(
    ("values", "task", "classes", "num_outputs"),
    [
        (["b", "a", "b"], "binary", ("a", "b"), 1),
        (["b", "a", "c"], "multiclass", ("a", "b", "c"), 3),
        ([True, False], "binary", (False, True), 1),
        (pa.array(["x", "y", "x"]).dictionary_encode(), "binary", ("x", "y"), 1),
        ([0, 1, 1], "binary", (0, 1), 1),
        ([5, 3, 9] * 10, "multiclass", (3, 5, 9), 3),
        ([5, 3, 9] * 9, "regression", None, 1),
        (list(range(101)) * 10, "regression", None, 1),
        ([0.0, 1.0], "regression", None, 1),
        ([["b", "a"], [], ["b", "b"]], "multilabel", ("a", "b"), 2),
        (pa.array([[7, 5, 3], [5]], pa.large_list(pa.int32())), "multilabel", (3, 5, 7), 3),
        (pa.array([[5, 3], [7, 3]], pa.list_(pa.int8(), 2)), "multilabel", (3, 5, 7), 3),
        (
            pa.array([["x"], ["y"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
            "multilabel",
            ("x", "y"),
            2,
        ),
    ],
)
def test_auto(values: object, task: str, classes: object, num_outputs: int) -> None:
    target = _resolve(values)
    assert (target.task, target.classes, target.num_outputs) == (task, classes, num_outputs)
    floats = task in ("regression", "multilabel")
    assert target.values.dtype == (np.float32 if floats else np.int64)


def test_values_are_class_indices() -> None:
    assert _resolve(["b", "a", "c", "a"]).values.tolist() == [1, 0, 2, 0]


def test_each_label_has_its_column() -> None:
    target = resolve_target(pa.chunked_array([[["c", "a"], []], [["b"], ["a", "a"]]]), "multilabel", "y")
    assert target.values.tolist() == [[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 0, 0]]
    assert target.class_counts(np.array([0, 1, 3])) == {"a": 2, "b": 0, "c": 1}
    assert target.class_indices is None


def test_an_explicit_task_wins() -> None:
    assert _resolve([0, 1, 2], "multiclass").classes == (0, 1, 2)
    assert _resolve([0.0, 1.0, 0.0], "binary").classes == (0, 1)
    assert _resolve(["a", "b"], "multiclass").num_outputs == 2
    assert _resolve([0, 1, 1], "regression").values.tolist() == [0.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("values", "task", "message"),
    [
        (["a", "b"], "regression", "strings"),
        ([True, False], "regression", "booleans"),
        (["a", "a"], "auto", "one class"),
        ([1, 1], "multiclass", "one class"),
        ([1, 2, 3], "binary", "3 classes"),
        ([0.5, 1.0], "multiclass", "fractions"),
        ([[1], [2]], "multiclass", "type"),
        (["a", "b"], "multilabel", "type string"),
        ([[0, 1, 0], [1, 1, 0]], "auto", "nothing but 0 and 1"),
        ([["a"], ["a"]], "auto", "one class 'a'"),
        ([[], []], "multilabel", "nulls|type null"),
        ([[0.5], [1.0]], "auto", "type double"),
        ([["a", None], ["b"]], "auto", "hold nulls"),
        ([[[1]], [[2]]], "auto", "type list"),
        ([1e300, 1.0], "regression", "infinite"),
    ],
)
def test_what_does_not_fit_is_refused(values: object, task: str, message: str) -> None:
    with pytest.raises(SourceError, match=message) as caught:
        _resolve(values, task)
    assert "'y'" in caught.value.reason
    assert caught.value.mend
