"""The `model` and `train` sections: what is trained, on which loss, how, and for how long."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from orchestrator.spec.base import OBJECT_PATH, Section

BUILT_IN_MODELS = ("linear", "mlp", "cnn")
LOSSES = ("cross_entropy", "bce", "mse", "l1", "huber")
METRICS = ("accuracy", "precision", "recall", "f1", "auroc", "mse", "rmse", "mae", "r2")
_TORCHVISION = re.compile(r"torchvision/[a-z0-9_]+")


class ModelSection(Section):
    """The network: a name of ours, `torchvision/<name>`, or the user's own `module:object`."""

    name: str
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of the builder, such as `hidden: [64, 64]` for `mlp`. User code gets
    `input_shape` and `num_outputs` too where its signature asks for them."""

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in BUILT_IN_MODELS and not (
            _TORCHVISION.fullmatch(value) or OBJECT_PATH.fullmatch(value)
        ):
            raise ValueError(
                f"no model is named '{value}'; write {', '.join(BUILT_IN_MODELS)}, 'torchvision/resnet18' "
                "(any torchvision classification model), or your own code as 'module:object'"
            )
        return value


class Sgd(Section):
    kind: Literal["sgd"]
    lr: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False
    weight_decay: float = Field(default=0.0, ge=0)


Beta = Annotated[float, Field(ge=0, lt=1)]


class AdamW(Section):
    kind: Literal["adamw"]
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), strict=False)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)


Optimizer = Annotated[Sgd | AdamW, Field(discriminator="kind")]


class Schedule(Section):
    """The learning rate's course: a linear warm-up, then constant, cosine to `min_lr`, or steps.

    Counted in optimizer steps; `warmup_steps` may be a share of all steps (a float below 1).
    """

    kind: Literal["constant", "cosine", "step"] = "constant"
    warmup_steps: int | float = Field(default=0, ge=0)
    min_lr: float = Field(default=0.0, ge=0)
    """Cosine: the learning rate at the end."""
    step_epochs: int = Field(default=10, ge=1)
    """Step: multiply by `gamma` every so many epochs."""
    gamma: float = Field(default=0.1, gt=0, le=1)


class EarlyStopping(Section):
    """Stop when a metric has not got better for `patience` validations."""

    metric: str = "val/loss"
    mode: Literal["min", "max"] = "min"
    patience: int = Field(default=5, ge=1)
    min_delta: float = Field(default=0.0, ge=0)


class TrainSection(Section):
    """The training loop. `global_batch_size` is per optimizer step, over all workers."""

    task: Literal["auto", "multiclass", "binary", "regression"] = "auto"
    """`auto`: by the target: strings, booleans or few integers are classes, other numbers a regression."""
    loss: str = "auto"
    """`auto` by task; a name; or the user's own `module:object`, called as `loss(outputs, targets)`."""
    metrics: list[str] | None = None
    """By default those usual for the task; names, or the user's own `module:object`."""
    max_epochs: int = Field(default=10, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    """Ends the training earlier than `max_epochs`, where it is reached first."""
    global_batch_size: int = Field(default=64, ge=1)
    microbatch_size: int | None = Field(default=None, ge=1)
    """Samples a worker computes at once; gradients are accumulated over a worker's share of the batch."""
    drop_last: bool = False
    optimizer: Optimizer = Field(default_factory=lambda: AdamW(kind="adamw"))
    schedule: Schedule = Field(default_factory=Schedule)
    clip_grad_norm: float | None = Field(default=None, gt=0)
    early_stopping: EarlyStopping | None = None
    log_every_n_steps: int = Field(default=1, ge=1)
    evaluate_every_n_epochs: int = Field(default=1, ge=1)

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, value: str) -> str:
        if value not in ("auto", *LOSSES) and not OBJECT_PATH.fullmatch(value):
            raise ValueError(
                f"no loss is named '{value}'; write auto, {', '.join(LOSSES)} or 'module:object'"
            )
        return value

    @field_validator("metrics")
    @classmethod
    def _known_metrics(cls, value: list[str] | None) -> list[str] | None:
        for name in value or []:
            if name not in METRICS and not OBJECT_PATH.fullmatch(name):
                raise ValueError(
                    f"no metric is named '{name}'; write {', '.join(METRICS)} or 'module:object'"
                )
        return value

    @model_validator(mode="after")
    def _microbatch_fits(self) -> Self:
        if self.microbatch_size and self.microbatch_size > self.global_batch_size:
            raise ValueError(
                f"microbatch_size ({self.microbatch_size}) is larger than "
                f"global_batch_size ({self.global_batch_size})"
            )
        return self


__all__ = [
    "AdamW", "EarlyStopping", "ModelSection", "Optimizer", "Schedule", "Sgd", "TrainSection",
]  # fmt: skip
