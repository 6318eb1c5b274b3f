"""`orchestrator validate`: check job specs, and show all that is wrong with them."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from orchestrator.cli.options import Output, OutputOption, print_json
from orchestrator.errors import Fault, SpecError


def validate(
    specs: Annotated[
        list[str],
        typer.Argument(metavar="SPEC...", help="Job specs; - is standard input.", show_default=False),
    ],
    output: OutputOption = Output.text,
) -> None:
    """Check job specs; every fault is shown with its line, and the exit code is 2.

    Example: orchestrator validate jobs/digits.yaml jobs/diabetes.yaml
    """
    faults = {spec: _faults(spec) for spec in specs}
    if output is Output.json:
        print_json(
            [
                {"spec": spec, "valid": not found, "faults": [asdict(fault) for fault in found]}
                for spec, found in faults.items()
            ]
        )
    else:
        for spec, found in faults.items():
            for fault in found:
                typer.echo(fault, err=True)
            if not found:
                typer.echo(f"{spec}: valid")
    if any(faults.values()):
        raise typer.Exit(2)


def _faults(spec: str) -> tuple[Fault, ...]:
    from orchestrator.spec import load_spec

    try:
        load_spec(spec)
    except SpecError as error:
        return error.faults
    return ()
