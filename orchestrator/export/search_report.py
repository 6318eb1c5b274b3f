"""The description of a search, in Markdown, for the tracking server: the result first.

`summary` is the content of `search/summary.json`. Imports: the table of the search.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from orchestrator.export.search_table import (
    Summary,
    Trial,
    best_trial,
    counts,
    objectives,
    pareto_trials,
    paths,
    ranked,
    scored,
    text_of,
    value_of,
)
from orchestrator.wording import counted, one_line, rounded, time_taken

_GAP = "&emsp;"
_MOST_TRIALS = 5
_MOST_OF_FRONT = 20
_MOST_ERRORS = 3
_LONGEST_ERROR = 160


def search_description(
    summary: Summary,
    *,
    run: str,
    domains: Mapping[str, str] | None = None,
    verdict: str = "",
) -> str:
    """The winner and its parameters, or the Pareto front; the trials by state; what failed; how to see more.

    `run` is the run's label. `domains` says of each parameter what was searched, as `loguniform 0.0001 … 0.1`;
    `verdict` is a line on how the search ended, and what became of the winner.
    """
    several = len(objectives(summary)) > 1
    winner = None if several else best_trial(summary)
    front = pareto_trials(summary) if several else []
    parts = [_headline(summary, winner, front), verdict.strip()]
    if winner is not None:
        parts += [_params(winner, domains or {}), _others(summary, winner)]
    elif front:
        parts.append(_front(summary, front))
    parts += [_facts(summary, run), _failures(summary), _more(run, several=several)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _headline(summary: Summary, winner: Trial | None, front: list[Trial]) -> str:
    made = counted(len(summary["trials"]), "trial")
    told = objectives(summary)
    if winner is not None:
        score = value_of(winner, told[0][0], first=True)
        at = f" at epoch {winner['best_epoch']}" if winner.get("best_epoch") else ""
        value = "" if score is None else f": {told[0][0]} {rounded(score)}"
        return f"## Best of {made}{value} ({winner['id']}{at})"
    if front:
        return f"## Pareto front of {made}: {counted(len(front), 'trial')} for {_objectives(summary)}"
    if not summary["trials"]:
        return "## No trial was made"
    return f"## None of {made} gave a value of {told[0][0]}"


def _params(winner: Trial, domains: Mapping[str, str]) -> str:
    if not winner["params"]:
        return ""
    rows = [f"| parameter | {_GAP}best |" + (f" {_GAP}searched |" if domains else ""), "|---|---:|"]
    if domains:
        rows[1] += "---|"
    for name, value in winner["params"].items():
        searched = f" {_GAP}{_cell(domains.get(name, ''))} |" if domains else ""
        rows.append(f"| `{name}` | {_GAP}{_cell(text_of(value, digits=6))} |{searched}")
    return "\n".join(rows)


def _others(summary: Summary, winner: Trial) -> str:
    """How close the next ones came."""
    metric = objectives(summary)[0][0]
    known = {trial["id"] for trial, _ in scored(summary)}
    rest = [trial for trial in ranked(summary) if trial["id"] in known and trial["id"] != winner["id"]]
    told = [
        f"{trial['id']} {rounded(value_of(trial, metric, first=True) or 0.0)}"
        for trial in rest[: _MOST_TRIALS - 1]
    ]
    return f"Next best: {', '.join(told)}." if told else ""


def _front(summary: Summary, front: list[Trial]) -> str:
    told = objectives(summary)
    names = [name for name in paths(summary) if any(name in trial["params"] for trial in front)]
    heads = ["trial", *(f"{_GAP}{metric}" for metric, _ in told), *(f"{_GAP}`{name}`" for name in names)]
    rows = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for trial in front[:_MOST_OF_FRONT]:
        values = [value_of(trial, metric, first=not index) for index, (metric, _) in enumerate(told)]
        cells = [
            trial["id"],
            *("" if value is None else rounded(value) for value in values),
            *(_cell(text_of(trial["params"][name])) if name in trial["params"] else "" for name in names),
        ]
        rows.append(f"| {f' | {_GAP}'.join(cells)} |")
    left_out = len(front) - _MOST_OF_FRONT
    return "\n".join(rows) + (
        f"\n\n{counted(left_out, 'more trial')} in `search/trials.csv`." if left_out > 0 else ""
    )


def _facts(summary: Summary, run: str) -> str:
    states = ", ".join(f"{count:,} {state.lower()}" for state, count in counts(summary).items())
    how = " and ".join(f"`{summary[key]}`" for key in ("search_alg", "scheduler") if summary.get(key))
    trained_s = sum(trial.get("seconds") or 0.0 for trial in summary["trials"])
    elapsed_s = summary.get("elapsed_s")
    if elapsed_s is None:
        elapsed_s = max(0.0, (summary.get("updated_s") or 0.0) - (summary.get("started_s") or 0.0))
    facts = [
        f"- **Trials**: {len(summary['trials']):,}" + (f" ({states})" if states else ""),
        f"- **Search**: {_objectives(summary)}" + (f", by {how}" if how else ""),
        f"- **Time**: {time_taken(elapsed_s)}, in which trials trained for {time_taken(trained_s)} together",
    ]
    if summary.get("why_ended"):
        facts.append(f"- **Ended**: {summary['why_ended']}")
    return "\n".join([*facts, f"- **Run**: `{run}`"])


def _failures(summary: Summary) -> str:
    errors = Counter(
        _short(trial.get("error") or "") for trial in summary["trials"] if trial["state"] == "FAILED"
    )
    errors.pop("", None)
    if not errors:
        return ""
    rows = [f"- {counted(count, 'trial')}: {error}" for error, count in errors.most_common(_MOST_ERRORS)]
    if len(errors) > _MOST_ERRORS:
        rows.append(f"- {counted(len(errors) - _MOST_ERRORS, 'other reason')}, see `search/trials.csv`")
    return "**Failed**:\n\n" + "\n".join(rows)


def _more(run: str, *, several: bool) -> str:
    tag = "orchestrator.pareto" if several else "orchestrator.best"
    return (
        f"The trials are the runs below this one (the tag `{tag}` marks the {'front' if several else 'best'}): select "
        "them and press *Compare*. Their table and the pictures are under *Artifacts*, in `search`. In a shell:\n\n"
        f"```bash\norchestrator tune status {run}\norchestrator tune best {run}\n```"
    )


def _objectives(summary: Summary) -> str:
    return ", ".join(f"{metric} ({mode})" for metric, mode in objectives(summary))


def _cell(text: Any) -> str:
    """Text that does not end a cell of the table."""
    return _short(str(text)).replace("|", "\\|")


def _short(text: str) -> str:
    line = one_line(text)
    return line if len(line) <= _LONGEST_ERROR else f"{line[: _LONGEST_ERROR - 1]}…"
