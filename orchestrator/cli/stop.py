"""`orchestrator stop`: ask a run to save and end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from orchestrator.cli.options import AddressOption, RunArgument, StorageOption, find_address, open_storage
from orchestrator.monitor.progress_lines import format_duration, format_verdict

if TYPE_CHECKING:
    from orchestrator.runs.folder import RunFolder

_POLL_S = 0.5
_DEFAULT_GRACE_S = 30.0


def stop(name: RunArgument, address: AddressOption = None, storage: StorageOption = None) -> None:
    """Ask a run to save a checkpoint and end, and wait for it as long as its failure.stop_grace.

    Running the same job again resumes it.

    Example: orchestrator stop digits-3
    """
    found = find_address(address, storage)
    if found is not None:
        from orchestrator.runners.submission import jobs

        jobs.stop_job(found, name)
        typer.echo(f"{name}: asked to stop")
        return
    from orchestrator.runs.folder import find_run
    from orchestrator.runs.heartbeat import INTERVAL_S
    from orchestrator.runs.views import ENDED, Onlooker

    run = find_run(open_storage(storage), name)
    onlooker = Onlooker(run)
    state = onlooker.state()
    if state in ENDED:
        typer.echo(f"{run.label} is not running: {state}")
        return
    run.request_stop()
    grace_s = _stop_grace_s(run)
    typer.echo(f"{run.label}: asked to save and end; waiting up to {format_duration(grace_s)}")
    deadline_s = time.monotonic() + grace_s + INTERVAL_S  # the driver looks for requests every INTERVAL_S
    while (state := onlooker.state()) not in ENDED:
        if time.monotonic() >= deadline_s:
            typer.echo(
                f"{run.label} has not ended yet; it will, see: orchestrator status {run.label}", err=True
            )
            raise typer.Exit(1)
        time.sleep(_POLL_S)
    verdict = run.read_verdict()
    typer.echo(format_verdict(verdict, run.label) if verdict else f"{run.label}: its driver died")


def _stop_grace_s(run: RunFolder) -> float:
    """`failure.stop_grace` of the run's own spec."""
    import yaml

    from orchestrator.units import parse_duration

    try:
        return parse_duration(yaml.safe_load(run.read_spec() or "")["failure"]["stop_grace"])
    except (yaml.YAMLError, KeyError, TypeError, ValueError):
        return _DEFAULT_GRACE_S
