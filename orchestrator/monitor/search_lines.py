"""What the summary of a search says, as lines and rows of a table.

`summary` is the content of `search/summary.json`. Imports: the standard library.
"""

from __future__ import annotations

import json
import math
import re
import shlex
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrator.monitor.progress_lines import format_duration
from orchestrator.wording import counted, one_line

Summary = Mapping[str, Any]
Trial = Mapping[str, Any]

FINISHED = ("COMPLETED", "PRUNED", "FAILED", "STOPPED")
_STATES = ("RUNNING", "PAUSED", "PENDING", *FINISHED)
_POPULATIONS = ("pbt", "pb2")
_PLAIN = re.compile(r"[A-Za-z_][\w./:-]*")
_NOT_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""What JSON allows in quotes, and YAML does not."""
_NOT_TEXT = ("true", "false", "null")


def metrics_of(summary: Summary) -> tuple[tuple[str, str], ...]:
    """The metrics of a search, each with its mode; the first one ranks the trials."""
    metrics, modes = _listed(summary.get("metric")), _listed(summary.get("mode"))
    return tuple(zip(metrics, modes, strict=False))


def counts(summary: Summary) -> dict[str, int]:
    """How many trials are in each state, in the order of a trial's life; states without one are left out."""
    found = Counter(trial["state"] for trial in summary["trials"])
    return {state: found[state] for state in (*_STATES, *sorted(found.keys() - set(_STATES))) if found[state]}


def ranked(summary: Summary) -> list[Trial]:
    """All trials: those with a score, the best first, then those without one yet, then the failed ones."""
    sign = -1.0 if metrics_of(summary)[0][1] == "max" else 1.0
    front = set(summary.get("pareto") or ()) if len(metrics_of(summary)) > 1 else set()

    def place(trial: Trial) -> tuple[int, int, float]:
        if trial["state"] == "FAILED":
            return 2, 0, 0.0
        score = score_of(trial)
        if score is None:
            return 1, 0, 0.0
        return 0, int(trial["id"] not in front), sign * score

    return sorted(summary["trials"], key=place)


def score_of(trial: Trial) -> float | None:
    """A trial's best value of the first metric; None where it has none that is a number."""
    score = trial.get("score")
    return score if isinstance(score, int | float) and math.isfinite(score) else None


def best_trial(summary: Summary) -> Trial | None:
    """The best trial so far; of several objectives, by the first."""
    return _by_id(summary).get(summary.get("best") or "")


def pareto_trials(summary: Summary) -> list[Trial]:
    """The trials of the Pareto front, in the order of their making."""
    known = _by_id(summary)
    return [known[name] for name in summary.get("pareto") or () if name in known]


