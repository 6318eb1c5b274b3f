"""Resolve the task, and turn the target column into class indices or numbers. Imports: numpy, pyarrow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from orchestrator.data.columns import is_list, is_number, is_text, numbers
from orchestrator.errors import SourceError

Task = Literal["multiclass", "binary", "multilabel", "regression", "language_modeling"]
Label = str | int | bool

MAX_INTEGER_CLASSES = 100
MIN_ROWS_PER_INTEGER_CLASS = 10


@dataclass(frozen=True)
class Target:
    """What is learned. `values`: class indices (int64) or numbers (float32), shape (rows,); for multilabel 1
    where a row has a label, else 0 (float32), shape (rows, labels); for a language model the next tokens, in
    the tokenizer's type, shape (rows, length)."""

    task: Task
    classes: tuple[Label, ...] | None
    values: NDArray[Any]
    num_outputs: int = 1
    """Of the model: the number of classes, labels or token ids; 1 for binary and regression."""

    @property
    def class_indices(self) -> NDArray[np.int64] | None:
        """The class of each row, shape (rows,); None where a row has not exactly one."""
        return self.values if self.task in ("multiclass", "binary") else None

    def class_counts(self, rows: NDArray[np.int64]) -> dict[str, int] | None:
        """How many of these rows have each class or label, by its text; None where there are no classes."""
        if self.classes is None:
            return None
        values = self.values[rows]
        if self.task == "multilabel":
            counts = values.sum(axis=0, dtype=np.int64)
        else:
            counts = np.bincount(values, minlength=len(self.classes))
        return dict(zip(map(str, self.classes), counts.tolist(), strict=True))


def resolve_target(column: pa.ChunkedArray, task: str, name: str) -> Target:
    """The task that `auto` stands for, sorted class labels, and the values.

    `auto`: lists are multilabel; strings, booleans and dictionaries are classes; integers are when there are
    only two distinct ones, or at most 100 with 10 rows each on average; other numbers are a regression. Two
    classes are `binary`. Raises SourceError where the column does not fit the task. The column must hold no
    nulls.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    field = f"data.target '{name}'"
    if is_list(kind) and task in ("auto", "multilabel"):
        return _labels(column, field)
    if task == "multilabel":
        raise SourceError(
            f"{field} has the type {kind}, and train.task is multilabel",
            "give each row a list of its labels, or write train.task: multiclass",
        )
    if not is_text(kind) and not is_number(kind):
        mend = "write train.task: multilabel, or " if is_list(kind) else ""
        raise SourceError(
            f"{field} has the type {kind}", f"{mend}name a column of numbers, strings or booleans"
        )
    if task == "auto" and not _holds_classes(column):
        task = "regression"
    if task == "regression":
        return Target("regression", None, _regression_values(column, field))
    return _classes(column, task, field)


def _holds_classes(column: pa.ChunkedArray) -> bool:
    if is_text(column.type) or pa.types.is_boolean(column.type):
        return True
    if not pa.types.is_integer(column.type):
        return False
    distinct = len(pc.unique(column))
    few = distinct <= MAX_INTEGER_CLASSES and distinct * MIN_ROWS_PER_INTEGER_CLASS <= len(column)
    return few or distinct <= 2


def _regression_values(column: pa.ChunkedArray, field: str) -> NDArray[np.float32]:
    text = is_text(column.type)
    if text or pa.types.is_boolean(column.type):
        raise SourceError(
            f"{field} holds {'strings' if text else 'booleans'}, and train.task is regression",
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
    labels = _distinct(column, field)
    if task == "binary" and len(labels) > 2:
        shown = ", ".join(repr(label) for label in labels[:5])
        raise SourceError(
            f"{field} holds {len(labels)} classes ({shown}{', …' if len(labels) > 5 else ''}), "
            "and train.task is binary",
            "write train.task: multiclass",
        )
    indices = pc.index_in(column, value_set=pa.array(labels, column.type))
    values = np.asarray(indices.to_numpy(), dtype=np.int64)
    if task == "binary" or (task == "auto" and len(labels) == 2):
        return Target("binary", tuple(labels), values)
    return Target("multiclass", tuple(labels), values, len(labels))


def _labels(column: pa.ChunkedArray, field: str) -> Target:
    """The target of a column of lists of labels; a list may be empty."""
    flat = pc.list_flatten(column)
    if pa.types.is_dictionary(flat.type):
        flat = flat.cast(flat.type.value_type)
    kind = flat.type
    if flat.null_count or not (is_text(kind) or pa.types.is_integer(kind)):
        held = "nulls" if flat.null_count else f"values of the type {kind}"
        raise SourceError(f"{field}: its lists hold {held}", "give each row a list of strings or integers")
    labels = _distinct(flat, field)
    lengths = np.asarray(pc.list_value_length(column).to_numpy(), dtype=np.int64)
    if set(labels) <= {0, 1} and lengths.max() > len(labels):
        raise SourceError(
            f"{field}: its lists hold nothing but 0 and 1, up to {lengths.max()} of them",
            "give each row a list of the labels that it has, not one number per label",
        )
    values = np.zeros((len(column), len(labels)), dtype=np.float32)
    indices = np.asarray(pc.index_in(flat, value_set=pa.array(labels, kind)).to_numpy(), dtype=np.int64)
    values[np.repeat(np.arange(len(column)), lengths), indices] = 1
    return Target("multilabel", tuple(labels), values, len(labels))


def _distinct(column: pa.ChunkedArray, field: str) -> list[Label]:
    """The sorted values of a column, of which there must be two at least."""
    labels: list[Label] = sorted(pc.unique(column).to_pylist())
    if len(labels) < 2:
        raise SourceError(
            f"{field} holds the one class {labels[0]!r}" if labels else f"{field} holds no value",
            "a classification needs at least two; look at data.clean and at the source",
        )
    return labels
