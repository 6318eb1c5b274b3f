"""`orchestrator list`: the runs of a storage folder, or the jobs of a cluster."""

from __future__ import annotations

from typing import Any

import typer

from orchestrator.cli.options import (
    AddressOption,
    Output,
    OutputOption,
    StorageOption,
    find_address,
    open_storage,
    print_json,
    print_table,
    show_duration,
    show_metrics,
    show_time,
)


def list_(
    address: AddressOption = None, storage: StorageOption = None, output: OutputOption = Output.text
) -> None:
    """List runs: state, progress, time left, figures.

    Example: orchestrator list --storage ./runs -o json
    """
    runs = _described(find_address(address, storage), storage)
    if output is Output.json:
        print_json(runs)
    elif not runs:
        typer.echo("no runs")
    else:
        print_table(
            ["NAME", "STATE", "EPOCH", "STEP", "ETA", "STARTED", "DURATION", "METRICS"],
            [_row(run) for run in runs],
        )
        if any(run["state"] == "DEAD" for run in runs):
            typer.echo("DEAD: its driver died. Run the job again: it resumes from its last checkpoint")


def _described(address: str | None, storage: str | None) -> list[dict[str, Any]]:
    if address is not None:
        from orchestrator.runners.submission import jobs

        return jobs.list_jobs(address)
    from orchestrator.runs.folder import list_runs
    from orchestrator.runs.views import describe_run

    return [describe_run(run) for run in list_runs(open_storage(storage))]


def _row(run: dict[str, Any]) -> list[str]:
    progress = run["progress"]
    return [
        str(run["name"]),
        str(run["state"]),
        f"{progress['epoch']}/{progress['max_epochs']}" if progress else "",
        f"{progress['step']}/{progress['max_steps']}" if progress else "",
        show_duration(run["eta_s"]),
        show_time(run["started_s"]),
        show_duration(run["duration_s"]),
        show_metrics(run["metrics"]),
    ]
