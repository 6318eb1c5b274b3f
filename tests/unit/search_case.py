"""A made-up search for the tests of what is shown of one."""

from __future__ import annotations

from typing import Any


def trial(number: int, state: str, score: float | None = None, **facts: Any) -> dict[str, Any]:
    params = {"train.optimizer.lr": 0.0123456 * number, "model.args.hidden": [64, 32]}
    return {
        "id": f"trial-{number:03}",
        "state": state,
        "params": params,
        "epoch": number,
        "score": score,
        "best_epoch": number if score is not None else None,
        "metrics": {} if score is None else {"val/loss": score + 0.01},
        "seconds": 2.0 * number,
        "error": "",
        "mlflow_run_id": None,
        "attempts": 1,
        **facts,
    }


def search(*trials: dict[str, Any], **facts: Any) -> dict[str, Any]:
    """A summary as the driver writes it; by default five trials, the fourth the best."""
    return {
        "metric": "val/loss",
        "mode": "min",
        "num_samples": 8,
        "state": "SEARCHING",
        "limit": 2,
        "width": 1,
        "started_s": 1000.0,
        "updated_s": 1043.0,
        "eta_s": 20.0,
        "why_ended": "",
        "best": "trial-004",
        "pareto": [],
        "search_alg": "random",
        "scheduler": "asha",
        "trials": list(trials)
        or [
            trial(1, "FAILED", error="ValueError: no\n  such layer"),
            trial(2, "PRUNED", 0.5),
            trial(3, "COMPLETED", 0.25),
            trial(4, "RUNNING", 0.1),
            trial(5, "RUNNING"),
        ],
        **facts,
    }
