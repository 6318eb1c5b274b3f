"""The whole job spec."""

from __future__ import annotations

import re
from typing import Self

from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from orchestrator.spec.base import EnvName, Section
from orchestrator.spec.checkpoint import CheckpointSection
from orchestrator.spec.cluster import (
    FailureSection,
    MlflowSection,
    ResourcesSection,
    RuntimeEnvSection,
)
from orchestrator.spec.data import DataSection
from orchestrator.spec.model import InitFromSection, ModelSection
from orchestrator.spec.train import TrainSection
from orchestrator.spec.tune import TuneSection

MASK = "***"
"""What stands for a secret wherever a spec is shown or recorded."""


class JobSpec(Section):
    """One job: data, model, training, and where it runs and is recorded."""

    name: str
    """Names the run (`digits` gives `digits-1`, `digits-2`, …) and, by default, the MLflow experiment."""
    description: str = ""
    tags: dict[str, str] = Field(default_factory=dict)
    seed: int = Field(default=0, ge=0, lt=2**32)
    data: DataSection
    model: ModelSection
    train: TrainSection = Field(default_factory=TrainSection)
    init_from: InitFromSection | None = None
    resources: ResourcesSection = Field(default_factory=ResourcesSection)
    tune: TuneSection | None = None
    """Search for the best hyperparameters first, and then train with them."""
    runtime_env: RuntimeEnvSection = Field(default_factory=RuntimeEnvSection)
    secrets: dict[EnvName, SecretStr] = Field(default_factory=dict)
    """Environment variables for driver and workers; never printed, logged or recorded."""
    checkpoint: CheckpointSection = Field(default_factory=CheckpointSection)
    failure: FailureSection = Field(default_factory=FailureSection)
    mlflow: MlflowSection = Field(default_factory=MlflowSection)
    storage: str | None = None
    """A path or URI for runs, checkpoints, prepared data; by default `ORCHESTRATOR_STORAGE`, or `./runs`."""

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str) -> str:
        if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,62}", value):
            raise ValueError("must be 1 to 63 of a-z, 0-9, '-' and '_', and begin with a letter or digit")
        return value

    @field_validator("tune")
    @classmethod
    def _scheduler_suits_the_epochs(
        cls, value: TuneSection | None, info: ValidationInfo
    ) -> TuneSection | None:
        train = info.data.get("train")
        return value.for_epochs(train.max_epochs) if value and train else value

    @model_validator(mode="after")
    def _target_and_text_fit_the_task(self) -> Self:
        """A language model learns the text itself; all else has a target."""
        data, faults = self.data, []
        if self.train.task != "language_modeling":
            if data.target is None:
                faults.append(
                    ("target", "is missing: name the column to learn, or write train.task: language_modeling")
                )
        else:
            if data.text is None:
                faults.append(("text", "is missing: train.task language_modeling reads text, by data.text"))
            if data.target is not None:
                faults.append(
                    ("target", "must be left out: train.task language_modeling learns the next token")
                )
        if faults:
            raise ValidationError.from_exception_data(
                type(self).__name__,
                [
                    InitErrorDetails(
                        type=PydanticCustomError("value_error", "{error}", {"error": reason}),
                        loc=("data", name),
                        input=getattr(data, name),
                    )
                    for name, reason in faults
                ],
            )
        return self

    @field_validator("secrets")
    @classmethod
    def _long_enough_to_mask(cls, value: dict[str, SecretStr]) -> dict[str, SecretStr]:
        for name, secret in value.items():
            text = secret.get_secret_value()
            if 0 < len(text) < 4 and text != MASK:
                raise ValueError(
                    f"{name} is shorter than 4 characters, too short to be masked in logs; "
                    "if it is no secret, put it under runtime_env.env_vars"
                )
        return value
