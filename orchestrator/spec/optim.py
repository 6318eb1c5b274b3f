"""How weights are changed: optimizers, parameter groups, the learning rate's course, averaged weights."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from orchestrator.spec.base import Section

Beta = Annotated[float, Field(ge=0, lt=1)]


class ParamGroup(Section):
    """Parameters with settings of their own; the first group that matches a parameter's name takes it."""

    match: list[str] = Field(min_length=1)
    """Patterns of parameter names, as `classifier.*`; `*` matches anything."""
    lr: float | None = Field(default=None, ge=0)
    """By default the optimizer's."""
    weight_decay: float | None = Field(default=None, ge=0)
    """By default the optimizer's."""


class OptimizerBase(Section):
    """What all optimizers share."""

    weight_decay: float = Field(default=0.0, ge=0)
    """L2: added to the gradient. For adamw decoupled from it (Loshchilov and Hutter 2019)."""
    l1: float = Field(default=0.0, ge=0)
    """L1 penalty: `l1 · sign(w)` is added to the gradient of what `weight_decay` applies to."""
    no_decay: bool = False
    """Leave biases and normalisation layers (parameters with fewer than two dimensions) undecayed."""
    groups: list[ParamGroup] = Field(default_factory=list)


class Sgd(OptimizerBase):
    kind: Literal["sgd"]
    lr: float = Field(default=0.01, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    nesterov: bool = False

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> Self:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0")
        return self


class RMSprop(OptimizerBase):
    kind: Literal["rmsprop"]
    lr: float = Field(default=0.01, gt=0)
    alpha: float = Field(default=0.99, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    centered: bool = False


class Adam(OptimizerBase):
    kind: Literal["adam"]
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), strict=False)
    eps: float = Field(default=1e-8, gt=0)


class AdamW(OptimizerBase):
    kind: Literal["adamw"]
    lr: float = Field(default=1e-3, gt=0)
    betas: tuple[Beta, Beta] = Field(default=(0.9, 0.999), strict=False)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)


class Adagrad(OptimizerBase):
    kind: Literal["adagrad"]
    lr: float = Field(default=0.01, gt=0)
    lr_decay: float = Field(default=0.0, ge=0)
    initial_accumulator_value: float = Field(default=0.0, ge=0)
    eps: float = Field(default=1e-10, gt=0)


Optimizer = Annotated[Sgd | RMSprop | Adam | AdamW | Adagrad, Field(discriminator="kind")]


class Schedule(Section):
    """The learning rate's course: a linear warm-up, then one of the kinds.

    Counted in optimizer steps; `warmup_steps` may be a share of all steps (a float below 1).
    """

    kind: Literal["constant", "cosine", "linear", "step", "one_cycle", "plateau"] = "constant"
    warmup_steps: int | float = Field(default=0, ge=0)
    min_lr: float = Field(default=0.0, ge=0)
    """Cosine and linear: the learning rate at the end. Plateau: never below it."""
    step_epochs: int = Field(default=10, ge=1)
    """Step: multiply by `gamma` every so many epochs."""
    gamma: float = Field(default=0.1, gt=0, le=1)
    """Step and plateau: what the learning rate is multiplied by."""
    metric: str = "val/loss"
    """Plateau: multiply when this has not got better …"""
    mode: Literal["min", "max"] = "min"
    patience: int = Field(default=3, ge=1)
    """… for so many validations."""
    pct_start: float = Field(default=0.3, gt=0, lt=1)
    """One-cycle: the share of the steps in which the rate rises (Smith and Topin 2019; `lr` is the peak)."""
    div_factor: float = Field(default=25.0, ge=1)
    """One-cycle: begins at `lr / div_factor` …"""
    final_div_factor: float = Field(default=1e4, ge=1)
    """… and ends at `lr / div_factor / final_div_factor`."""

    @model_validator(mode="after")
    def _one_cycle_warms_up_itself(self) -> Self:
        if self.kind == "one_cycle" and self.warmup_steps:
            raise ValueError("one_cycle warms up by itself: leave warmup_steps out, or set pct_start")
        return self


class Ema(Section):
    """An exponential moving average of the weights (Polyak and Juditsky 1992), which is evaluated and exported.

    After each step `average += (1 - d) · (weights - average)`, where d grows from 0 to `decay` with the steps
    as `min(decay, (1 + step) / (10 + step))`.
    """

    decay: float = Field(default=0.999, gt=0, lt=1)
