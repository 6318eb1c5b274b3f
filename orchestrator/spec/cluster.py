"""The sections on where and how workers run: `resources`, `runtime_env`, `failure`, `mlflow`.

Field names are Ray's and MLflow's own wherever they have one.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from orchestrator.spec.base import Duration, EnvName, Section


class ResourcesSection(Section):
    """The workers, as Ray Train's ScalingConfig names them."""

    num_workers: int = Field(default=1, ge=1)
    use_gpu: bool = False
    resources_per_worker: dict[str, float] = Field(default_factory=dict)
    """Per worker, as `{CPU: 4, GPU: 1}`; by default one CPU, and one GPU with `use_gpu`."""
    accelerator_type: str | None = None
    """As Ray names it: `A100`, `H100`, `H200`, …"""
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    start_timeout: Duration = 600.0
    """How long to wait until all workers are placed, before the run fails with the reason."""
    autoscaling: bool = False
    """The cluster can grow: do not refuse at once what does not fit into it now."""

    @field_validator("resources_per_worker")
    @classmethod
    def _not_negative(cls, value: dict[str, float]) -> dict[str, float]:
        for name, amount in value.items():
            if amount < 0:
                raise ValueError(f"{name} must be zero or more, not {amount:g}")
        return value

    @model_validator(mode="after")
    def _gpu_agrees(self) -> Self:
        if self.resources_per_worker.get("GPU") and not self.use_gpu:
            raise ValueError("resources_per_worker asks for GPU; set use_gpu: true as well")
        return self

    def per_worker(self) -> dict[str, float]:
        """What one worker takes, defaults filled in. Never empty."""
        base = {"CPU": 1.0} | ({"GPU": 1.0} if self.use_gpu else {})
        return base | self.resources_per_worker


class RuntimeEnvSection(Section):
    """What a submitted job needs on the cluster, as Ray's runtime environment names it."""

    working_dir: str = "."
    """Shipped by `submit`; the user's code. `.rayignore` and `.gitignore` in it are honoured."""
    excludes: list[str] = Field(default_factory=list)
    pip: list[str] = Field(default_factory=list)
    env_vars: dict[EnvName, str] = Field(default_factory=dict)


class FailureSection(Section):
    """What is survived. An error of the user's own code is never retried."""

    max_failures: int = Field(default=3, ge=0)
    stop_grace: Duration = 30.0
    """After a stop or Ctrl-C: how long the workers may take to save before they are killed."""


class MlflowSection(Section):
    """Where the run is recorded. Names are MLflow's own."""

    tracking_uri: str | None = None
    """By default `MLFLOW_TRACKING_URI`, else `mlflow.db` (sqlite) beside the storage folder."""
    experiment_name: str | None = None
    """By default the job's name."""
    registered_model_name: str | None = None
    """Register the trained model under this name; without one it is logged, not registered."""