def live_trials(summary: Summary, most: int) -> list[Trial]:
    """Some trials to show while the search goes on: the running ones, then the finished ones, the last made first.

    Where many run, a third of the rows is left to the finished ones.
    """
    running = [trial for trial in summary["trials"] if trial["state"] == "RUNNING"]
    finished = [trial for trial in reversed(summary["trials"]) if trial["state"] in FINISHED]
    running = running[: max(most - len(finished), most - most // 3)]
    return [*running, *finished[: most - len(running)]]


def elapsed_s(summary: Summary) -> float:
    """The seconds that the search has taken, over all its drivers where they counted them."""
    if summary.get("elapsed_s") is not None:
        return float(summary["elapsed_s"])
    return max(0.0, (summary.get("updated_s") or 0.0) - (summary.get("started_s") or 0.0))


def format_search(summary: Summary) -> str:
    """`search: 14/40 trials finished · 2 running · 8 pruned · 1 failed · best trial-007 val/loss 0.081 · eta 1m20s`."""
    found = counts(summary)
    finished = sum(found.get(state, 0) for state in FINISHED)
    wanted = summary.get("num_samples")
    parts = [f"{finished}/{wanted} trials finished" if wanted else f"{finished} trials finished"]
    parts += [f"{found[state]} {state.lower()}" for state in found if state not in ("COMPLETED", "PENDING")]
    if (best := best_trial(summary)) is not None:
        parts.append(f"best {best['id']} {format_score(summary, best)}")
    if summary.get("state") == "ENDED":
        parts.append(f"ended: {summary['why_ended']}" if summary.get("why_ended") else "ended")
    elif summary.get("state") == "RETRAINING":
        parts.append("training the best once more")
    elif summary.get("eta_s") is not None:
        parts.append(f"eta {format_duration(summary['eta_s'])}")
    return f"search: {' · '.join(parts)}"


def format_best(summary: Summary) -> str | None:
    """`best so far: trial-007, val/loss 0.081 at epoch 9, lr=0.01 kind=sgd`; None where no trial has a score."""
    best = best_trial(summary)
    if best is None:
        return None
    params = format_params(best_params(best), names_of(summary))
    return f"best so far: {best['id']}, {format_result(summary, best)}, {params}"


def format_result(summary: Summary, trial: Trial) -> str:
    """`val/loss 0.081 at epoch 9`; of several objectives, the newest value of each."""
    if len(metrics_of(summary)) > 1:
        return f"{format_score(summary, trial)} at epoch {trial['epoch']}"
    return f"{format_score(summary, trial)} at epoch {trial.get('best_epoch') or trial['epoch']}"


def format_score(summary: Summary, trial: Trial) -> str:
    """`val/loss 0.081`; of several objectives, the newest value of each."""
    names = [metric for metric, _ in metrics_of(summary)]
    return ", ".join(
        f"{name} {value}" for name, value in zip(names, score_cells(summary, trial), strict=True)
    )


def score_cells(summary: Summary, trial: Trial) -> list[str]:
    """A trial's value of each metric, four digits; empty where there is none."""
    names = [metric for metric, _ in metrics_of(summary)]
    newest = trial.get("metrics") or {}
    values = [score_of(trial)] if len(names) == 1 else [newest.get(name) for name in names]
    return ["" if value is None else f"{value:.4g}" for value in values]


def format_params(params: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """`lr=0.0123 optimizer.kind=sgd`: short names, four digits; to be read, not to be pasted."""
    return " ".join(f"{names.get(name, name)}={_brief(value)}" for name, value in params.items())


def best_params(trial: Trial) -> Mapping[str, Any]:
    """The parameters that gave a trial its best value; a population changes them in its course."""
    return trial.get("best_params") or trial["params"]  # type: ignore[no-any-return]


def format_overrides(params: Mapping[str, Any]) -> str:
    """`train.optimizer.lr=0.012345 'model.args.hidden=[64]'`: a trial's parameters, to be pasted behind a spec."""
    return " ".join(shlex.quote(f"{name}={_exact(value)}") for name, value in params.items())


def names_of(summary: Summary) -> dict[str, str]:
    """The parameters of all trials, and the shortest end of each dotted path that no other one has, too."""
    split = {path: path.split(".") for trial in summary["trials"] for path in trial["params"]}
    short = {}
    for path, parts in split.items():
        others = [other for name, other in split.items() if name != path]
        length = next(
            (n for n in range(1, len(parts)) if all(other[-n:] != parts[-n:] for other in others)), len(parts)
        )
        short[path] = ".".join(parts[-length:])
    return short


def changes_parameters(summary: Summary) -> bool:
    """Whether the parameters of a trial change in its course: then only the course of them gave the result."""
    return summary.get("scheduler") in _POPULATIONS


def facts(summary: Summary) -> list[tuple[str, str]]:
    """What is to be said of a search as a whole: a label and a text each."""
    objectives = ", ".join(f"{metric} ({mode})" for metric, mode in metrics_of(summary))
    how = " and ".join(str(summary[key]) for key in ("search_alg", "scheduler") if summary.get(key))
    found = [("search", f"{objectives}, by {how}" if how else objectives)]
    told = ", ".join(f"{count} {state}" for state, count in counts(summary).items())
    made, wanted = len(summary["trials"]), summary.get("num_samples")
    found.append(("trials", (f"{made} of {wanted}" if wanted else str(made)) + (f": {told}" if told else "")))
    if (best := best_trial(summary)) is not None:
        params = format_params(best_params(best), names_of(summary))
        found.append(("best so far", f"{best['id']}, {format_result(summary, best)}: {params}"))
    if len(metrics_of(summary)) > 1:
        found.append(("Pareto front", ", ".join(summary.get("pareto") or ()) or "no trial yet"))
    found.append(("elapsed", format_duration(elapsed_s(summary))))
    if summary.get("state") == "SEARCHING" and summary.get("eta_s") is not None:
        found.append(("time left", f"about {format_duration(summary['eta_s'])}"))
    limit, width = summary.get("limit"), summary.get("width")
    if limit and width:
        found.append(("at once", f"{counted(limit, 'trial')} of {counted(width, 'worker')}"))
    if summary.get("why_ended"):
        found.append(("ended", str(summary["why_ended"])))
    return found


def columns(summary: Summary) -> list[str]:
    """The heads of the table of `rows`."""
    return ["TRIAL", "STATE", *(metric for metric, _ in metrics_of(summary)), "EPOCH", "TIME", "PARAMETERS"]


def rows(summary: Summary, trials: Iterable[Trial]) -> list[list[str]]:
    """A row for each of these trials; why it failed, or ended before its time, stands before its parameters."""
    names = names_of(summary)
    return [
        [
            str(trial["id"]),
            str(trial["state"]),
            *score_cells(summary, trial),
            str(trial.get("epoch") or ""),
            format_duration(trial["seconds"]) if trial.get("seconds") else "",
            (f"{one_line(trial['error'])} · " if trial.get("error") else "")
            + format_params(trial["params"], names),
        ]
        for trial in trials
    ]


def _by_id(summary: Summary) -> dict[str, Trial]:
    return {trial["id"]: trial for trial in summary["trials"]}


def _listed(value: str | Sequence[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _brief(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else _exact(value)


def _exact(value: Any) -> str:
    """As an override is read: JSON, and words without quotes where nothing else could be meant."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _NOT_TEXT:
        return value
    text = json.dumps(value, ensure_ascii=False)
    return _NOT_YAML.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
