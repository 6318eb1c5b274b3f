"""The way from raw rows to a model's input, fitted on the training part, saved with the model.

`encode` makes fixed-width arrays of raw rows, `transform` makes model inputs of a batch of those.
Preparation, training and prediction all go this way. Imports: numpy, pyarrow; torch in methods that take
tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from orchestrator.data.cleaning.replay import ValueChange, replay
from orchestrator.data.columns import array_values, is_array, is_encoded_image, is_number, is_text
from orchestrator.data.features import transforms
from orchestrator.data.features.categories import category_values
from orchestrator.data.features.encoders import Encoder, Layout, table_layout
from orchestrator.data.features.images import decode_images
from orchestrator.data.features.rows import are_dicts, named_columns, rows_table
from orchestrator.data.features.schema import (
    RawSchema,
    array_matrix,
    model_shape,
    number_matrix,
    stored_shape,
)
from orchestrator.data.features.target import Label
from orchestrator.data.features.tokens import Tokenizer
from orchestrator.data.features.transforms import Affine
from orchestrator.errors import DataError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Pipeline:
    """Fitted state and nothing else; `to_dict` and `from_dict` carry it as JSON."""

    raw_schema: RawSchema
    image_size: tuple[int, int] = (32, 32)
    image_mode: Literal["rgb", "grayscale"] = "rgb"
    changes: tuple[ValueChange, ...] = ()
    """What cleaning did to the values of the training rows, and now does to raw ones before they are encoded."""
    sent: Mapping[str, str] = field(default_factory=dict)
    """The dtypes of raw columns whose type cleaning changes; the schema has those after it."""
    encoders: Mapping[str, Encoder] = field(default_factory=dict)
    """Of a table's columns of categories."""
    transforms: tuple[Affine, ...] = ()
    target_transform: Affine | None = None
    classes: list[Label] | None = None
    """Labels by class index; None for a regression and for a language model."""
    tokenizer: Tokenizer | None = None
    """Of text; None for all else."""
    _tensors: dict[Any, tuple[Tensor, Tensor]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Shape of one encoded row: (height, width, channels), (columns,) or (tokens,)."""
        if self.raw_schema.kind == "table":
            return (len(self.layout.stored_columns),)
        return stored_shape(self.raw_schema, self.image_size, self.image_mode)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one row of a model's input: (channels, height, width), (columns,) or (tokens,)."""
        return (
            (len(self.layout.raw_columns),)
            if self.raw_schema.kind == "table"
            else model_shape(self.stored_shape)
        )

    @cached_property
    def layout(self) -> Layout:
        """How the columns of a table are stored, and what a model's input has of them."""
        columns = self.raw_schema.columns
        return table_layout([self.encoders.get(name) for name in columns])

    @property
    def vocab_size(self) -> int | None:
        """Number of token ids; None where the input is no text."""
        return self.tokenizer.vocab_size if self.tokenizer else None

    def encode(self, rows: object) -> NDArray[Any]:
        """Raw rows as an array of shape (rows, *stored_shape): uint8 for encoded images and uint8 arrays,
        token ids in the tokenizer's type for text, else float32. Takes a pyarrow Table, a pandas DataFrame,
        a dict of columns, a list of row dicts, a numpy array (arrays, or values with columns in order), or
        a list of encoded images' bytes or of texts.

        Raises DataError where columns, shapes or values do not fit.
        """
        return self._encode(rows, None)

    def encode_training(self, rows: object, folds: NDArray[np.int64]) -> NDArray[Any]:
        """As `encode`, but a training row's target means leave out the rows of its fold: its own target is not
        in its features. `folds` (rows,) are those of `fold_numbers`; -1 for a row of another part.

        Only a pipeline fresh from `fit_features` can, or a pickled copy of one: the means that leave out a fold
        are not saved with a model.
        """
        return self._encode(rows, folds)

    def _encode(self, rows: object, folds: NDArray[np.int64] | None) -> NDArray[Any]:
        kind = self.raw_schema.kind
        if kind == "array":
            return self._encode_arrays(rows)
        if kind == "encoded_image":
            return self._encode_images(rows)
        if kind == "text":
            return self._encode_texts(rows)
        return self._encode_columns(rows, folds)

    def transform(self, features: Tensor) -> Tensor:
        """Encoded rows as a model's input: float32, or int64 for tokens; contiguous, shape
        (rows, *input_shape), same device."""
        import torch

        if self.tokenizer is not None:
            return features.to(torch.int64, memory_format=torch.contiguous_format)
        shape = self.stored_shape
        if len(shape) == 3:
            rows, (height, width, channels) = features.shape[0], shape
            if channels == 1:
                features = features.reshape(rows, 1, height, width)
            else:
                features = features.reshape(rows, *shape).permute(0, 3, 1, 2)
        inputs = features.to(torch.float32, memory_format=torch.contiguous_format)
        if self.encoders and self.layout.expands:
            inputs = self._expanded(inputs)
        scaling = self._scaling(inputs)
        return inputs if scaling is None else transforms.apply(inputs, *scaling)

    def transform_targets(self, targets: Tensor) -> Tensor:
        """Regression targets as the model learns them; all others are left alone."""
        if self.target_transform is None:
            return targets
        return targets.sub(self.target_transform.shift[0]).div_(self.target_transform.divide[0])

    def inverse_targets(self, targets: Tensor) -> Tensor:
        """What the model learned, back in the target's own unit."""
        if self.target_transform is None:
            return targets
        return targets.mul(self.target_transform.divide[0]).add_(self.target_transform.shift[0])

    def to_dict(self) -> dict[str, Any]:
        return {
            "raw_schema": self.raw_schema.to_dict(),
            "image_size": list(self.image_size),
            "image_mode": self.image_mode,
            "changes": [dict(change) for change in self.changes],
            "sent": dict(self.sent),
            "encoders": {name: encoder.to_dict() for name, encoder in self.encoders.items()},
            "transforms": [step.to_dict() for step in self.transforms],
            "target_transform": self.target_transform.to_dict() if self.target_transform else None,
            "classes": self.classes,
            "tokenizer": self.tokenizer.to_dict() if self.tokenizer else None,
        }

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Pipeline:
        target = value["target_transform"]
        tokenizer = value.get("tokenizer")  # models that were logged before there was text have none
        return cls(
            raw_schema=RawSchema.from_dict(value["raw_schema"]),
            image_size=(int(value["image_size"][0]), int(value["image_size"][1])),
            image_mode=value["image_mode"],
            changes=tuple(value["changes"] if "changes" in value else _old_fills(value["fills"])),
            sent=dict(value.get("sent", {})),
            encoders={
                name: Encoder.from_dict(encoder) for name, encoder in value.get("encoders", {}).items()
            },
            transforms=tuple(Affine.from_dict(step) for step in value["transforms"]),
            target_transform=Affine.from_dict(target) if target else None,
            classes=list(value["classes"]) if value["classes"] is not None else None,
            tokenizer=Tokenizer.from_dict(tokenizer) if tokenizer else None,
        )

    def __reduce__(self) -> tuple[Any, ...]:
        # Tensors of this process's devices stay here; what `to_dict` leaves out of a saved model goes along.
        return _restored, (self.to_dict(), dict(self.encoders))

    def _expanded(self, stored: Tensor) -> Tensor:
        """A table's stored rows with a column of 0 and 1 for each category, float32 (rows, width)."""
        import torch

        key = "layout", stored.device
        if key not in self._tensors:
            layout = self.layout
            self._tensors[key] = (
                torch.from_numpy(layout.sources).to(stored.device),
                torch.from_numpy(layout.codes).to(stored.device),
            )
        sources, codes = self._tensors[key]
        taken = stored.index_select(1, sources)
        return torch.where(codes.isnan(), taken, (taken == codes).to(torch.float32))

    def _scaling(self, inputs: Tensor) -> tuple[Tensor, Tensor] | None:
        """Shift and divide on the inputs' device, shaped to broadcast; made once per device."""
        import torch

        if not self.transforms:
            return None
        if inputs.device not in self._tensors:
            chain = transforms.fold(self.transforms)
            assert chain is not None
            shape = (-1, 1, 1) if inputs.ndim == 4 else (-1,)
            self._tensors[inputs.device] = (
                torch.tensor(chain.shift, dtype=torch.float32, device=inputs.device).reshape(shape),
                torch.tensor(chain.divide, dtype=torch.float32, device=inputs.device).reshape(shape),
            )
        return self._tensors[inputs.device]

    def _encode_arrays(self, rows: object) -> NDArray[Any]:
        shape, name = self.raw_schema.shape, self.raw_schema.columns[0]
        wanted = "(rows, " + ", ".join(str(n) for n in shape) + ")"
        if isinstance(rows, np.ndarray) or (isinstance(rows, list) and not are_dicts(rows)):
            try:
                values = np.asarray(rows)
            except ValueError as error:
                raise DataError(f"rows must be arrays of one shape, {wanted}: {error}") from error
        else:
            column = self._table(rows)[name]
            if not is_array(column.type) or column.null_count:
                raise DataError(f"column '{name}' must hold arrays {wanted} without nulls, not {column.type}")
            try:
                values = array_values(column)
            except ValueError as error:
                raise DataError(f"column '{name}' must hold arrays {wanted}: {error}") from error
        fits = values.shape[1:] == shape or (len(shape) == 2 and values.shape[1:] == (*shape, 1))
        if not fits or values.dtype.kind not in "biuf":
            raise DataError(f"rows have the shape {values.shape} ({values.dtype}), not {wanted} of numbers")
        if self.raw_schema.dtypes[0] == "uint8" and values.dtype != np.uint8:
            # uint8 is how the training rows were stored, and JSON or MLflow may have widened them.
            values = values.astype(np.float32)
        if values.dtype.kind == "f" and not np.isfinite(values).all():
            raise DataError(f"rows hold NaN or infinity ({int((~np.isfinite(values)).sum())} values)")
        return array_matrix(values, self.stored_shape)

    def _encode_images(self, rows: object) -> NDArray[Any]:
        name = self.raw_schema.columns[0]
        if isinstance(rows, list | np.ndarray) and not are_dicts(rows):
            items = list(rows)
            if not all(isinstance(item, bytes) for item in items):
                raise DataError("images must be the bytes of encoded files (PNG, JPEG, …)")
            column = pa.chunked_array([pa.array(items, pa.large_binary())])
        else:
            column = self._table(rows)[name]
            if not is_encoded_image(column.type):
                raise DataError(f"column '{name}' must hold the bytes of encoded images, not {column.type}")
        pixels, corrupt = decode_images(column, self.image_size, self.image_mode)
        if corrupt:
            shown = "; ".join(str(image) for image in corrupt[:3])
            raise DataError(f"{len(corrupt)} of {len(pixels)} images cannot be decoded: {shown}")
        return pixels

    def _encode_texts(self, rows: object) -> NDArray[Any]:
        name = self.raw_schema.columns[0]
        if isinstance(rows, list | np.ndarray) and not are_dicts(rows):
            texts = list(rows)
            if self.changes and all(text is None or isinstance(text, str) for text in texts):
                texts = self._cleaned(pa.table({name: pa.array(texts, pa.large_string())}))[name].to_pylist()
        else:
            column = self._cleaned(self._table(rows))[name]
            if not is_text(column.type) and not pa.types.is_null(column.type):
                raise DataError(f"column '{name}' must hold text, not {column.type}")
            texts = column.to_pylist()
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                held = "no text" if text is None else f"a {type(text).__name__}, not text"
                raise DataError(f"row {row} holds {held}", f"give a string for column '{name}'")
        assert self.tokenizer is not None
        return self.tokenizer.rows(texts, self.raw_schema.shape[0])

    def _encode_columns(self, rows: object, folds: NDArray[np.int64] | None) -> NDArray[np.float32]:
        schema = self.raw_schema
        strings = "str" in (*schema.dtypes, *self.sent.values())
        table = self._cleaned(self._table(named_columns(rows, schema.columns, strings=strings)))
        columns = self.layout.stored_columns
        stored = np.empty((table.num_rows, len(columns)), dtype=np.float32)
        ends = np.searchsorted(columns, np.arange(len(schema.columns) + 1))
        for i, (name, dtype) in enumerate(zip(schema.columns, schema.dtypes, strict=True)):
            places = slice(ends[i], ends[i + 1])
            if name in self.encoders:
                values = category_values(table[name], dtype, name)
                stored[:, places] = self.encoders[name].encode(values, folds)
            else:
                stored[:, places] = self._numbers(table, name)
        return stored

    def _numbers(self, table: pa.Table, name: str) -> NDArray[np.float32]:
        """A column of numbers, gaps filled, shape (rows, 1)."""
        kind = table.schema.field(name).type
        if not is_number(kind) and not pa.types.is_null(kind):
            raise DataError(f"column '{name}' must hold numbers, not {kind}")
        column = number_matrix(table, (name,))
        wrong = np.flatnonzero(~np.isfinite(column))
        if len(wrong):
            raise DataError(
                f"column '{name}' is null, NaN or infinite in {len(wrong)} of {len(column)} rows, "
                f"first in row {wrong[0]}",
                "give a number, or train with a fill_nulls step for this column",
            )
        return column

    def _cleaned(self, table: pa.Table) -> pa.Table:
        return replay(table, self.changes) if self.changes else table

    def _table(self, rows: object) -> pa.Table:
        return rows_table(rows, self.raw_schema.columns)


def _old_fills(fills: Mapping[str, Any]) -> list[ValueChange]:
    """What models have that were logged when gaps were all that cleaning changed."""
    return [{"do": "fill", "column": name, "value": value} for name, value in fills.items()]


def _restored(saved: dict[str, Any], encoders: dict[str, Encoder]) -> Pipeline:
    return replace(Pipeline.from_dict(saved), encoders=encoders)
