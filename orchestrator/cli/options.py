"""What the verbs share: options, and the printing of tables and JSON.

Imports: typer, errors, storage (lazily), rich (lazily).
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.errors import UsageError
from orchestrator.monitor.progress_lines import format_duration
from orchestrator.units import parse_duration

if TYPE_CHECKING:
    from orchestrator.storage import Folder


class Output(StrEnum):
    """How a verb prints its data."""

    text = "text"
    json = "json"


def _duration(text: str | float) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error


AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Dashboard of a Ray cluster, as http://HEAD:8265: work on its jobs. "
        "By default RAY_API_SERVER_ADDRESS, or RAY_ADDRESS where it begins with http.",
        show_default=False,
    ),
]
StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        help="Folder or URI that holds the runs. By default ORCHESTRATOR_STORAGE, else ./runs.",
        show_default=False,
    ),
]
OutputOption = Annotated[Output, typer.Option("-o", "--output", help="How to print: text or json.")]
SpecArgument = Annotated[
    str,
    typer.Argument(
        metavar="SPEC", help="The job spec, a YAML file; - reads it from stdin.", show_default=False
    ),
]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY.PATH=VALUE]...", help="Fields to change, as train.max_epochs=3.", show_default=False
    ),
]
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A run (digits-3) or a job's name for its newest run (digits); on a cluster the job's id.",
        show_default=False,
    ),
]
TimeoutOption = Annotated[
    float | None,
    typer.Option(
        "--timeout",
        parser=_duration,
        metavar="DURATION",
        help="Give up after this time (90s, 10m, 1h30m) with exit code 124. By default never.",
        show_default=False,
    ),
]


def find_address(address: str | None, storage: str | None = None) -> str | None:
    """The cluster to ask: the option, else the environment; None means run folders.

    A storage that was given by hand goes before the environment. Raises UsageError for what is no http
    address.
    """
    if address is not None:
        if storage is not None:
            raise UsageError("--address and --storage exclude each other", "give one of them")
        if not address.startswith(("http://", "https://")):
            raise UsageError(
                f"'{address}' is not the address of a dashboard",
                "write it as http://HEAD:8265; ray:// and host:6379 lead to other services of the head",
            )
        return address
    if storage is not None:
        return None
    for value in (os.environ.get("RAY_API_SERVER_ADDRESS"), os.environ.get("RAY_ADDRESS")):
        if value and value.startswith(("http://", "https://")):
            return value
    return None


def open_storage(storage: str | None) -> Folder:
    """The folder of the runs. Raises UsageError for a URI that nothing can open."""
    from orchestrator.storage import Folder

    return Folder.at(storage or os.environ.get("ORCHESTRATOR_STORAGE") or "runs")


def print_json(value: Any) -> None:
    """Indented JSON on stdout; NaN and the infinities, which JSON has not, as null."""
    typer.echo(json.dumps(_finite(value), indent=2))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], title: str = "") -> None:
    """A table on stdout: as wide as the terminal, and never cut where there is none."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    on_terminal = sys.stdout.isatty()
    table = Table(box=None, pad_edge=False, title=title or None, title_justify="left", header_style="bold")
    for column in columns:
        table.add_column(column, no_wrap=not on_terminal)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console(file=sys.stdout, width=None if on_terminal else 500, highlight=False).print(table)


def show_duration(seconds: float | None) -> str:
    return "" if seconds is None else format_duration(seconds)


def show_metrics(metrics: Mapping[str, float] | None) -> str:
    return ", ".join(f"{key} {value:.4g}" for key, value in sorted((metrics or {}).items()))


def show_size(count: float) -> str:
    """Bytes with a unit: `1.5 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def show_time(time_s: float | None) -> str:
    """Local time of seconds since the epoch."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(time_s)) if time_s else ""


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
