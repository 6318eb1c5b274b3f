"""`orchestrator data`: prepare, look at, check and clear away prepared data."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import (
    Output,
    OutputOption,
    OverridesArgument,
    SpecArgument,
    StorageOption,
    open_storage,
    print_json,
    print_table,
    show_duration,
    show_size,
    show_time,
)
from orchestrator.errors import UsageError
from orchestrator.units import parse_duration, parse_size

if TYPE_CHECKING:
    from orchestrator.data.prepared.keeping import Entry
    from orchestrator.storage import Folder

data = typer.Typer(
    help="Prepare data, and look after what is prepared.\n\nExample: orchestrator data prepare jobs/digits.yaml",
    no_args_is_help=True,
    context_settings={},
)

KeyArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[KEY]",
        help="Prepared data: its key or the beginning of it. By default all that there is.",
        show_default=False,
    ),
]
KeyOrSpecArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[KEY|SPEC]",
        help="Prepared data: its key or the beginning of it, or the job spec that it is for. By default all "
        "that there is.",
        show_default=False,
    ),
]
CacheOption = Annotated[
    bool, typer.Option("--cache", help="This node's cache of remote data, instead of the storage.")
]


@data.command()
def prepare(
    spec: SpecArgument,
    overrides: OverridesArgument = None,
    address: Annotated[
        str | None,
        typer.Option(
            "--address", help="Prepare on this Ray cluster (HEAD:6379 or auto).", show_default=False
        ),
    ] = None,
    output: OutputOption = Output.text,
) -> None:
    """Prepare a job's data, as its run would; the run then finds it.

    Example: orchestrator data prepare jobs/digits.yaml
    """
    from orchestrator.runners.preparing import prepare_only
    from orchestrator.spec import load_spec

    began = time.monotonic()
    # What the user's own code prints is not the answer.
    with contextlib.redirect_stdout(sys.stderr):
        found = prepare_only(
            load_spec(spec, overrides or ()), address=address, say=lambda line: typer.echo(line, err=True)
        )
    _print(found, output)
    if output is Output.text:
        typer.echo(f"prepared in {show_duration(time.monotonic() - began)}")


@data.command()
def inspect(
    key: KeyOrSpecArgument = None,
    overrides: OverridesArgument = None,
    storage: StorageOption = None,
    cache: CacheOption = False,
    output: OutputOption = Output.text,
) -> None:
    """List prepared data; with a key or a job spec show what is in it, and what is odd about it.

    Example: orchestrator data inspect 3f2a
    Example: orchestrator data inspect jobs/digits.yaml
    """
    from orchestrator.data.prepared.keeping import list_prepared

    if key is not None:
        is_spec = key == "-" or Path(key).suffix in (".yaml", ".yml", ".json")
        if overrides and not is_spec:
            raise UsageError(f"'{key}' is no job spec, and '{overrides[0]}' changes a field of one")
        root = _root(storage, cache)
        _print(_place(key, overrides or (), storage, cache) if is_spec else root / _match(root, key), output)
        return
    root = _root(storage, cache)
    entries = list_prepared(root)
    if output is Output.json:
        print_json([_entry(entry) for entry in entries])
        return
    if not entries:
        typer.echo(f"{root.uri} holds no prepared data")
        return
    print_table(
        ["key", "target", "rows", "size", "last used", "state"],
        [
            (
                entry.key[:12],
                (entry.manifest.target or entry.manifest.task) if entry.manifest else "",
                f"{sum(entry.manifest.rows.values()):,}" if entry.manifest else "",
                show_size(entry.bytes),
                show_time(entry.last_used_s),
                "in use" if entry.in_use else "" if entry.complete else "incomplete",
            )
            for entry in entries
        ],
    )


@data.command()
def verify(
    key: KeyArgument = None,
    storage: StorageOption = None,
    cache: CacheOption = False,
    output: OutputOption = Output.text,
) -> None:
    """Read prepared data and compare it with its hashes; exit code 1 where something is damaged.

    Example: orchestrator data verify
    """
    from orchestrator.data.prepared.keeping import list_prepared, verify_prepared

    root = _root(storage, cache)
    names = [_match(root, key)] if key is not None else [entry.key for entry in list_prepared(root)]
    damage = {name: verify_prepared(root / name) for name in names}
    if output is Output.json:
        print_json([{"key": name, "damage": found} for name, found in damage.items()])
    elif not damage:
        typer.echo(f"{root.uri} holds no prepared data")
    for name, found in damage.items():
        if output is Output.text:
            typer.echo(f"{name}: {'whole' if not found else 'damaged'}")
            for line in found:
                typer.echo(f"  {line}")
    if any(damage.values()):
        typer.echo("a run that needs it prepares damaged data anew", err=True)
        raise typer.Exit(1)


@data.command()
def gc(
    max_size: Annotated[
        str | None,
        typer.Option("--max-size", metavar="SIZE", help="Keep at most so much (200GB).", show_default=False),
    ] = None,
    max_age: Annotated[
        str | None,
        typer.Option(
            "--max-age",
            metavar="DURATION",
            help="Remove what was not used for so long (30d).",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    storage: StorageOption = None,
    cache: CacheOption = False,
    output: OutputOption = Output.text,
) -> None:
    """Remove prepared data that nobody uses, longest unused first, and what killed preparations left.

    It can always be prepared again.

    Example: orchestrator data gc --max-size 200GB --dry-run
    """
    from orchestrator.data.prepared.keeping import collect

    removed = collect(
        _root(storage, cache),
        max_bytes=_parsed(parse_size, max_size, "--max-size"),
        max_age_s=_parsed(parse_duration, max_age, "--max-age"),
        dry_run=dry_run,
    )
    if output is Output.json:
        print_json([_entry(entry) for entry in removed])
        return
    for entry in removed:
        typer.echo(f"{'would remove' if dry_run else 'removed'} {entry.key} ({show_size(entry.bytes)})")
    total = show_size(sum(entry.bytes for entry in removed))
    typer.echo(f"{total} {'would be' if dry_run else 'are'} free" if removed else "nothing to remove")


def _print(place: Folder, output: Output) -> None:
    from orchestrator.cli.prepared import prepared_facts, show_prepared

    if output is Output.json:
        print_json(prepared_facts(place))
    else:
        show_prepared(place)


def _root(storage: str | None, cache: bool) -> Folder:
    from orchestrator.data.prepared.keeping import cache_folder

    if cache and storage is not None:
        raise UsageError("--cache and --storage exclude each other", "give one of them")
    return cache_folder() if cache else open_storage(storage) / "prepared"


def _match(root: Folder, key: str) -> str:
    """The one key that begins so. What is being built is `<key>.tmp-…`, and goes by its whole name only."""
    names = [folder.path.rsplit("/", 1)[-1] for folder in root.folders()]
    names = [name for name in names if name == key or (name.startswith(key) and ".tmp-" not in name)]
    if len(names) != 1:
        what = "no" if not names else f"{len(names)} kinds of"
        raise UsageError(
            f"{root.uri} holds {what} prepared data whose key begins with '{key}'",
            "orchestrator data inspect lists the keys",
        )
    return names[0]


def _place(path: str, overrides: Sequence[str], storage: str | None, cache: bool) -> Folder:
    """Where what is prepared for a job spec lies. Raises UsageError where nothing is."""
    from orchestrator.data.prepared.manifest import MANIFEST
    from orchestrator.runners.preparing import prepared_place
    from orchestrator.spec import load_spec

    given = {"storage": storage} if storage is not None and not cache else None
    place = prepared_place(load_spec(path, overrides, given))
    if cache:
        place = _root(storage, cache) / place.path.rsplit("/", 1)[-1]
    if not place.exists(MANIFEST):
        raise UsageError(
            f"nothing is prepared for {path}: {place.uri} is not there",
            f"prepare it: orchestrator data prepare {shlex.join([path, *overrides])}",
        )
    return place


def _parsed(parse: Any, text: str | None, option: str) -> Any:
    try:
        return None if text is None else parse(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from error


def _entry(entry: Entry) -> dict[str, Any]:
    return {
        "key": entry.key,
        "uri": entry.uri,
        "bytes": entry.bytes,
        "last_used_s": entry.last_used_s,
        "in_use": entry.in_use,
        "complete": entry.complete,
        "rows": dict(entry.manifest.rows) if entry.manifest else None,
    }
