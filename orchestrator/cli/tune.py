"""`orchestrator tune`: look at a search, take its best trial, stop it, go on with it."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import (
    AddressOption,
    Output,
    OutputOption,
    OverridesArgument,
    RunArgument,
    StorageOption,
    open_storage,
    print_json,
    print_table,
)
from orchestrator.cli.run import run_loaded
from orchestrator.cli.stop import stop as stop_run
from orchestrator.errors import UsageError
from orchestrator.monitor import search_lines

if TYPE_CHECKING:
    from orchestrator.runs.folder import RunFolder
    from orchestrator.runs.views import State
    from orchestrator.spec import LoadedSpec

tune = typer.Typer(
    help="Look after a search for hyperparameters; `orchestrator run` begins one, where the spec has `tune`.\n\n"
    "Example: orchestrator tune status digits_tune",
    no_args_is_help=True,
    context_settings={},
)

SearchArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run (digits_tune-1) or a job's name for its newest run (digits_tune).",
        show_default=False,
    ),
]


@tune.command()
def status(run: SearchArgument, storage: StorageOption = None, output: OutputOption = Output.text) -> None:
    """Show a search, while it goes on and afterwards: what it found, and all trials, the best first.

    Example: orchestrator tune status digits_tune-1
    """
    folder, summary, state = _opened(run, storage)
    if output is Output.json:
        print_json({"run": folder.label, "run_state": state, **summary})
        return
    facts = [("run", folder.label), ("state", _said(folder, summary, state))]
    if summary:
        ended = state not in ("RUNNING", "PENDING")
        facts += search_lines.facts({**summary, "eta_s": None} if ended else summary)
    _print_facts(facts)
    if summary.get("trials"):
        typer.echo()
        ranked = search_lines.ranked(summary)
        print_table(search_lines.columns(summary), search_lines.rows(summary, ranked))


@tune.command()
def best(run: SearchArgument, storage: StorageOption = None, output: OutputOption = Output.text) -> None:
    """Show the best trial: its parameters, to be pasted behind a spec, its checkpoint, its page in MLflow.

    A search with several metrics has no best trial but a Pareto front: trials which no other one beats in all metrics.

    Example: orchestrator tune best digits_tune-1
    """
    folder, summary, _ = _opened(run, storage)
    several = len(search_lines.metrics_of(summary)) > 1
    first = search_lines.best_trial(summary) if summary else None
    trials = search_lines.pareto_trials(summary) if several else [first] if first else []
    entries = [_entry(folder, summary, trial) for trial in trials]
    if output is Output.json:
        print_json(
            {
                "run": folder.label,
                "metric": summary.get("metric"),
                "mode": summary.get("mode"),
                "parameters_change": search_lines.changes_parameters(summary),
                **({"pareto": entries} if several else {"best": entries[0] if entries else None}),
            }
        )
    elif several and trials:
        typer.echo(f"Pareto front of {folder.label}: {len(trials)} of {len(summary['trials'])} trials\n")
    if not trials:
        typer.echo(f"no trial of {folder.label} has a score yet", err=True)
        raise typer.Exit(1)
    if output is Output.text:
        for index, (trial, entry) in enumerate(zip(trials, entries, strict=True)):
            if index:
                typer.echo()
            _print_facts(_best_facts(folder, summary, trial, entry))


@tune.command()
def stop(name: RunArgument, address: AddressOption = None, storage: StorageOption = None) -> None:
    """Ask a search to save its running trials and end, and wait for it. All that it found so far is kept.

    `orchestrator tune resume` goes on with it.

    Example: orchestrator tune stop digits_tune-1
    """
    stop_run(name, address, storage)


@tune.command()
def resume(
    search: Annotated[
        str,
        typer.Argument(
            metavar="RUN|SPEC",
            help="A run (digits_tune-1), which goes on by the spec that it recorded; or a job spec, "
            "whose newest run goes on.",
            show_default=False,
        ),
    ],
    overrides: OverridesArgument = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", help="The cluster to run on (HEAD:6379 or auto). Default: RAY_ADDRESS, else here."
        ),
    ] = None,
    storage: StorageOption = None,
    output: OutputOption = Output.text,
) -> None:
    """Go on with a search that was stopped, or whose driver died: trials that have ended are not run again.

    The same as `orchestrator run SPEC --resume RUN`. A run's own record holds no secrets, and not where the spec lay:
    give the spec where it has secrets, or code of yours lies beside it.

    Example: orchestrator tune resume digits_tune-1
    """
    from orchestrator.runners.submission.package import load_job_secrets

    load_job_secrets()
    loaded, run = _to_resume(search, overrides or (), storage)
    if _summary(run) is None:
        raise _no_search(run)
    run_loaded(loaded, address=address, resume=run.label, output=output)


def _to_resume(search: str, overrides: Sequence[str], storage: str | None) -> tuple[LoadedSpec, RunFolder]:
    """The spec to go on with, and the run. Raises UsageError where there is none, or it cannot be read again."""
    import yaml

    from orchestrator.runs.folder import find_run, list_runs
    from orchestrator.spec import MASK, load_spec, secret_values

    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", search):  # names of runs have neither dot nor slash
        loaded = load_spec(search, overrides, {"storage": storage} if storage else None)
        runs = list_runs(open_storage(loaded.spec.storage), loaded.spec.name)
        if not runs:
            raise UsageError(f"{loaded.spec.name} has no runs yet", f"begin with: orchestrator run {search}")
        return loaded, runs[-1]
    run = find_run(open_storage(storage), search)
    recorded = yaml.safe_load(run.read_spec() or "")
    if not isinstance(recorded, dict):
        raise UsageError(f"{run.label} has recorded no spec", "orchestrator tune resume SPEC, the job's file")
    loaded = load_spec(recorded, overrides, {"storage": run.storage.uri})
    masked = [name for name, value in secret_values(loaded.spec).items() if value == MASK]
    if masked:
        raise UsageError(
            f"{run.label} has secrets ({', '.join(masked)}), and a run does not record their values",
            "orchestrator tune resume SPEC, the job's file",
        )
    return loaded, run


def _opened(name: str, storage: str | None) -> tuple[RunFolder, dict[str, Any], State]:
    """The run, the summary of its search (empty where it has none yet), and whether its driver is at work.

    Raises UsageError where the run is no search.
    """
    from orchestrator.runs.folder import find_run
    from orchestrator.runs.views import run_state

    run = find_run(open_storage(storage), name)
    summary = _summary(run)
    if summary is None:
        raise _no_search(run)
    return run, summary, run_state(run, time.time())


def _summary(run: RunFolder) -> dict[str, Any] | None:
    """Empty where the search has not begun; None where the run has none."""
    import yaml

    if (found := run.read_search()) is not None:
        return found
    try:
        return {} if (yaml.safe_load(run.read_spec() or "") or {}).get("tune") else None
    except (yaml.YAMLError, AttributeError):
        return None


def _no_search(run: RunFolder) -> UsageError:
    return UsageError(
        f"{run.label} searches for nothing: its spec has no `tune`",
        f"look at it with: orchestrator status {run.label}",
    )


def _said(run: RunFolder, summary: Mapping[str, Any], state: State) -> str:
    goes_on = f"it goes on with: orchestrator tune resume {run.label}"
    if state == "DEAD":
        return f"DEAD: its driver died; {goes_on}"
    if state == "STOPPED":
        return f"STOPPED; {goes_on}"
    if state == "FAILED":
        verdict = run.read_verdict()
        return f"FAILED: {verdict.reason}" if verdict else state
    if not summary:
        return f"{state}: no trial has begun yet"
    return state if state == "SUCCEEDED" else str(summary.get("state") or state)


def _entry(run: RunFolder, summary: Mapping[str, Any], trial: Mapping[str, Any]) -> dict[str, Any]:
    """A trial's facts, with what is needed to use it: overrides, checkpoint, the page in MLflow."""
    checkpoint, epoch = _checkpoint(run, trial)
    return {
        **trial,
        "overrides": search_lines.format_overrides(search_lines.best_params(trial)),
        "folder": run.trial(trial["id"]).folder.uri,
        "checkpoint": checkpoint,
        "checkpoint_epoch": epoch,
        "link": _link(run, summary, trial),
    }


