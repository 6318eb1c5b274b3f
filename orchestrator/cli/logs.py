"""`orchestrator logs`: what a run's driver or one of its workers wrote."""

from __future__ import annotations

from typing import Annotated

import typer

from orchestrator.cli.options import AddressOption, RunArgument, StorageOption, find_address, open_storage
from orchestrator.errors import UsageError

RankOption = Annotated[
    int | None,
    typer.Option(
        "--rank", min=0, help="The log of this worker; by default the driver's.", show_default=False
    ),
]
AttemptOption = Annotated[
    int | None,
    typer.Option(
        "--attempt", min=1, help="The log of this attempt; by default the newest.", show_default=False
    ),
]


def logs(
    name: RunArgument,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run has ended.")] = False,
    rank: RankOption = None,
    attempt: AttemptOption = None,
    address: AddressOption = None,
    storage: StorageOption = None,
) -> None:
    """Print the log of a run's driver, or of one of its workers.

    Example: orchestrator logs digits -f --rank 1
    """
    found = find_address(address, storage)
    if found is not None:
        if rank is not None or attempt is not None:
            raise UsageError(
                "a cluster's job has one log",
                "leave --rank and --attempt out, or name the run's folder with --storage",
            )
        from orchestrator.runners.submission import jobs

        for text in jobs.follow_logs(found, name, follow):
            typer.echo(text, nl=False)
        return
    from orchestrator.runs.folder import find_run
    from orchestrator.runs.logs import follow_log, read_log
    from orchestrator.runs.views import ENDED, Onlooker

    run = find_run(open_storage(storage), name)
    if not follow:
        typer.echo(read_log(run, rank, attempt), nl=False)
        return
    onlooker = Onlooker(run)
    for text in follow_log(run, rank, attempt, has_ended=lambda: onlooker.state() in ENDED):
        typer.echo(text, nl=False)
