"""What a search found, as columns and rows: for its table, its description and its pictures.

`summary` is the content of `search/summary.json`. Imports: the standard library.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Summary = Mapping[str, Any]
Trial = Mapping[str, Any]

FINISHED = ("COMPLETED", "PRUNED", "FAILED", "STOPPED")
STATES = (*FINISHED, "RUNNING", "PAUSED", "PENDING")


def objectives(summary: Summary) -> list[tuple[str, str]]:
    """The metrics of a search, each with its mode (`min` or `max`)."""
    metrics, modes = summary["metric"], summary["mode"]
    if isinstance(metrics, str):
        metrics, modes = [metrics], [modes]
    return list(zip(metrics, [modes] * len(metrics) if isinstance(modes, str) else modes, strict=True))


def value_of(trial: Trial, metric: str, *, first: bool) -> float | None:
    """A trial's best value of the first metric, or its newest of another; None where it has none that is finite."""
    value = trial.get("score") if first else (trial.get("metrics") or {}).get(metric)
    usable = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return float(value) if usable and value is not None else None


def scored(summary: Summary) -> list[tuple[Trial, float]]:
    """The trials that have a score, in the order of their making, each with it."""
    metric, _ = objectives(summary)[0]
    pairs = [(trial, value_of(trial, metric, first=True)) for trial in summary["trials"]]
    return [(trial, score) for trial, score in pairs if score is not None and trial["state"] != "FAILED"]


def ranked(summary: Summary) -> list[Trial]:
    """All trials: those with a score, the best first, then the others in the order of their making."""
    sign = -1.0 if objectives(summary)[0][1] == "max" else 1.0
    best_first = [trial for trial, _ in sorted(scored(summary), key=lambda pair: sign * pair[1])]
    known = {trial["id"] for trial in best_first}
    return best_first + [trial for trial in summary["trials"] if trial["id"] not in known]


def best_trial(summary: Summary) -> Trial | None:
    return next((trial for trial in summary["trials"] if trial["id"] == summary.get("best")), None)


def pareto_trials(summary: Summary) -> list[Trial]:
    front = set(summary.get("pareto") or ())
    return [trial for trial in summary["trials"] if trial["id"] in front]


def counts(summary: Summary) -> dict[str, int]:
    """How many trials there are by state; states without one are left out."""
    found = Counter(trial["state"] for trial in summary["trials"])
    return {state: found[state] for state in STATES if found[state]}


def num_finished(summary: Summary) -> int:
    return sum(trial["state"] in FINISHED for trial in summary["trials"])


def paths(summary: Summary) -> list[str]:
    """The parameters of all trials, in the order in which they appear."""
    return list(dict.fromkeys(path for trial in summary["trials"] for path in trial["params"]))


def short_names(names: Iterable[str]) -> dict[str, str]:
    """The shortest end of each dotted path that no other one ends in."""
    split = {name: name.split(".") for name in names}
    short = {}
    for name, parts in split.items():
        others = [other for path, other in split.items() if path != name]
        fits = (n for n in range(1, len(parts)) if all(other[-n:] != parts[-n:] for other in others))
        short[name] = ".".join(parts[-next(fits, len(parts)) :])
    return short


def table(summary: Summary) -> tuple[list[str], list[list[Any]]]:
    """All trials, the best first: columns and rows. What a trial does not have is None; lists are JSON text."""
    told = objectives(summary)
    params = paths(summary)
    columns = [
        *("trial", "state"),
        *(metric for metric, _ in told),
        *("epoch", "best_epoch", "seconds", "attempts"),
        *params,
        *("mlflow_run_id", "error"),
    ]
    rows = [
        [
            *(trial["id"], trial["state"]),
            *(value_of(trial, metric, first=not index) for index, (metric, _) in enumerate(told)),
            *(trial.get("epoch"), trial.get("best_epoch") or None),
            *(_rounded(trial.get("seconds")), trial.get("attempts")),
            *(_cell(trial["params"].get(path)) for path in params),
            *(trial.get("mlflow_run_id"), trial.get("error") or None),
        ]
        for trial in ranked(summary)
    ]
    return columns, rows


def text_of(value: Any, digits: int = 4) -> str:
    """A parameter's value, to be read: numbers with so many digits, lists as JSON."""
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def varying(trials: Sequence[Trial], path: str) -> bool:
    """Whether the trials differ in a parameter; to lack it is a value, too."""
    return len({json.dumps(trial["params"].get(path), default=str) for trial in trials}) > 1


def _cell(value: Any) -> Any:
    return value if value is None or isinstance(value, str | int | float) else json.dumps(value, default=str)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
