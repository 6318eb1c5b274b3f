"""`orchestrator plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import (
    Output,
    OutputOption,
    OverridesArgument,
    SpecArgument,
    print_json,
    print_table,
    show_size,
)

if TYPE_CHECKING:
    from orchestrator.runners.planning import Plan
    from orchestrator.runners.search_plan import SearchPlan


def plan(
    spec: SpecArgument,
    overrides: OverridesArgument = None,
    address: Annotated[
        str | None, typer.Option("--address", help="The cluster to plan for (HEAD:6379 or auto).")
    ] = None,
    output: OutputOption = Output.text,
) -> None:
    """Show what a run would do: workers, batches, steps, parameters, memory; refuse what can never fit.

    Of a spec that searches: its trials, how many run side by side, the most work and energy, and one trial's figures.

    Example: orchestrator plan jobs/digits.yaml resources.num_workers=4 --address auto
    """
    from orchestrator.runners.planning import make_plan
    from orchestrator.spec import load_spec

    found = make_plan(load_spec(spec, overrides or ()), address)
    if output == Output.json:
        print_json(found.to_dict())
    else:
        _show(found)


def _show(plan: Plan) -> None:
    memory, sizes = plan.memory, plan.worker_batch_sizes
    share = str(sizes[0]) if len(set(sizes)) == 1 else f"{sizes[0]} or {sizes[-1]}"
    each = ", ".join(f"{amount:g} {name}" for name, amount in plan.per_worker.items())
    least, most = plan.limits
    workers = (
        f"{least} × ({each})" if least == most else f"{least} to {most} × ({each}); now {plan.num_workers}"
    )
    rows = [
        *(_search_rows(plan.search) if plan.search else []),
        ("where", plan.where),
        ("resources", _amounts(plan.resources)),
        ("free now", _amounts(plan.available)),
        ("workers", workers),
        ("rows", ", ".join(f"{part} {count:,}" for part, count in plan.rows.items())),
        ("task", f"{plan.task}: input {'×'.join(map(str, plan.input_shape))}, {plan.num_outputs} output(s)"),
        ("global batch", f"{plan.global_batch_size} = {plan.num_workers} worker(s) × {share} sample(s)"),
        ("microbatch", f"{plan.microbatch_size}, {plan.accumulation} per step and worker"),
        (
            "steps",
            f"{plan.steps_per_epoch:,} per epoch × {plan.epochs} epoch(s) = at most {plan.total_steps:,}",
        ),
        ("last batch", f"{plan.last_batch_size} sample(s)"),
        ("parameters", f"{memory.num_parameters:,} ({memory.num_trained:,} trained)"),
        ("weights", show_size(memory.weights_bytes)),
        ("gradients", show_size(memory.gradients_bytes)),
        ("optimizer", show_size(memory.optimizer_bytes)),
        *([("averaged weights", show_size(memory.ema_bytes))] if memory.ema_bytes else []),
        ("activations", f"{show_size(memory.activations_bytes)} for a microbatch"),
        (
            "memory",
            f"{show_size(memory.total_bytes)} per worker, {show_size(plan.total_memory_bytes)} in all (estimate)",
        ),
    ]
    print_table(["", ""], rows)
    for note in plan.notes:
        typer.echo(f"note: {note}")


def _search_rows(search: SearchPlan) -> list[tuple[str, str]]:
    least, most = search.workers_per_trial
    trials = f"{search.num_trials:,} by {search.searcher}, scheduler {search.scheduler}"
    if search.grid_points > 1:
        trials += f"; {search.grid_points:,} points of the grid"
    work = f"{search.most_epochs:,} epochs, {search.most_steps:,} steps"
    if search.most_worker_hours is not None:
        work += f"; {search.most_worker_hours:,.2f} worker-hours by {search.limited_by}"
    energy = "unknown: tune.time_budget or tune.stop.trial_time would limit it"
    if search.most_energy_joules is not None:
        energy = f"{search.most_energy_joules / 3.6e6:,.3f} kWh (assumed: 5 W per CPU, 400 W per GPU)"
    shown = ", ".join(f"{path} = {value}" for path, value in search.planned_trial.items())
    return [
        ("trials", trials),
        (
            "side by side",
            f"{search.side_by_side} × {least if least == most else f'{least} to {most}'} worker(s)",
        ),
        ("epochs", f"at most {search.epochs} each; may be ended {_epochs(search.gates)}"),
        ("most work", work),
        ("most energy", energy),
        *(
            [("then", f"trains the best, at most {search.retrain_epochs} epochs")]
            if search.retrain_epochs
            else []
        ),
        ("of one trial", shown),
    ]


def _epochs(gates: tuple[int, ...]) -> str:
    if not gates:
        return "never early"
    if len(gates) > 2 and gates == tuple(range(gates[0], gates[-1] + 1)):
        return "after each epoch" + (f" from {gates[0]} on" if gates[0] > 1 else "")
    shown = ", ".join(map(str, gates[:8])) + (", …" if len(gates) > 8 else "")
    return f"after epoch {shown}"


def _amounts(resources: object) -> str:
    assert isinstance(resources, dict)
    shown = {
        name: amount
        for name, amount in sorted(resources.items())
        if name in ("CPU", "GPU", "TPU", "memory") or name.startswith("accelerator_type:")
    }
    return ", ".join(
        f"{show_size(amount)} memory" if name == "memory" else f"{amount:g} {name}"
        for name, amount in shown.items()
    )
