"""The `data` section: where rows come from, how they are cleaned, split and transformed."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

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


class DropNulls(Section):
    """Drop the rows that hold a null or NaN in one of the columns (features and target by default)."""

    kind: Literal["drop_nulls"]
    columns: list[str] | None = None


class DropDuplicates(Section):
    """Keep the first of rows that are equal in the columns (features and target by default)."""

    kind: Literal["drop_duplicates"]
    columns: list[str] | None = None


class DropOutliers(Section):
    """Drop the rows farther than `z` standard deviations from the mean in one of the columns (the numeric
    features by default)."""

    kind: Literal["drop_outliers"]
    columns: list[str] | None = None
    z: float = Field(default=4.0, gt=0)


class FillNulls(Section):
    """Replace nulls and NaN by a constant, or by the column's mean or median over the training rows.

    Numeric features by default. The values are saved with the model, which fills raw rows the same way.
    """

    kind: Literal["fill_nulls"]
    columns: list[str] | None = None
    value: float | int | str | Literal["mean", "median"] = "median"

    @model_validator(mode="after")
    def _text_needs_columns(self) -> Self:
        if isinstance(self.value, str) and self.value not in ("mean", "median") and not self.columns:
            raise ValueError(f"name the columns that '{self.value}' fills, or write mean, median or a number")
        return self


CleanStep = Annotated[DropNulls | DropDuplicates | DropOutliers | FillNulls, Field(discriminator="kind")]


Pixels = Annotated[int, Field(ge=1, le=4096)]


class Image(Section):
    """How encoded images are decoded. Arrays of a fixed shape need none of it."""

    size: tuple[Pixels, Pixels] = Field(default=(32, 32), strict=False)
    """Height and width in pixels that every image is resized to."""
    mode: Literal["rgb", "grayscale"] = "rgb"
    max_corrupt_share: float = Field(default=0.0, ge=0, le=1)
    """Images that cannot be decoded are skipped up to this share of all; beyond it the run fails."""


class Text(Section):
    """How a column of text becomes token ids. Id 0 pads, id 1 stands for what the training part never had."""

    tokenizer: Literal["char", "byte", "word"] = "word"
    """`word`: runs of letters and digits, and single other signs; white space only parts them. `byte`: of the
    UTF-8 text, always with 258 ids."""
    length: int = Field(default=128, ge=1)
    """Tokens per sample: longer texts are cut, shorter ones padded. A language model reads texts as one
    stream, cut into samples of this length."""
    vocab_size: int = Field(default=20_000, ge=3)
    """The most frequent tokens of the training part are kept, with the ids 0 and 1 at most so many."""
    lowercase: bool = True
    """word only: `The` and `the` are one token."""


class Flip(Section):
    """Mirror left and right, with a probability of `p`."""

    kind: Literal["flip"]
    p: float = Field(default=0.5, gt=0, le=1)


class Crop(Section):
    """Shift by up to `padding` pixels each way; what comes in is the image, mirrored at its edge."""

    kind: Literal["crop"]
    padding: int = Field(default=4, ge=1)


class Rotate(Section):
    """Turn by up to `degrees`, and zoom by up to `zoom` (a share), about the centre."""

    kind: Literal["rotate"]
    degrees: float = Field(default=10.0, ge=0, le=180)
    zoom: float = Field(default=0.0, ge=0, lt=1)


class Color(Section):
    """Change contrast and saturation by a factor from 1 - x to 1 + x, and brightness by up to x standard
    deviations of the image. Colours are taken as the model sees them, after `transforms`."""

    kind: Literal["color"]
    brightness: float = Field(default=0.2, ge=0, lt=1)
    contrast: float = Field(default=0.2, ge=0, lt=1)
    saturation: float = Field(default=0.2, ge=0, lt=1)


class Erase(Section):
    """Fill a rectangle of up to `area` of the image with the image's mean colour, with a probability of `p`
    (Zhong et al. 2020)."""

    kind: Literal["erase"]
    p: float = Field(default=0.5, gt=0, le=1)
    area: float = Field(default=0.2, gt=0, lt=1)


Augmentation = Annotated[Flip | Crop | Rotate | Color | Erase, Field(discriminator="kind")]


class Split(Section):
    """How rows are parted. Ratios must sum to 1; `stratified` keeps class shares (classification only)."""

    kind: Literal["random", "stratified"] = "random"
    train: float = Field(default=0.7, gt=0, lt=1)
    val: float = Field(default=0.15, ge=0, lt=1)
    test: float = Field(default=0.15, ge=0, lt=1)

    @model_validator(mode="after")
    def _sums_to_one(self) -> Self:
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"train + val + test must be 1, not {total:g}")
        return self


class Standardize(Section):
    """Subtract the mean and divide by the standard deviation of the training part.

    Per column for tables, per channel for images.
    """

    kind: Literal["standardize"]


class MinMax(Section):
    """Scale to 0…1 by the minimum and maximum of the training part; per column or per channel."""

    kind: Literal["min_max"]


class Scale(Section):
    """Divide by a constant, as 255 for eight-bit images."""

    kind: Literal["scale"]
    by: float = Field(gt=0)


Transform = Annotated[Standardize | MinMax | Scale, Field(discriminator="kind")]


class DataSection(Section):
    """Where the data comes from and how it is made ready."""

    source: Source
    text: Text | None = None
    """Read the one feature column as text; without it, text features are refused."""
    target: str | None = Field(default=None, min_length=1, validate_default=True)
    """The column to learn. Left out only for a language model, which learns the next token of its text."""
    features: list[str] | None = Field(default=None, min_length=1)
    """The columns to learn from; by default all but the target. One image column, one text column, or
    numeric columns."""
    clean: list[CleanStep] = Field(default_factory=list)
    image: Image = Field(default_factory=Image)
    split: Split = Field(default_factory=Split)
    transforms: list[Transform] = Field(default_factory=list)
    """Fitted on the training part only, saved with the model, applied in training and prediction alike."""
    target_transform: Literal["standardize"] | None = None
    """Regression: learn the standardised target. Metrics and predictions are in the original unit."""
    augment: list[Augmentation] = Field(default_factory=list)
    """Random changes to training images, in this order, drawn anew for each image and epoch; the same ones for
    any number of workers."""
    cache: bool = True
    """Keep the prepared data under `<storage>/prepared`, to be found again by its content key."""

    @field_validator("target")
    @classmethod
    def _needed_but_for_text(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None and info.data.get("text", "unreadable") is None:
            raise ValueError(
                "is missing: name the column to learn (only a language model has none; it needs data.text)"
            )
        return value

    @model_validator(mode="after")
    def _text_is_not_scaled(self) -> Self:
        if self.text is not None and self.transforms:
            raise ValueError("transforms scale numbers, and data.text gives token ids; leave one of them out")
        return self

    @model_validator(mode="after")
    def _target_is_no_feature(self) -> Self:
        if self.features and self.target in self.features:
            raise ValueError(f"the target '{self.target}' is also among the features")
        return self
