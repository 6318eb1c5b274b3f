"""`orchestrator checkpoint`: look at, check, thin out and export a run's checkpoints."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import (
    Output,
    OutputOption,
    StorageOption,
    open_storage,
    print_json,
    print_table,
    show_metrics,
    show_size,
    show_time,
)
from orchestrator.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.checkpoints.manifest import Manifest
    from orchestrator.checkpoints.store import CheckpointStore
    from orchestrator.runs.folder import RunFolder

checkpoint = typer.Typer(
    help="Look after a run's checkpoints.\n\nExample: orchestrator checkpoint list digits-3",
    no_args_is_help=True,
    context_settings={},
)

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run (digits-3) or a job's name for its newest run (digits).",
        show_default=False,
    ),
]
StepArgument = Annotated[
    int | None,
    typer.Argument(metavar="[STEP]", help="The checkpoint of this step; by default all.", show_default=False),
]


@checkpoint.command("list")
def list_(run: RunArgument, storage: StorageOption = None, output: OutputOption = Output.text) -> None:
    """List a run's checkpoints, oldest first.

    Example: orchestrator checkpoint list digits-3
    """
    _, store = _opened(run, storage)
    manifests = store.manifests()
    marks = _marks(store, manifests)
    if output is Output.json:
        print_json([_entry(store, manifest) | {"is": marks[manifest.name]} for manifest in manifests])
        return
    if not manifests:
        typer.echo(f"{store.folder.uri} holds no checkpoints")
        return
    print_table(
        ["step", "epoch", "attempt", "saved", "size", "files", "metrics", ""],
        [
            (
                f"{manifest.step:,}",
                str(manifest.epoch),
                str(manifest.attempt),
                show_time(manifest.time_s),
                show_size(manifest.size_bytes),
                str(len(manifest.files)),
                show_metrics(manifest.metrics),
                ", ".join(marks[manifest.name]),
            )
            for manifest in manifests
        ],
    )


@checkpoint.command()
def verify(
    run: RunArgument,
    step: StepArgument = None,
    storage: StorageOption = None,
    output: OutputOption = Output.text,
) -> None:
    """Read checkpoints and compare every file with its size and hash; exit code 1 where something is damaged.

    Example: orchestrator checkpoint verify digits-3
    """
    from orchestrator.checkpoints.manifest import checkpoint_name
    from orchestrator.runs.heartbeat import is_alive

    folder, store = _opened(run, storage)
    damage = store.damages(
        in_use=is_alive(folder, time.time()), only=None if step is None else checkpoint_name(step)
    )
    if step is not None and not damage:
        raise _no_such(store, step)
    if output is Output.json:
        print_json([{"checkpoint": name, "damage": found} for name, found in damage.items()])
    elif not damage:
        typer.echo(f"{store.folder.uri} holds no checkpoints")
    for name, found in damage.items():
        if output is Output.text:
            typer.echo(f"{name}: {'whole' if not found else 'damaged'}")
            for line in found:
                typer.echo(f"  {line}")
    if any(damage.values()):
        typer.echo("a resumed run takes the newest checkpoint that is whole", err=True)
        raise typer.Exit(1)


@checkpoint.command()
def prune(
    run: RunArgument,
    last: Annotated[
        int | None, typer.Option("--last", min=0, help="Keep the newest so many.", show_default=False)
    ] = None,
    best: Annotated[
        int | None, typer.Option("--best", min=0, help="Keep the best so many.", show_default=False)
    ] = None,
    every_n_epochs: Annotated[
        int | None,
        typer.Option(
            "--keep-every-n-epochs",
            min=1,
            help="Keep the first one at or after each so many epochs.",
            show_default=False,
        ),
    ] = None,
    every_n_steps: Annotated[
        int | None,
        typer.Option(
            "--keep-every-n-steps",
            min=1,
            help="Keep the first one at or after each so many steps.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    storage: StorageOption = None,
    output: OutputOption = Output.text,
) -> None:
    """Remove checkpoints that another policy would not have kept; what is not given stays as in the run's spec.

    The newest checkpoint that is whole always stays.

    Example: orchestrator checkpoint prune digits-3 --last 1 --best 3 --dry-run
    """
    _, store = _opened(run, storage)
    given = {"last": last, "best": best, "every_n_epochs": every_n_epochs, "every_n_steps": every_n_steps}
    policy: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    store = replace(store, retention=replace(store.retention, **policy))
    removed = store.superfluous()
    for manifest in removed if not dry_run else ():
        store.discard(manifest.name)
    if output is Output.json:
        print_json([_entry(store, manifest) for manifest in removed])
        return
    for manifest in removed:
        size = show_size(manifest.size_bytes)
        typer.echo(f"{'would remove' if dry_run else 'removed'} {manifest.name} ({size})")
    total = show_size(sum(manifest.size_bytes for manifest in removed))
    typer.echo(f"{total} {'would be' if dry_run else 'are'} free" if removed else "nothing to remove")


@checkpoint.command()
def export(
    run: RunArgument,
    which: Annotated[
        str,
        typer.Argument(
            metavar="[STEP|best|latest]", help="Which one; best, and latest where none is scored."
        ),
    ] = "best",
    to: Annotated[str, typer.Option("--to", metavar="FOLDER", help="Folder or URI to write into.")] = ".",
    storage: StorageOption = None,
    output: OutputOption = Output.text,
) -> None:
    """Write a checkpoint's weights as safetensors, and its facts as checkpoint.json.

    Where the run averages its weights (train.ema), the averages are in ema.safetensors.

    Example: orchestrator checkpoint export digits-3 best --to weights/
    """
    from orchestrator.checkpoints.export import export_weights
    from orchestrator.storage import Folder

    _, store = _opened(run, storage)
    manifest, target = _chosen(store, which), Folder.at(to)
    names = export_weights(store, manifest, target)
    if output is Output.json:
        print_json(_entry(store, manifest) | {"exported": [f"{target.uri}/{name}" for name in names]})
    else:
        typer.echo(f"{manifest.name}: wrote {', '.join(names)} into {target.uri}")


def _opened(name: str, storage: str | None) -> tuple[RunFolder, CheckpointStore]:
    """The run, and its checkpoints with what its spec wants kept."""
    import yaml

    from orchestrator.checkpoints.retention import Retention, retention_of
    from orchestrator.checkpoints.store import CheckpointStore
    from orchestrator.runs.folder import find_run
    from orchestrator.spec.checkpoint import CheckpointSection

    run = find_run(open_storage(storage), name)
    try:
        section = (yaml.safe_load(run.read_spec() or "") or {}).get("checkpoint") or {}
        retention = retention_of(CheckpointSection.model_validate(section))
    except (ValueError, AttributeError, yaml.YAMLError):  # damaged, or of another version
        retention = Retention()
    return run, CheckpointStore(run.checkpoints, retention)


def _chosen(store: CheckpointStore, which: str) -> Manifest:
    manifests = store.manifests()
    if not manifests:
        raise UsageError(f"{store.folder.uri} holds no checkpoints")
    if which == "best":
        return store.best() or manifests[-1]
    if which == "latest":
        return manifests[-1]
    if not which.isdecimal():
        raise UsageError(f"'{which}' is no checkpoint", "give a step's number, best or latest")
    for manifest in manifests:
        if manifest.step == int(which):
            return manifest
    raise _no_such(store, int(which))


def _no_such(store: CheckpointStore, step: int) -> UsageError:
    steps = ", ".join(str(manifest.step) for manifest in store.manifests()[-20:])
    return UsageError(
        f"{store.folder.uri} holds no checkpoint of step {step}", f"there are: {steps}" if steps else ""
    )


def _marks(store: CheckpointStore, manifests: list[Manifest]) -> dict[str, list[str]]:
    best = store.best()
    marks: dict[str, list[str]] = {manifest.name: [] for manifest in manifests}
    if manifests:
        marks[manifests[-1].name].append("newest")
    if best is not None:
        marks[best.name].append("best")
    return marks


def _entry(store: CheckpointStore, manifest: Manifest) -> dict[str, Any]:
    return {
        "checkpoint": manifest.name,
        "uri": (store.folder / manifest.name).uri,
        "step": manifest.step,
        "epoch": manifest.epoch,
        "attempt": manifest.attempt,
        "world_size": manifest.world_size,
        "saved_s": manifest.time_s,
        "bytes": manifest.size_bytes,
        "metrics": dict(manifest.metrics),
        "files": sorted(manifest.files),
    }
