"""What all compiled cleaning steps have in common. Imports: pyarrow.

A step that drops rows says which stay, by `rows_kept(cleaned) -> mask`; any other gives the changed table and which
rows it changed, by `apply(cleaned) -> (cleaned, mask)`. `schema_after(schema)` tells the columns behind the step.
A step that needs statistics is `pending` until it has them: `survey(cleaned)` looks at one chunk after the steps
before, and `fit(partials)` takes the surveys in the order of the chunks and gives the fitted step.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa


@dataclass(frozen=True)
class Head:
    """Which step it is: its number in `data.clean`, its kind, and the columns it works on."""

    index: int
    kind: str
    names: tuple[str, ...]
    named: tuple[str, ...] = ()
    """Those of the columns that the spec names."""

    @property
    def place(self) -> str:
        """Where it stands in the spec."""
        return f"data.clean[{self.index}] ({self.kind})"


def with_type(schema: pa.Schema, name: str, kind: pa.DataType) -> pa.Schema:
    """The schema with another type of one column."""
    return schema.set(schema.get_field_index(name), pa.field(name, kind))


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A dictionary-encoded column as its values, any other as it is."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type of `plain`."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind
