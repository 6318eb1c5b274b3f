"""`orchestrator wait`: block until a run has ended, and exit as it did."""

from __future__ import annotations

import time

import typer

from orchestrator.cli.options import (
    AddressOption,
    RunArgument,
    StorageOption,
    TimeoutOption,
    find_address,
    open_storage,
    show_duration,
)
from orchestrator.monitor.progress_lines import format_verdict

_POLL_S = 0.5


def wait(
    name: RunArgument,
    timeout: TimeoutOption = None,
    address: AddressOption = None,
    storage: StorageOption = None,
) -> None:
    """Wait until a run has ended. The exit code is the run's own; 124 where --timeout passes first.

    Example: orchestrator wait digits-3 --timeout 10m
    """
    found = find_address(address, storage)
    if found is not None:
        from orchestrator.runners.submission import jobs

        try:
            code = jobs.wait_job(found, name, timeout)
        except TimeoutError as error:
            typer.echo(str(error), err=True)
            code = 124
        raise typer.Exit(code)
    from orchestrator.runs.folder import find_run
    from orchestrator.runs.views import ENDED, Onlooker

    run = find_run(open_storage(storage), name)
    onlooker = Onlooker(run)
    deadline_s = float("inf") if timeout is None else time.monotonic() + timeout
    while (state := onlooker.state()) not in ENDED:
        if time.monotonic() >= deadline_s:
            typer.echo(f"{run.label} is still {state} after {show_duration(timeout)}", err=True)
            raise typer.Exit(124)
        time.sleep(min(_POLL_S, max(0.0, deadline_s - time.monotonic())))
    verdict = run.read_verdict()
    if verdict is None:
        typer.echo(
            f"{run.label}: its driver died. Run the job again: it resumes from its last checkpoint", err=True
        )
        raise typer.Exit(1)
    typer.echo(format_verdict(verdict, run.label))
    raise typer.Exit(verdict.exit_code)
