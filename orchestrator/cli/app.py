"""The command line: verbs, one file each, and how errors leave it. Imports: typer; no verb's heavy parts."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from orchestrator import __version__
from orchestrator.cli.checkpoint import checkpoint
from orchestrator.cli.cluster import cluster
from orchestrator.cli.data import data
from orchestrator.cli.display import silence
from orchestrator.cli.doctor import doctor
from orchestrator.cli.list import list_
from orchestrator.cli.logs import logs
from orchestrator.cli.plan import plan
from orchestrator.cli.render import render
from orchestrator.cli.run import run
from orchestrator.cli.schema import schema
from orchestrator.cli.status import status
from orchestrator.cli.stop import stop
from orchestrator.cli.submit import submit
from orchestrator.cli.tune import tune
from orchestrator.cli.ui import ui
from orchestrator.cli.validate import validate
from orchestrator.cli.wait import wait
from orchestrator.errors import OrchestratorError, SpecError

app = typer.Typer(
    name="orchestrator",
    help="One YAML job spec runs the whole life of a model on a Ray cluster, with every run in MLflow.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

_RUNS = "Run a job"
_SPECS = "Look at a spec"
_JOBS = "Look after runs"
_HERE = "This machine"

app.command(rich_help_panel=_RUNS)(run)
app.command(rich_help_panel=_RUNS)(submit)
app.command(rich_help_panel=_RUNS)(plan)
app.command(rich_help_panel=_SPECS)(validate)
app.command(rich_help_panel=_SPECS)(render)
app.command(rich_help_panel=_SPECS)(schema)
app.command("list", rich_help_panel=_JOBS)(list_)
app.command(rich_help_panel=_JOBS)(status)
app.command(rich_help_panel=_JOBS)(logs)
app.command(rich_help_panel=_JOBS)(wait)
app.command(rich_help_panel=_JOBS)(stop)
app.add_typer(tune, name="tune", rich_help_panel=_JOBS)
app.add_typer(checkpoint, name="checkpoint", rich_help_panel=_JOBS)
app.add_typer(data, name="data", rich_help_panel=_JOBS)
app.command(rich_help_panel=_HERE)(ui)
app.command(rich_help_panel=_HERE)(doctor)
app.add_typer(cluster, name="cluster", rich_help_panel=_HERE)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"orchestrator {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    pass


def run_app(arguments: Sequence[str]) -> int:
    """Run a command line; returns its exit code. No traceback for what a user can mend."""
    try:
        app(args=list(arguments), prog_name="orchestrator", standalone_mode=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0 if end.code is None else 1
    except OrchestratorError as error:
        # Faults of a spec stand as file:line: each, so that editors can jump to them.
        print(error if isinstance(error, SpecError) else f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output (`… | head`) has gone; nothing is wrong.
        silence()
        return 0
    return 0
