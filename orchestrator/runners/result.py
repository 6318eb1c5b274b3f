"""What a run gives back to its caller. Imports: the standard library."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from orchestrator.records import Status, Verdict


@dataclass(frozen=True)
class Result:
    """A run that has ended. Paths are local paths or URIs."""

    run: str
    """The run's name, as `digits-3`."""
    status: Status
    verdict: Verdict
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Test figures, and those of the best checkpoint."""
    folder: str = ""
    checkpoint: str | None = None
    """The best checkpoint's folder."""
    model: str | None = None
    """What `mlflow.pyfunc.load_model` takes: a registered version, or the run's logged model."""
    mlflow_run_id: str | None = None
    tracking_uri: str = ""
    link: str | None = None
    """Opens the run in the MLflow UI, while `orchestrator ui` runs."""
    resumed: bool = False
    seconds: float = 0.0
    goodput: str = ""
    """One line on what restarts and waiting for checkpoints cost, of the whole run; empty where they cost nothing."""

    @property
    def exit_code(self) -> int:
        return self.verdict.exit_code

    def to_dict(self) -> dict[str, Any]:
        plain = {key: value for key, value in vars(self).items() if key != "verdict"}
        return {**plain, "metrics": dict(self.metrics), "verdict": self.verdict.to_dict()}
