"""The sections on where and how workers run: `resources`, `runtime_env`, `failure`, `mlflow`.

Field names are Ray's and MLflow's own wherever they have one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator, model_validator

from orchestrator.spec.base import Duration, EnvName, Section

_MOST_WORKERS = 100_000


def _worker_count(value: Any) -> int | tuple[int, int]:
    """A whole number, or a pair of them; raises ValueError with what to write instead."""
    counts = list(value) if isinstance(value, list | tuple) else [value]
    if isinstance(value, list | tuple) and len(counts) != 2:
        raise ValueError(f"must be one number or the pair [min, max], as in [1, 4]; it holds {len(counts)}")
    for count in counts:
        if isinstance(count, bool) or not isinstance(count, int):
            shown = "a section" if isinstance(count, dict) else repr(count)
            raise ValueError(f"must be a whole number, or the pair [min, max] as in [1, 4], not {shown}")
        if not 1 <= count <= _MOST_WORKERS:
            raise ValueError(f"must be at least 1 and at most {_MOST_WORKERS:,}, not {count}")
    if counts[-1] < counts[0]:
        raise ValueError(f"is [min, max]: {counts[1]} is less than {counts[0]}")
    return (counts[0], counts[1]) if len(counts) == 2 else int(counts[0])


_COUNT_SCHEMA = {"type": "integer", "minimum": 1, "maximum": _MOST_WORKERS}
_PAIR_SCHEMA = {"type": "array", "items": _COUNT_SCHEMA, "minItems": 2, "maxItems": 2, "examples": [[1, 4]]}
WorkerCount = Annotated[
    int | tuple[int, int],
    BeforeValidator(_worker_count),
    WithJsonSchema({"anyOf": [_COUNT_SCHEMA, _PAIR_SCHEMA]}),
]
"""How many workers: a number, or `[min, max]`."""


ExitCode = Annotated[int, Field(ge=1, le=255)]


class ResourcesSection(Section):
    """The workers, as Ray Train's ScalingConfig names them."""

    num_workers: WorkerCount = 1
    """A number, or `[min, max]`: then the run is elastic. It begins with what fits, shrinks when nodes go and grows
    when they come; the global batch, the order of samples and the schedule stay the same."""
    use_gpu: bool = False
    resources_per_worker: dict[str, float] = Field(default_factory=dict)
    """Per worker, as `{CPU: 4, GPU: 1}`; by default one CPU, and one GPU with `use_gpu`."""
    accelerator_type: str | None = None
    """As Ray names it: `A100`, `H100`, `H200`, …"""
    placement_strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    start_timeout: Duration = 600.0
    """How long to wait until the workers (of `[min, max]`: min of them) are placed, before the run fails with the
    reason. Counted anew for every attempt."""
    wait_for_max: Duration = 30.0
    """With `[min, max]`: how long the start of a run waits for max workers before it begins with those that fit.
    It waits only while the cluster is large enough for more of them."""
    resize_cooldown: Duration = 60.0
    """With `[min, max]`: the least time between two changes of size that are made to grow. Shrinking never waits."""
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

    @property
    def limits(self) -> tuple[int, int]:
        """The fewest and the most workers; equal where the run is not elastic."""
        return (
            self.num_workers if isinstance(self.num_workers, tuple) else (self.num_workers, self.num_workers)
        )

    @property
    def min_workers(self) -> int:
        return self.limits[0]

    @property
    def max_workers(self) -> int:
        return self.limits[1]

    def bundle(self) -> dict[str, float]:
        """What Ray must reserve for one worker: what it takes, on a node with the accelerator that it asks for."""
        kind = {f"accelerator_type:{self.accelerator_type}": 0.001} if self.accelerator_type else {}
        return {name: amount for name, amount in (self.per_worker() | kind).items() if amount > 0}

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
    """What is survived, how often. An error of the user's own code and the time limit are never retried.

    There is one budget for each cause. A budget counts the failures since the newest checkpoint last moved on: a run
    that makes progress between its failures never spends it. 0 means that the first failure ends the run.
    """

    max_failures: int = Field(default=3, ge=0)
    """Lost processes and nodes, broken connections, hangs, storage, and faults of the orchestrator itself."""
    max_preemption_failures: int = Field(default=1000, ge=0)
    """Nodes that were taken away after a notice (drained, spot instances)."""
    max_control_plane_failures: int = Field(default=10, ge=0)
    """Ray's head or its services did not answer, or workers could not be started."""
    max_out_of_memory_failures: int = Field(default=8, ge=0)
    """Each retry computes half as many samples at once; the global batch stays."""
    max_data_failures: int = Field(default=0, ge=0)
    """Data that turned out bad in the course of the run. A retry meets it again, unless the source is mended
    meanwhile; storage that does not answer counts under `max_failures`."""
    recover_on_exit_codes: list[ExitCode] = Field(default_factory=list)
    """A worker process that ends with one of these (1 to 255) is always retried, and not counted."""
    initial_backoff: Duration = 1.0
    """A first failure is retried at once, the second in a row after this time, each further one after twice the
    time of the one before. A new checkpoint ends the row."""
    max_backoff: Duration = 60.0
    """The longest wait before a retry."""
    hang_timeout: Duration = 600.0
    """A worker that makes no step for this long hangs: the stacks of all workers are saved, and it counts as a
    failure. 0 waits for ever."""
    unreachable_timeout: Duration = 30.0
    """A worker that has not answered for this long is lost if its node cannot be reached either. 0 leaves that to
    Ray, which takes a minute or more (`RAY_health_check_period_ms` and its like, on the head)."""
    max_node_failures: int = Field(default=2, ge=1)
    """A node on which this many attempts failed by its hardware within `node_failure_window` gets no more workers,
    as long as enough fit elsewhere."""
    node_failure_window: Duration = 3600.0
    """How long a failure is held against its node."""
    stop_grace: Duration = 30.0
    """After a stop or Ctrl-C: how long the workers may take to save before they are killed."""

    @model_validator(mode="after")
    def _grows(self) -> Self:
        if self.max_backoff < self.initial_backoff:
            raise ValueError(
                f"max_backoff ({self.max_backoff:g} s) is less than initial_backoff ({self.initial_backoff:g} s)"
            )
        return self


class MlflowSection(Section):
    """Where the run is recorded. Names are MLflow's own."""

    tracking_uri: str | None = None
    """By default `MLFLOW_TRACKING_URI`, else `mlflow.db` (sqlite) beside the storage folder."""
    experiment_name: str | None = None
    """By default the job's name."""
    registered_model_name: str | None = None
    """Register the trained model under this name; without one it is logged, not registered."""
