"""Where rows come from: one section per kind of source."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from orchestrator.spec.base import ObjectPath, Section


class SklearnSource(Section):
    """A data set that scikit-learn ships: nothing is downloaded."""

    kind: Literal["sklearn"]
    name: Literal["digits", "breast_cancer", "diabetes", "iris", "wine"]


class LinearSource(Section):
    """Generated rows of a known linear function with normal noise: `y = Σ coefficientᵢ·xᵢ + noise`.

    Columns `x1`, `x2`, … (standard normal) and `y`.
    """

    kind: Literal["linear"]
    coefficients: list[float] = Field(min_length=1)
    noise: float = Field(default=0.0, ge=0)
    """Standard deviation of the noise."""
    rows: int = Field(default=10_000, ge=10)
    seed: int = Field(default=0, ge=0)


class ImageFolderSource(Section):
    """A folder with one subfolder per class, as torchvision's ImageFolder. Columns `image` and `label`."""

    kind: Literal["image_folder"]
    path: str = Field(min_length=1)


class ParquetSource(Section):
    """Parquet: one file, a folder of files, or a glob. Encoded images as Hugging Face stores them."""

    kind: Literal["parquet"]
    path: str = Field(min_length=1)


class CsvSource(Section):
    """CSV with a header line: one file, a folder of files, or a glob."""

    kind: Literal["csv"]
    path: str = Field(min_length=1)
    delimiter: str = Field(default=",", min_length=1, max_length=1)


class TextSource(Section):
    """Text files (UTF-8): one file, a folder of .txt, .text and .md files, or a glob for others. One column
    `text`, a row per file or line."""

    kind: Literal["text"]
    path: str = Field(min_length=1)
    rows: Literal["file", "line"] = "file"


class PythonSource(Section):
    """The user's own reader: a function that returns a pyarrow Table, a DataFrame or a dict of arrays.

    Prepared data is found again by the text of the function's module and by `args`; where the function reads
    files that change, set `data.cache: false`.
    """

    kind: Literal["python"]
    function: ObjectPath
    args: dict[str, Any] = Field(default_factory=dict)


Source = Annotated[
    SklearnSource | LinearSource | ImageFolderSource | ParquetSource | CsvSource | TextSource | PythonSource,
    Field(discriminator="kind"),
]
