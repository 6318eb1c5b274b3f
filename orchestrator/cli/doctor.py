"""`orchestrator doctor`: what may be wrong with this machine and the cluster, and how to mend it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from orchestrator.cli.options import Output, OutputOption, StorageOption, open_storage, print_json

_COLOURS = {"ok": typer.colors.GREEN, "warn": typer.colors.YELLOW, "fail": typer.colors.RED}


def doctor(
    address: Annotated[
        str | None,
        typer.Option(
            "--address",
            help="A cluster to check, as http://HEAD:8265. By default RAY_API_SERVER_ADDRESS or RAY_ADDRESS, "
            "else a Ray that is started here for a moment.",
            show_default=False,
        ),
    ] = None,
    storage: StorageOption = None,
    tracking_uri: Annotated[
        str | None, typer.Option("--tracking-uri", help="The MLflow store or server.", show_default=False)
    ] = None,
    output: OutputOption = Output.text,
) -> None:
    """Check versions, devices, collectives, storage, tracking, Ray and the limits of this machine.

    Exits with 1 where a check fails; warnings do not count.

    Example: orchestrator doctor --address http://HEAD:8265
    """
    import os

    from orchestrator.runners.checkup.checks import Places
    from orchestrator.runners.checkup.doctor import examine
    from orchestrator.runners.submission.client import job_address
    from orchestrator.tracking.links import resolve_tracking_uri

    named = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS")
    place = open_storage(storage).uri
    places = Places(
        storage=place,
        tracking_uri=resolve_tracking_uri(tracking_uri, place),
        address=job_address(named) if named else None,
    )
    findings = examine(places)
    if output is Output.json:
        print_json([asdict(finding) for finding in findings])
    else:
        width = max(len(finding.check) for finding in findings)
        for finding in findings:
            level = typer.style(f"{finding.level:<4}", fg=_COLOURS[finding.level])
            typer.echo(f"{level}  {finding.check:<{width}}  {finding.reason}")
            if finding.mend and finding.level != "ok":
                typer.echo(f"{'':<{width + 8}}to mend: {finding.mend}")
    raise typer.Exit(any(finding.level == "fail" for finding in findings))