def _checkpoint(run: RunFolder, trial: Mapping[str, Any]) -> tuple[str | None, int | None]:
    """The trial's checkpoint of its best epoch, or else the newest one, and that one's epoch."""
    from orchestrator.checkpoints.store import CheckpointStore

    folder = run.trial(trial["id"]).checkpoints
    manifests = CheckpointStore(folder).manifests()
    wanted = [manifest for manifest in manifests if manifest.epoch == trial.get("best_epoch")]
    if not manifests:
        return None, None
    found = (wanted or manifests)[-1]
    return (folder / found.name).uri, found.epoch


def _link(run: RunFolder, summary: Mapping[str, Any], trial: Mapping[str, Any]) -> str | None:
    from orchestrator.tracking.links import run_link, ui_base

    record = run.read_record()
    experiment, run_id = summary.get("experiment_id"), trial.get("mlflow_run_id")
    if record is None or not (record.tracking_uri and experiment and run_id):
        return None
    return run_link(ui_base(record.tracking_uri), str(experiment), str(run_id))


def _best_facts(
    run: RunFolder, summary: Mapping[str, Any], trial: Mapping[str, Any], entry: Mapping[str, Any]
) -> list[tuple[str, str]]:
    facts = [
        ("trial", f"{trial['id']} of {run.label}, {trial['state']}"),
        ("score", search_lines.format_result(summary, trial)),
        ("parameters", entry["overrides"]),
    ]
    if search_lines.changes_parameters(summary):
        facts.append(
            (
                "",
                f"{summary['scheduler']} changed them in the course of the trial, and may have given it weights of "
                "others: training with these from the beginning gives another result",
            )
        )
    if entry["checkpoint"]:
        facts.append(("checkpoint", f"{entry['checkpoint']} (epoch {entry['checkpoint_epoch']})"))
    if entry["link"] or trial.get("mlflow_run_id"):
        facts.append(("MLflow", entry["link"] or f"run {trial['mlflow_run_id']}"))
    return facts


def _print_facts(facts: Sequence[tuple[str, str]]) -> None:
    width = max(len(label) for label, _ in facts)
    for label, text in facts:
        typer.echo(f"{label:<{width}}  {text}")
