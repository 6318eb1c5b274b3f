"""One YAML job spec runs the whole life of a model on a Ray cluster, with every run in MLflow.

    import orchestrator
    result = orchestrator.run("jobs/digits.yaml", **{"train.max_epochs": 3})

Importing the package loads nothing heavy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.runners.result import Result

__version__ = "0.1.0"
__all__ = ["__version__", "run"]


def run(
    spec: str | Path | Mapping[str, Any],
    *,
    inline: bool = False,
    address: str | None = None,
    fresh: bool = False,
    resume: str | None = None,
    quiet: bool = False,
    **overrides: Any,
) -> Result:
    """Run a job spec (a path or a mapping) to its end, as `orchestrator run` does, and return its result.

    `overrides` are sections (`train={"max_epochs": 3}`) or dotted fields (`**{"train.max_epochs": 3}`).
    A training that fails or is stopped is told by `result.status` and `result.verdict`. Raises
    OrchestratorError where the run could not begin, above all SpecError with all faults of the spec.
    """
    from orchestrator.cli.display import observer_for
    from orchestrator.runners.driver import run_job
    from orchestrator.spec import load_spec

    loaded = load_spec(spec, overrides_dict=overrides)
    with observer_for("quiet" if quiet else "lines" if inline else "auto") as observer:
        return run_job(loaded, inline=inline, address=address, fresh=fresh, resume=resume, observer=observer)
