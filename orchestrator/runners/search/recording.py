"""What a search records in MLflow: its trials as children of the run, how it gets on, and what it found.

`summary` is the content of `search/summary.json`; it may have `curves`, too: `(epoch, value)` pairs of the first metric
by trial. Imports: tracking (no mlflow itself), export. No ray.
"""

from __future__ import annotations

import csv
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.export.search_coordinates import parallel_coordinates_picture
from orchestrator.export.search_importance import importance
from orchestrator.export.search_pareto import pareto_picture
from orchestrator.export.search_pictures import (
    best_so_far_picture,
    importance_picture,
    learning_curves_picture,
)
from orchestrator.export.search_report import search_description
from orchestrator.export.search_table import (
    FINISHED,
    best_trial,
    counts,
    num_finished,
    objectives,
    scored,
    table,
    text_of,
    value_of,
)
from orchestrator.records import Point, Status
from orchestrator.runs.folder import RunFolder
from orchestrator.tracking.ops import StartRun
from orchestrator.tracking.tracker import ChildTracker, Tracker

if TYPE_CHECKING:
    from orchestrator.spec.tune import Domain, TuneSection

_log = logging.getLogger(__name__)

SEARCH_TAG = "orchestrator.search"
"""Tag of a trial: the label of the run that searched."""
STATE_TAG = "orchestrator.trial_state"
ERROR_TAG = "orchestrator.error"
HAND_OVER_TAG = "orchestrator.hand_over"
"""Prefix of the tags that say from which trial another one took over, by the epoch."""
BEST_TAG = "orchestrator.best"
PARETO_TAG = "orchestrator.pareto"
BEST_TRIAL_TAG = "orchestrator.best_trial"
"""Tag of the search: its best trial."""
FOLDER = "search"
"""Among the artifacts."""
_TABLES_TAG = "mlflow.loggedArtifacts"
"""Tag by which MLflow's UI knows which JSON files are tables."""
_ENDED: dict[str, Status] = {
    "COMPLETED": "SUCCEEDED",
    "PRUNED": "SUCCEEDED",
    "FAILED": "FAILED",
    "STOPPED": "STOPPED",
}


def start_of_trial(
    run_label: str,
    trial_id: str,
    params: Mapping[str, Any],
    tags: Mapping[str, str],
    *,
    run_id: str | None = None,
) -> StartRun:
    """The MLflow run of a trial, for `Tracker.child`, which knows the experiment. `run_id` is that which the search's
    summary has of it, in case that the journal is on another machine."""
    return StartRun(
        experiment="",
        run_name=trial_id,
        tags={**tags, SEARCH_TAG: run_label, STATE_TAG: "RUNNING"},
        params=_as_params(params),
        run_id=run_id,
    )


def record_hand_over(child: ChildTracker, epoch: int, giver: str, params: Mapping[str, Any]) -> None:
    """A trial goes on from another one's checkpoint of this epoch, with these parameters of its own."""
    told = ", ".join(f"{path}={text_of(value)}" for path, value in params.items())
    child.set_tags({f"{HAND_OVER_TAG}.{epoch:04d}": f"from {giver}: {told}"})


def record_trial_end(child: ChildTracker, trial: Mapping[str, Any], metric: str) -> None:
    """A trial has ended: `trial` is its entry in the summary, `metric` the first one of the search."""
    tags = {STATE_TAG: str(trial["state"])}
    if trial.get("error"):
        tags[ERROR_TAG] = str(trial["error"])
    child.set_tags(tags)
    score = trial.get("score")
    if score is not None:
        best = {f"best/{metric.replace('/', '_')}": float(score)}
        child.log_summary({**best, "best/epoch": float(trial.get("best_epoch") or 0)})
    child.end_run(_ENDED.get(str(trial["state"]), "STOPPED"))


def record_search_progress(parent: Tracker, summary: Mapping[str, Any]) -> None:
    """Record how far a search is: the best so far, and trials by state, over the number of finished trials.

    What stands at a number of trials already is not recorded again. Raises TrackingError where it cannot be written
    now: it comes with the next call.
    """
    finished = num_finished(summary)
    if not finished:
        return
    found = counts(summary)
    figures = {
        f"search/trials_{state.lower()}": float(found.get(state, 0))
        for state in ("COMPLETED", "PRUNED", "FAILED", "STOPPED")
    }
    told = objectives(summary)
    trials = [trial for trial, _ in scored(summary)]
    for index, (metric, mode) in enumerate(told):
        values = [value_of(trial, metric, first=not index) for trial in trials]
        known = [value for value in values if value is not None]
        if known:
            figures[_best_key(metric)] = min(known) if mode == "min" else max(known)
    if len(told) > 1:
        figures["search/pareto_trials"] = float(len(summary.get("pareto") or ()))
    now_ms = time.time_ns() // 1_000_000
    parent.log_points([Point(key, value, finished, now_ms) for key, value in figures.items()])


def record_search_end(
    parent: Tracker, run: RunFolder, summary: Mapping[str, Any], section: TuneSection, verdict: str = ""
) -> None:
    """Record what a search found: description, table of the trials, pictures, the best trial's parameters and tags.

    Trials that are over, and whose end the driver before this one had no time to record, are ended too. Files are left
    in `search/` of the run's folder (in the cache, where storage is remote). `verdict` is a line for
    the description. Raises TrackingError or OSError where it cannot be recorded.
    """
    trials = {trial["id"]: trial for trial in summary["trials"]}
    for trial_id, child in parent.open_children().items():
        if trials.get(trial_id, {}).get("state") in FINISHED:
            record_trial_end(child, trials[trial_id], objectives(summary)[0][0])
    record_search_progress(parent, summary)
    folder = run.local / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    description = description_of_search(run, summary, section, verdict)
    (folder / "summary.md").write_text(description)
    parent.set_description(description)
    for path in (folder / "summary.md", *_tables(folder, summary)):
        parent.log_artifact(path, FOLDER)
    for path in _pictures(parent, folder, summary, section):
        parent.log_artifact(path, FOLDER)
    parent.set_tags({_TABLES_TAG: json.dumps([{"path": f"{FOLDER}/trials.json", "type": "table"}])})
    _mark_best(parent, summary)


def description_of_search(
    run: RunFolder, summary: Mapping[str, Any], section: TuneSection, verdict: str = ""
) -> str:
    """The description of a search, in Markdown; what trains the winner afterwards may put it behind its own."""
    domains = {path: _described(domain) for path, domain in section.param_space.items()}
    return search_description(summary, run=run.label, domains=domains, verdict=verdict)


def _mark_best(parent: Tracker, summary: Mapping[str, Any]) -> None:
    """Tag the winner, or the Pareto front, and take the tag from those that an earlier end of the search gave it."""
    several = len(objectives(summary)) > 1
    best = None if several else best_trial(summary)
    chosen = set(summary.get("pareto") or ()) if several else {best["id"]} if best is not None else set()
    tag = PARETO_TAG if several else BEST_TAG
    before = parent.child_tags(tag)
    for trial in sorted(chosen | {trial for trial, value in before.items() if value == "true"}):
        value = "true" if trial in chosen else "false"
        if before.get(trial) != value:
            parent.tag_child(trial, {tag: value})
    if best is not None:
        parent.set_tags({BEST_TRIAL_TAG: best["id"]})
        parent.log_params({f"best.{path}": value for path, value in _as_params(best["params"]).items()})


def _tables(folder: Path, summary: Mapping[str, Any]) -> list[Path]:
    """The trials for spreadsheets, and in the form that MLflow's UI shows as a table."""
    columns, rows = table(summary)
    with (folder / "trials.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)
    text = json.dumps({"columns": columns, "data": rows}, default=str)
    (folder / "trials.json").write_text(text)
    return [folder / "trials.csv", folder / "trials.json"]


def _pictures(parent: Tracker, folder: Path, summary: Mapping[str, Any], section: TuneSection) -> list[Path]:
    """Those that could be drawn: a search is not lost for want of one."""
    space = section.param_space
    log_scale = {path for path, domain in space.items() if domain.kind in ("loguniform", "lograndint")}
    categories = {
        path: domain.values for path, domain in space.items() if domain.kind in ("choice", "grid_search")
    }
    metric = objectives(summary)[0][0]
    drawn: list[Path] = []

    def draw(name: str, picture: Callable[[Path], None]) -> None:
        try:
            picture(folder / name)
            drawn.append(folder / name)
        except Exception as error:  # noqa: BLE001 - drawing has many ways to fail, and the search matters more
            _log.warning("%s of the search could not be drawn: %s", name, error)

    try:
        weights = importance(summary, log_scale)
    except Exception as error:  # noqa: BLE001 - as above
        _log.warning("the importance of the parameters could not be found: %s", error)
        weights = None
    curves, by = _curves(parent, summary, metric)
    draw("best_so_far.png", lambda path: best_so_far_picture(summary, path))
    draw(
        "parallel_coordinates.png",
        lambda path: parallel_coordinates_picture(
            summary,
            path,
            log_scale=log_scale,
            categories=categories,
            order=weights.names if weights else (),
        ),
    )
    draw("importance.png", lambda path: importance_picture(summary, weights, path))
    draw("learning_curves.png", lambda path: learning_curves_picture(summary, curves, path, x_label=by))
    if len(objectives(summary)) > 1:
        draw("pareto_front.png", lambda path: pareto_picture(summary, path))
    return drawn


def _curves(
    parent: Tracker, summary: Mapping[str, Any], metric: str
) -> tuple[Mapping[str, Sequence[tuple[float, float]]], str]:
    """The first metric by trial while it trained, and over what: epochs, as the summary has them, or else steps."""
    given = summary.get("curves")
    if given is not None:
        return given, "epoch"
    curves: dict[str, list[tuple[float, float]]] = {}
    for child, point in parent.child_points(metric):
        if point.step:
            curves.setdefault(child, []).append((point.step, point.value))
    return curves, "optimizer step"


def _described(domain: Domain) -> str:
    """`loguniform 0.0001 … 0.1`; what to choose from, listed."""
    values = [text_of(value) for value in domain.values]
    match domain.kind:
        case "choice" | "grid_search":
            shown = ", ".join(values[:6]) + (", …" if len(values) > 6 else "")
            told = f"{domain.kind.replace('_search', '')}: {shown}"
        case "expr":
            told = f"`{domain.expr}`"
        case "quniform":
            told = f"quniform {values[0]} … {values[1]}, by {values[2]}"
        case kind:
            told = f"{kind} {values[0]} … {values[1]}"
    if domain.when:
        told += f" when {', '.join(f'{path} is {text_of(value)}' for path, value in domain.when.items())}"
    return told


def _as_params(params: Mapping[str, Any]) -> dict[str, str]:
    """As text, whole: MLflow's params are, and an inner mapping shall stay one."""
    return {
        path: value if isinstance(value, str) else json.dumps(value, default=str)
        for path, value in params.items()
    }


def _best_key(metric: str) -> str:
    return f"search/best_{metric.replace('/', '_')}"
