"""`orchestrator cluster`: a Ray cluster of several nodes on this machine, and faults for it.

Imports: typer; the cluster inside functions.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from orchestrator.cli.options import Output, OutputOption, print_json, print_table
from orchestrator.errors import UsageError
from orchestrator.units import parse_duration, parse_size

if TYPE_CHECKING:
    from orchestrator.local_cluster.cluster import LocalCluster

cluster = typer.Typer(
    help="Start a Ray cluster of several nodes on this machine, to try things out, and disturb it.\n\n"
    "Example: orchestrator cluster up --local 3",
    no_args_is_help=True,
    context_settings={},
)

NodeArgument = Annotated[
    str, typer.Argument(metavar="NODE", help="A node: head, w1, w2, …", show_default=False)
]
NameArgument = Annotated[
    str | None,
    typer.Argument(metavar="[CLUSTER]", help="By default the only one there is.", show_default=False),
]
ClusterOption = Annotated[
    str | None,
    typer.Option(
        "--cluster", help="The cluster, as oc1. By default the only one there is.", show_default=False
    ),
]


@cluster.command()
def up(
    local: Annotated[int, typer.Option("--local", metavar="N", help="Worker nodes, beside the head.")] = 3,
    isolated: Annotated[
        bool | None,
        typer.Option(
            "--isolated/--plain",
            help="Each node in Linux namespaces with a network of its own (root), or plain processes on "
            "loopback addresses. By default what this machine allows.",
            show_default=False,
        ),
    ] = None,
    redis: Annotated[
        bool,
        typer.Option("--redis", help="Keep the head's knowledge in a Redis, so that it may be restarted."),
    ] = False,
    tuned: Annotated[
        bool,
        typer.Option("--tuned", help="Notice dead nodes within seconds; Ray's own settings take a minute."),
    ] = False,
    num_cpus: Annotated[float, typer.Option("--num-cpus", min=0, help="CPUs of each worker node.")] = 1,
    storage_size: Annotated[
        str | None,
        typer.Option(
            "--storage-size", metavar="SIZE", help="Size of the shared folder (2GB).", show_default=False
        ),
    ] = None,
    output: OutputOption = Output.text,
) -> None:
    """Start a head and N worker nodes, which run until `orchestrator cluster down`.

    Example: orchestrator cluster up --local 3 --tuned
    """
    from orchestrator.local_cluster.starting import start_cluster

    try:
        size = None if storage_size is None else parse_size(storage_size)
    except ValueError as error:
        raise UsageError(f"--storage-size: {error}") from error
    if output is Output.text:
        typer.echo("starting the head and its nodes …", err=True)
    started = start_cluster(
        local, isolated=isolated, tuned=tuned, redis=redis, num_cpus=num_cpus, storage_bytes=size
    )
    if output is Output.json:
        print_json(_facts(started))
        return
    plan = started.plan
    kind = "in namespaces of their own" if plan.isolated else "as plain processes"
    typer.echo(f"{plan.label}: a head and {local} worker nodes of {num_cpus:g} CPUs, {kind}")
    storage = f"{plan.shared}/runs"
    for line in (
        f"run a job:    orchestrator cluster exec head -- orchestrator run SPEC storage={storage}",
        f"submit one:   ORCHESTRATOR_STORAGE={storage} orchestrator submit SPEC --address {plan.dashboard_url}",
        f"disturb it:   orchestrator cluster kill w1{', or cut, drain' if plan.isolated else ', or drain'}",
        "end it:       orchestrator cluster down",
    ):
        typer.echo(line)


@cluster.command()
def down(
    name: NameArgument = None,
    everything: Annotated[bool, typer.Option("--all", help="All local clusters of this user.")] = False,
) -> None:
    """End a cluster and remove all that belongs to it, the shared folder too. Harmless where there is none.

    Example: orchestrator cluster down
    """
    from orchestrator.local_cluster import store

    if everything and name is not None:
        raise UsageError("--all ends every cluster", f"leave out --all or {name}")
    there = store.labels()
    for label in there if everything else [name] if name else [_only(there)] if there else []:
        store.remove(label)
        typer.echo(f"{label} is down")


@cluster.command()
def status(name: NameArgument = None, output: OutputOption = Output.text) -> None:
    """Show the nodes of the local clusters: address, whether they run, their links, and what Ray thinks of them.

    Example: orchestrator cluster status -o json
    """
    from orchestrator.local_cluster import store
    from orchestrator.local_cluster.cluster import LocalCluster

    found = [_facts(LocalCluster(label)) for label in ([name] if name else store.labels())]
    if output is Output.json:
        print_json(found)
        return
    if not found:
        typer.echo("there are no local clusters; start one: orchestrator cluster up --local 3")
    for facts in found:
        columns = ["node", "address", "runs", "link", "Ray's opinion"]
        rows = [
            (node["name"], node["address"], "yes" if node["running"] else "no", node["link"], node["state"])
            for node in facts["nodes"]
        ]
        print_table(columns, rows, title=f"{facts['cluster']}, Ray at {facts['address']}")


@cluster.command()
def kill(
    node: NodeArgument,
    silent: Annotated[
        bool, typer.Option("--silent", help="As a power-off: no connection is closed, the node is just gone.")
    ] = False,
    name: ClusterOption = None,
) -> None:
    """Kill everything on a node at once; `start` brings it back.

    Example: orchestrator cluster kill w1
    """
    _cluster(name).kill(node, silent=silent)
    typer.echo(f"{node} is off")


@cluster.command()
def stop(node: NodeArgument, name: ClusterOption = None) -> None:
    """Let a node leave in peace; `start` brings it back.

    Example: orchestrator cluster stop w1
    """
    _cluster(name).stop(node)
    typer.echo(f"{node} has left")


@cluster.command()
def start(node: NodeArgument, name: ClusterOption = None) -> None:
    """Start a node that is off, and wait until Ray has it. The head may be started again too.

    Example: orchestrator cluster start w1
    """
    _cluster(name).start(node)
    typer.echo(f"{node} runs")


@cluster.command()
def add(name: ClusterOption = None) -> None:
    """Add a worker node.

    Example: orchestrator cluster add
    """
    typer.echo(f"{_cluster(name).add()} runs")


@cluster.command()
def cut(
    node: NodeArgument,
    packets: Annotated[
        bool, typer.Option("--packets", help="Lose its packets on the way, instead of taking its link down.")
    ] = False,
    name: ClusterOption = None,
) -> None:
    """Cut a node off from the others; `heal` undoes it.

    Example: orchestrator cluster cut w1 --packets
    """
    _cluster(name).cut(node, "packets" if packets else "link")
    typer.echo(f"{node} is cut off")


@cluster.command()
def heal(node: NodeArgument, name: ClusterOption = None) -> None:
    """Restore a node's link. A node that was declared dead meanwhile joins again as a new one.

    Example: orchestrator cluster heal w1
    """
    _cluster(name).heal(node)
    typer.echo(f"the link of {node} is up")


@cluster.command()
def drain(
    node: NodeArgument,
    deadline: Annotated[
        str, typer.Option("--deadline", metavar="DURATION", help="When it will be gone.")
    ] = "30s",
    name: ClusterOption = None,
) -> None:
    """Give notice that a node will be gone soon, as a cloud does before it takes a machine away.

    Example: orchestrator cluster drain w1 --deadline 2m
    """
    try:
        deadline_s = parse_duration(deadline)
    except ValueError as error:
        raise UsageError(f"--deadline: {error}") from error
    _cluster(name).drain(node, deadline_s)
    typer.echo(f"{node} knows that it will be gone in {deadline}; to kill it then is yours")


@cluster.command("exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def exec_(
    node: NodeArgument,
    command: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", show_default=False)],
    name: ClusterOption = None,
) -> None:
    """Run a command on a node, in this working directory, with RAY_ADDRESS set; exits with its code.

    Example: orchestrator cluster exec head -- orchestrator run jobs/digits.yaml
    """
    chosen = _cluster(name)
    command = command[1:] if command[0] == "--" else command
    command_line, environment = chosen.command_on(node, command), chosen.environment_on(node)
    try:
        os.execvpe(command_line[0], command_line, environment)
    except OSError as error:
        raise UsageError(f"cannot run {command_line[0]}: {error.strerror}") from error


def _cluster(name: str | None) -> LocalCluster:
    from orchestrator.local_cluster import store
    from orchestrator.local_cluster.cluster import LocalCluster

    return LocalCluster(name or _only(store.labels()))


def _only(labels: list[str]) -> str:
    if len(labels) == 1:
        return labels[0]
    if labels:
        raise UsageError(f"there are several local clusters: {', '.join(labels)}", "name one of them")
    raise UsageError("there are no local clusters", "start one: orchestrator cluster up --local 3")


def _facts(found: LocalCluster) -> dict[str, Any]:
    plan = found.plan
    return {
        "cluster": plan.label,
        "address": plan.gcs,
        "dashboard": plan.dashboard_url,
        "isolated": plan.isolated,
        "shared": str(plan.shared),
        "nodes": found.status(),
    }
