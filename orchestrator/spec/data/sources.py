"""Where rows come from: one section per kind of source."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from orchestrator.spec.base import EnvName, ObjectPath, Section

_CREDENTIALS = re.compile(
    r"://[^/?#@]*:[^/?#@]+@|[?&](password|access_key|secret_key|account_key)=", re.IGNORECASE
)


def _without_credentials(value: str) -> str:
    """Specs are shown, recorded and sent around: what opens a door must not stand in them."""
    if _CREDENTIALS.search(value):
        raise ValueError(
            "holds a password or key, which all who see the spec could read. Leave it out here: databases take "
            "it from the variable that password_env names, object stores from theirs (AWS_SECRET_ACCESS_KEY, …); "
            "`secrets:` sets variables"
        )
    return value


def _sql_url(value: str) -> str:
    if not re.match(r"(sqlite:///|postgres(ql)?://).", value):
        raise ValueError("must be sqlite:///FILE or postgresql://USER@HOST/DATABASE")
    return _without_credentials(value)


def _mongodb_url(value: str) -> str:
    if not re.match(r"mongodb(\+srv)?://.", value):
        raise ValueError("must be mongodb://USER@HOST or mongodb+srv://USER@HOST")
    return _without_credentials(value)


DataPath = Annotated[str, Field(min_length=1), AfterValidator(_without_credentials)]
"""A file, a folder, a glob, or a URI of one of these."""


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
    path: DataPath
    """The folder or its URI. Where all its subfolders are parts (train, val, test, …), classes are the folders
    in those; the path of each image, from this folder on, is kept beside its bytes."""


class ParquetSource(Section):
    """Parquet files. Encoded images as Hugging Face stores them."""

    kind: Literal["parquet"]
    path: DataPath
    """A file, a folder of .parquet and .pq files at any depth, a glob, or a URI of one of these (s3://, gs://,
    hdfs://, abfs://, https://, file://). Folders called `column=value` become columns. Names that begin with
    `.` or `_` are passed over."""


class ArrowSource(Section):
    """Arrow IPC files and streams, and Feather."""

    kind: Literal["arrow"]
    path: DataPath
    """As that of parquet, for .arrow, .feather, .ipc and .arrows files."""


class CsvSource(Section):
    """CSV with a header line. Types are inferred from all of a file."""

    kind: Literal["csv"]
    path: DataPath
    """As that of parquet, for .csv, .tsv and .txt files, also compressed (.gz, .bz2, .zst)."""
    delimiter: str = Field(default=",", min_length=1, max_length=1)


class JsonSource(Section):
    """JSON lines: one object per line, its keys the columns."""

    kind: Literal["json"]
    path: DataPath
    """As that of parquet, for .jsonl, .ndjson and .json files, also compressed (.gz, .bz2, .zst)."""


class TextSource(Section):
    """Text files (UTF-8). One column `text`, a row per file or line."""

    kind: Literal["text"]
    path: DataPath
    """As that of parquet, for .txt, .text and .md files; a glob for others."""
    rows: Literal["file", "line"] = "file"


class NumpySource(Section):
    """NumPy arrays as columns; arrays of two or more dimensions, such as images, become tensor columns."""

    kind: Literal["numpy"]
    path: DataPath
    """As that of parquet. Several .npz files follow each other by rows, and their keys are the columns; .npy
    files are columns side by side, each called as its file."""


class TorchvisionSource(Section):
    """The original files of a data set that torchvision reads. Columns `image` and `label`; nothing is
    downloaded."""

    kind: Literal["torchvision"]
    name: Literal["MNIST", "FashionMNIST", "KMNIST", "CIFAR10", "CIFAR100", "SVHN"]
    path: str = Field(min_length=1)
    """The folder that torchvision calls `root`: MNIST's files are in `MNIST/raw` below it."""
    part: Literal["train", "test", "all"] = "train"
    """Which of the two parts to read; `all` reads both, and adds a column `part` that says which."""


class SqlSource(Section):
    """The rows that a query gives. Without ORDER BY a database may give them in another order each time, and
    they are then prepared anew."""

    kind: Literal["sql"]
    url: Annotated[str, AfterValidator(_sql_url)]
    """`sqlite:///FILE` (relative to the working directory; an absolute file has four slashes), or
    `postgresql://USER@HOST:PORT/DATABASE`, which needs the extra `sql`. It holds no password."""
    query: str = Field(min_length=1)
    password_env: EnvName | None = None
    """The environment variable that holds the password; `secrets:` can set it. Without it PostgreSQL's own
    variables and files count (PGPASSWORD, ~/.pgpass)."""


class MongodbSource(Section):
    """The documents of a MongoDB collection, in the order of their `_id`, which is left out. Needs the extra
    `mongodb`."""

    kind: Literal["mongodb"]
    url: Annotated[str, AfterValidator(_mongodb_url)]
    """`mongodb://USER@HOST:PORT`. It holds no password."""
    database: str = Field(min_length=1)
    collection: str = Field(min_length=1)
    filter: dict[str, Any] = Field(default_factory=dict)
    """Which documents, in MongoDB's query language; all of them by default."""
    password_env: EnvName | None = None
    """The environment variable that holds the password; `secrets:` can set it."""


class PythonSource(Section):
    """The user's own reader: a function that returns a pyarrow Table, a DataFrame or a dict of arrays.

    Prepared data is found again by the text of the function's module and by `args`; where the function reads
    files that change, set `data.cache: false`.
    """

    kind: Literal["python"]
    function: ObjectPath
    args: dict[str, Any] = Field(default_factory=dict)


Source = Annotated[
    SklearnSource
    | LinearSource
    | ImageFolderSource
    | ParquetSource
    | ArrowSource
    | CsvSource
    | JsonSource
    | TextSource
    | NumpySource
    | TorchvisionSource
    | SqlSource
    | MongodbSource
    | PythonSource,
    Field(discriminator="kind"),
]
