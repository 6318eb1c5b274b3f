"""The `data` section: where rows come from, and how they are made ready."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from orchestrator.spec.base import Section
from orchestrator.spec.data.augment import Augmentation
from orchestrator.spec.data.cleaning import CleanStep
from orchestrator.spec.data.inputs import Image, Text
from orchestrator.spec.data.iterate import Iterate
from orchestrator.spec.data.preparation import Preparation
from orchestrator.spec.data.quality import Quality
from orchestrator.spec.data.sources import Source
from orchestrator.spec.data.split import Split
from orchestrator.spec.data.transforms import Transform


class DataSection(Section):
    """Where the data comes from and how it is made ready."""

    source: Source
    text: Text | None = None
    """Read the one feature column as text; without it, text features are refused."""
    target: str | None = Field(default=None, min_length=1, validate_default=True)
    """The column to learn. Left out only for a language model, which learns the next token of its text."""
    features: list[str] | None = Field(default=None, min_length=1)
    """The columns to learn from; by default all but the target and those that the split goes by. One column of
    images, arrays or text, or columns of numbers and of categories that a transform encodes."""
    clean: list[CleanStep] = Field(default_factory=list)
    max_corrupt_share: float = Field(default=0.0, ge=0, le=1)
    """Records that cannot be read and images that cannot be decoded are skipped, and listed, up to this share of
    all; beyond it the run fails."""
    image: Image = Field(default_factory=Image)
    split: Split = Field(default_factory=Split)
    transforms: list[Transform] = Field(default_factory=list)
    """Fitted on the training part only, saved with the model, applied in training and prediction alike."""
    target_transform: Literal["standardize"] | None = None
    """Regression: learn the standardised target. Metrics and predictions are in the original unit."""
    augment: list[Augmentation] = Field(default_factory=list)
    """Random changes to training samples, in this order, drawn anew for each sample and epoch; the same ones for
    any number of workers. Of tables: `mixup` only."""
    quality: Quality = Field(default_factory=Quality)
    preparation: Preparation = Field(default_factory=Preparation)
    iterate: Iterate = Field(default_factory=Iterate)
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

    @model_validator(mode="after")
    def _augments_what_there_is(self) -> Self:
        """As far as it can be told without the data: what is left, a run says once it knows the data's shape."""
        for step in self.augment:
            if self.text is not None:
                raise ValueError(
                    f"augment ({step.kind}) changes numbers, and data.text gives token ids; leave it out"
                )
            if step.kind != "mixup" and self.source.kind in ("csv", "linear"):
                raise ValueError(
                    f"augment ({step.kind}) changes images, and a source of kind {self.source.kind} has none; leave it "
                    "out (of all steps, only mixup is for tables)"
                )
            if (
                step.kind == "crop"
                and self.source.kind == "image_folder"
                and step.padding >= min(self.image.size)
            ):
                raise ValueError(
                    f"augment (crop): {step.padding} pixels cannot be mirrored at the edge of images of "
                    f"{self.image.size[0]}×{self.image.size[1]}; write a padding of at most {min(self.image.size) - 1}"
                )
        return self
