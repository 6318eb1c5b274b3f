"""`orchestrator render`: a job spec with every default filled in."""

from __future__ import annotations

import typer

from orchestrator.cli.options import Output, OutputOption, OverridesArgument, SpecArgument, print_json


def render(
    spec: SpecArgument, overrides: OverridesArgument = None, output: OutputOption = Output.text
) -> None:
    """Print a spec with overrides, environment and all defaults filled in; secrets are masked.

    Example: orchestrator render jobs/digits.yaml train.max_epochs=3
    """
    from orchestrator import spec as specs

    loaded = specs.load_spec(spec, overrides or ())
    if output is Output.json:
        print_json(specs.to_plain(loaded.spec))
    else:
        typer.echo(specs.render(loaded.spec), nl=False)
