"""Resolve the task, and turn the target column into class indices or numbers. Imports: numpy, pyarrow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.data.columns import is_number, numbers
from orchestrator.errors import SourceError

Task = Literal["multiclass", "binary", "regression"]
Label = str | int | bool

MAX_INTEGER_CLASSES = 100
MIN_ROWS_PER_INTEGER_CLASS = 10


@dataclass(frozen=True)
class Target:
    """What is learned. `values`: class indices (int64) or numbers (float32), shape (rows,)."""

    task: Task
    classes: tuple[Label, ...] | None
    values: NDArray[Any]

    @property
    def num_outputs(self) -> int:
        return len(self.classes) if self.task == "multiclass" and self.classes else 1


def resolve_target(column: pa.ChunkedArray, task: str, name: str) -> Target:
    """The task that `auto` stands for, sorted class labels, and the values.

    `auto`: strings, booleans and dictionaries are classes; integers are when there are only two distinct
    ones, or at most 100 with 10 rows each on average; other numbers are a regression. Two classes are
    `binary`. Raises SourceError where the column does not fit the task. The column must hold no nulls.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    field = f"data.target '{name}'"
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not is_text and not is_number(kind):
        raise SourceError(f"{field} has the type {kind}", "name a column of numbers, strings or booleans")
    if task == "auto" and not _holds_classes(column, is_text):
        task = "regression"
    if task == "regression":
        return Target("regression", None, _regression_values(column, field, is_text))
    return _classes(column, task, field)


def _holds_classes(column: pa.ChunkedArray, is_text: bool) -> bool:
    if is_text or pa.types.is_boolean(column.type):
        return True
    if not pa.types.is_integer(column.type):
        return False
    distinct = len(pc.unique(column))
    few = distinct <= MAX_INTEGER_CLASSES and distinct * MIN_ROWS_PER_INTEGER_CLASS <= len(column)
    return few or distinct <= 2


def _regression_values(column: pa.ChunkedArray, field: str, is_text: bool) -> NDArray[np.float32]:
    if is_text or pa.types.is_boolean(column.type):
        raise SourceError(
            f"{field} holds {'strings' if is_text else 'booleans'}, and train.task is regression",
            "write train.task: auto, or name a column of numbers",
        )
    with np.errstate(over="ignore"):
        values = numbers(column).astype(np.float32)
    if not np.isfinite(values).all():
        raise SourceError(f"{field} holds values that are infinite as float32", "scale or drop them")
    return values


def _classes(column: pa.ChunkedArray, task: str, field: str) -> Target:
    if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
        values = numbers(column)
        if not np.array_equal(values, np.round(values)):
            raise SourceError(
                f"{field} holds fractions, and train.task is {task}",
                "write train.task: regression, or name a column of classes",
            )
        column = column.cast(pa.int64())
    labels: list[Label] = sorted(pc.unique(column).to_pylist())
    if len(labels) < 2:
        raise SourceError(
            f"{field} holds the one class {labels[0]!r}" if labels else f"{field} holds no value",
            "a classification needs at least two; look at data.clean and at the source",
        )
    if task == "binary" and len(labels) > 2:
        shown = ", ".join(repr(label) for label in labels[:5])
        raise SourceError(
            f"{field} holds {len(labels)} classes ({shown}{', …' if len(labels) > 5 else ''}), "
            "and train.task is binary",
            "write train.task: multiclass",
        )
    indices = pc.index_in(column, value_set=pa.array(labels, column.type))
    values = np.asarray(indices.to_numpy(), dtype=np.int64)
    resolved: Task = "binary" if task == "binary" or (task == "auto" and len(labels) == 2) else "multiclass"
    return Target(resolved, tuple(labels), values)
