"""`orchestrator run`."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from orchestrator.cli.options import Output, OutputOption, OverridesArgument, SpecArgument

if TYPE_CHECKING:
    from orchestrator.runners.result import Result
    from orchestrator.spec import LoadedSpec


def run(
    spec: SpecArgument,
    overrides: OverridesArgument = None,
    inline: Annotated[
        bool, typer.Option("--inline", help="Train in this process, without Ray: for a debugger.")
    ] = False,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", help="The cluster to run on (HEAD:6379 or auto). Default: RAY_ADDRESS, else here."
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start a new run even where an unfinished one could go on.")
    ] = False,
    resume: Annotated[
        str | None, typer.Option("--resume", metavar="RUN", help="Go on with this run, as digits-3.")
    ] = None,
    output: OutputOption = Output.text,
) -> None:
    """Run a job here, or on the cluster that --address or RAY_ADDRESS names.

    Example: orchestrator run jobs/digits.yaml train.max_epochs=3
    """
    from orchestrator.runners.submission.package import load_job_secrets

    load_job_secrets()
    from orchestrator.spec import load_spec

    loaded = load_spec(spec, overrides or ())
    run_loaded(loaded, inline=inline, address=address, fresh=fresh, resume=resume, output=output)


def run_loaded(
    loaded: LoadedSpec,
    *,
    inline: bool = False,
    address: str | None = None,
    fresh: bool = False,
    resume: str | None = None,
    output: Output = Output.text,
) -> NoReturn:
    """Run a spec, show how it goes and how it ended, and exit as it did."""
    from orchestrator.cli.display import observer_for, silence
    from orchestrator.runners.driver import run_job
    from orchestrator.runners.ray_workers.head_watch import head_given_up

    with observer_for("quiet" if output == "json" else "lines" if inline else "auto") as observer:
        result = run_job(
            loaded, inline=inline, address=address, fresh=fresh, resume=resume, observer=observer
        )
    try:
        if output == "json":
            typer.echo(json.dumps(result.to_dict(), indent=1))
        else:
            _show(result)
        sys.stdout.flush()
    except OSError:  # nobody reads it, or the disk below is full: the exit code still tells
        silence()
    if head_given_up():  # Ray's own farewell, as Python ends, would wait for the head
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(result.exit_code)
    raise typer.Exit(result.exit_code)


def _show(result: Result) -> None:
    """The summary: figures, where things are, and the verdict as the last line."""
    from rich.console import Console
    from rich.table import Table

    from orchestrator.monitor.progress_lines import format_verdict

    console = Console(highlight=False)
    if result.metrics:
        table = Table(title=result.run, title_justify="left", show_header=False)
        for key, value in sorted(
            result.metrics.items(), key=lambda item: (not item[0].startswith("test/"), item[0])
        ):
            table.add_row(key, f"{value:,.4f}".rstrip("0").rstrip("."))
        console.print(table)
    facts = {
        "goodput": result.goodput,
        "folder": result.folder,
        "model": result.model,
        "MLflow": result.link,
        "to open it": "orchestrator ui"
        if result.link and result.link.startswith("http://127.0.0.1")
        else None,
    }
    for name, fact in facts.items():
        if fact:
            console.print(f"{name + ':':<12}{fact}", soft_wrap=True, markup=False)
    # A log keeps the figures in the verdict's line, where `status` and `wait` read them; a person has the table.
    verdict = replace(result.verdict, metrics={}) if console.is_terminal else result.verdict
    console.print(format_verdict(verdict, result.run), soft_wrap=True, markup=False)
