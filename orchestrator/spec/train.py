"""The `train` section: on which loss, for how long, how fast, on how many workers' shared work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from orchestrator.spec.base import OBJECT_PATH, Duration, ObjectPath, Section
from orchestrator.spec.optim import AdamW, Ema, Optimizer, Schedule

if TYPE_CHECKING:
    from pydantic import GetJsonSchemaHandler
    from pydantic_core import CoreSchema

LOSSES = ("cross_entropy", "focal", "bce", "mse", "l1", "huber")
METRICS = (
    "accuracy", "precision", "recall", "f1", "auroc", "perplexity", "bits_per_token", "mse", "rmse", "mae", "r2",
)  # fmt: skip


class Loss(Section):
    """A loss and its settings; a name alone may stand for it: `loss: focal`."""

    name: str = "auto"
    """`auto` by task; a name; or the user's own `module:object`, called as `loss(outputs, targets)`."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """cross_entropy only."""
    class_weights: Literal["balanced"] | list[float] | None = None
    """cross_entropy, focal and bce: a weight per class, in the order of the classes (multilabel and binary:
    of the positive answers). `balanced`: inverse to the class's frequency in the training part."""
    gamma: float = Field(default=2.0, ge=0)
    """focal only: how much easy samples are played down (Lin et al. 2017)."""
    delta: float = Field(default=1.0, gt=0)
    """huber only: where the loss turns from quadratic to linear."""

    @model_validator(mode="before")
    @classmethod
    def _a_name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in ("auto", *LOSSES) and not OBJECT_PATH.fullmatch(value):
            raise ValueError(
                f"no loss is named '{value}'; write auto, {', '.join(LOSSES)} or 'module:object'"
            )
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        section = handler.resolve_ref_schema(handler(schema))
        section["type"] = ["object", "string"]
        return section


class EarlyStopping(Section):
    """Stop when a metric has not got better for `patience` validations."""

    metric: str = "val/loss"
    mode: Literal["min", "max"] = "min"
    patience: int = Field(default=5, ge=1)
    min_delta: float = Field(default=0.0, ge=0)


class Parallel(Section):
    """How several workers train one model."""

    strategy: Literal["ddp", "fsdp"] = "ddp"
    """`ddp`: a copy of the model on every worker. `fsdp`: weights, gradients and optimizer state are sharded
    over the workers (torch's `fully_shard`), for models that do not fit."""
    gradient_compression: Literal["none", "fp16", "bf16", "powersgd"] = "none"
    """ddp: what gradients are sent as. powersgd sends approximations of low rank, after some exact steps."""
    powersgd_rank: int = Field(default=2, ge=1)
    """Rank of the approximation (Vogels et al. 2019); higher is more exact and sends more."""
    bucket_cap_mb: float = Field(default=25.0, gt=0)
    """ddp: gradients are sent in buckets of this size (MiB)."""
    static_graph: bool = False
    """ddp: promise that every step uses the same parameters, which saves some time."""
    find_unused_parameters: bool = False
    """ddp: needed where some steps leave parameters unused; costs time."""
    sync_batch_norm: bool = False
    """BatchNorm over the whole global batch instead of each worker's share; fsdp needs it."""
    activation_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, more time."""


class Profile(Section):
    """Write a trace of some steps by `torch.profiler`, as an artifact of the run."""

    start_step: int = Field(default=10, ge=1)
    steps: int = Field(default=5, ge=1, le=100)


class TrainSection(Section):
    """The training loop. `global_batch_size` is per optimizer step, over all workers."""

    task: Literal["auto", "multiclass", "binary", "multilabel", "regression", "language_modeling"] = "auto"
    """`auto`: by the target: lists of labels are multilabel; strings, booleans or few integers are classes,
    other numbers a regression. `language_modeling` has no target: text is modelled token by token."""
    function: ObjectPath | None = None
    """The user's own train function, called as `function(context)` on every worker instead of our loop."""
    loss: Loss = Field(default_factory=Loss)
    metrics: list[str] | None = None
    """By default those usual for the task; names, or the user's own `module:object`."""
    max_epochs: int = Field(default=10, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    """Ends the training earlier than `max_epochs`, where it is reached first."""
    max_time: Duration | None = None
    """Ends the training, over all its attempts, where it is reached first; the model is evaluated as usual."""
    global_batch_size: int = Field(default=64, ge=1)
    microbatch_size: int | None = Field(default=None, ge=1)
    """Samples a worker computes at once; gradients are accumulated over a worker's share of the batch. By
    default as many as fit into memory, which is tried out before the first step."""
    drop_last: bool = False
    optimizer: Optimizer = Field(default_factory=lambda: AdamW(kind="adamw"))
    schedule: Schedule = Field(default_factory=Schedule)
    clip_grad_norm: float | None = Field(default=None, gt=0)
    clip_grad_value: float | None = Field(default=None, gt=0)
    ema: Ema | None = None
    early_stopping: EarlyStopping | None = None
    nonfinite: Literal["stop", "skip"] = "stop"
    """A loss or gradient that is infinite or not a number ends the run; `skip` leaves such steps out."""
    precision: Literal["fp32", "tf32", "bf16", "fp16", "auto"] = "fp32"
    """Of the computation; weights stay fp32. `auto`: bf16 where the device computes it natively, else fp32."""
    compile: bool = False
    """Compile the model by `torch.compile`; where that fails, it runs as it is and the log says why."""
    channels_last: bool | None = None
    """Memory layout of images; by default wherever the model has convolutions."""
    deterministic: bool = False
    """Only algorithms that give the same bits twice; slower, and an error where there is none."""
    parallel: Parallel = Field(default_factory=Parallel)
    profile: Profile | None = None
    log_every_n_steps: int = Field(default=1, ge=1)
    evaluate_every_n_epochs: int = Field(default=1, ge=1)

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


__all__ = ["EarlyStopping", "Loss", "Parallel", "Profile", "TrainSection"]
