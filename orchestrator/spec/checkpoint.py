"""The section `checkpoint`: when a run saves, and what it keeps."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from orchestrator.spec.base import Duration, Section


class CheckpointSection(Section):
    """When the run saves, and what it keeps. Each of the `every` fields asks for saves of its own; at the end, and
    at a stop, a run saves in any case."""

    every_n_epochs: int = Field(default=1, ge=1)
    """At the end of each so many epochs, after its validation."""
    every_n_steps: int | None = Field(default=None, ge=1)
    """Also inside an epoch; a resume starts at the exact next batch."""
    every: Duration | Literal["auto"] | None = None
    """Each time so much training time has passed (`10m`). `auto` chooses the time that loses the least to saving and
    to failures, from what the run's own checkpoints cost and `mean_time_between_failures` (Young 1974, Daly 2006)."""
    mean_time_between_failures: Duration = Field(default=10800.0, gt=0)
    """How often a fault of any worker is expected; for `every: auto`."""
    asynchronous: bool = True
    """Copy the state to the host's memory and write it while training goes on; `false` lets training wait."""
    num_to_keep: int = Field(default=2, ge=1)
    """The newest so many are kept."""
    num_best_to_keep: int = Field(default=1, ge=1)
    """And the best so many, by the score; the model is made of the best one."""
    keep_every_n_epochs: int | None = Field(default=None, ge=1)
    """And the first one at or after each so many epochs, for good."""
    keep_every_n_steps: int | None = Field(default=None, ge=1)
    """And the first one at or after each so many optimizer steps, for good."""
    checkpoint_score_attribute: str = "val/loss"
    checkpoint_score_order: Literal["min", "max"] = "min"
