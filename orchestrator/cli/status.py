"""`orchestrator status`: one run, or one job of a cluster."""

from __future__ import annotations

from typing import Any

import typer

from orchestrator.cli.options import (
    AddressOption,
    Output,
    OutputOption,
    RunArgument,
    StorageOption,
    find_address,
    open_storage,
    print_json,
    show_duration,
    show_metrics,
    show_time,
)
from orchestrator.monitor.progress_lines import format_progress, format_verdict
from orchestrator.monitor.search_lines import format_search
from orchestrator.records import Progress, Verdict


def status(
    name: RunArgument,
    address: AddressOption = None,
    storage: StorageOption = None,
    output: OutputOption = Output.text,
) -> None:
    """Show a run: state, progress, time left, figures, verdict.

    Example: orchestrator status digits-3
    """
    run = _described(find_address(address, storage), storage, name)
    if output is Output.json:
        print_json(run)
        return
    lines = _lines(run)
    width = max(len(label) for label, _ in lines)
    for label, text in lines:
        typer.echo(f"{label:<{width}}  {text}")


def _described(address: str | None, storage: str | None, name: str) -> dict[str, Any]:
    if address is not None:
        from orchestrator.runners.submission import jobs

        return jobs.job_status(address, name)
    from orchestrator.runs.folder import find_run
    from orchestrator.runs.logs import newest_postmortem
    from orchestrator.runs.views import describe_run

    run = find_run(open_storage(storage), name)
    postmortem = newest_postmortem(run)
    search = run.read_search()
    return describe_run(run) | {
        "postmortem": postmortem.uri if postmortem else None,
        "search": format_search(search).removeprefix("search: ") if search else None,
    }


def _lines(run: dict[str, Any]) -> list[tuple[str, str]]:
    progress, verdict, label = run["progress"], run["verdict"], run.get("run") or run["name"]
    facts = {
        "job": run.get("job_id"),
        "run": label,
        "state": run["state"],
        "progress": format_progress(Progress(**progress)) if progress else None,
        "search": run.get("search"),
        "started": show_time(run["started_s"]),
        "duration": show_duration(run["duration_s"]),
        "attempts": run.get("attempts"),
        "metrics": show_metrics(run["metrics"]),
        "mlflow run": run.get("mlflow_run_id"),
        "folder": run.get("folder"),
        "post-mortem": run.get("postmortem"),
        "reason": run.get("reason"),
        "verdict": format_verdict(Verdict(**verdict), label).removeprefix("verdict: ") if verdict else None,
    }
    if run["state"] == "DEAD":
        facts["verdict"] = "none: its driver died. Run the job again: it resumes from its last checkpoint"
    return [(key, str(value)) for key, value in facts.items() if value]
