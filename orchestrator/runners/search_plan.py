"""What a search would do: how many trials, how many side by side, how much work at most. Imports: no ray of its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import Infeasible, SpecError
from orchestrator.imports import import_optional
from orchestrator.recovery.sizing import NodeFacts, fitting
from orchestrator.runners.ray_workers.start import check_fits
from orchestrator.spec import JobSpec, LoadedSpec, to_plain
from orchestrator.spec.space import NoValue, SearchSpace
from orchestrator.spec.trials import trial_spec
from orchestrator.spec.tune import Asha, Fifo, Hyperband, MedianStopping, TuneSection

WATTS = {"CPU": 5.0, "GPU": 400.0}
"""What one CPU core and one GPU at work are assumed to draw."""

_MOST_WIDTHS = 1000


@dataclass(frozen=True)
class SearchPlan:
    """The figures of a search before it runs. What it does at most, it seldom does: trials are ended early."""

    num_trials: int
    grid_points: int
    """Combinations of the grids; 1 without a grid."""
    workers_per_trial: tuple[int, int]
    """The fewest and the most."""
    side_by_side: int
    """How many of the widest trials would run at once now; at least 1."""
    epochs: int
    """Of one trial, at most."""
    gates: tuple[int, ...]
    """After which epochs a trial may be ended or paused."""
    most_epochs: int
    """Of all trials together."""
    most_steps: int
    most_worker_hours: float | None
    """None where nothing limits the time."""
    most_energy_joules: float | None
    limited_by: str
    """The setting that the most worker-hours come of."""
    retrain_epochs: int
    """Of the training of the best, at most; 0 where there is none."""
    searcher: str
    scheduler: str
    planned_trial: Mapping[str, Any]
    """The parameters of the trial that the other figures of the plan are of: a widest one."""


def check_searcher(tune: TuneSection) -> None:
    """Raise MissingPackage where the package of the searcher is not there."""
    kind = tune.search_alg.kind
    if kind != "random":
        import_optional(kind, extra=kind, purpose=f"tune.search_alg {kind}")


def widest_trial(loaded: LoadedSpec, nodes: Sequence[NodeFacts] | None) -> tuple[LoadedSpec, dict[str, Any]]:
    """A trial with the most workers and resources, and its parameters.

    With `nodes`, raises Infeasible where some trial can never fit on them.
    """
    found: tuple[LoadedSpec, dict[str, Any]] | None = None
    for trial, params in _by_resources(loaded):
        if nodes is not None:
            try:
                check_fits(trial.spec, nodes)
            except Infeasible as error:
                chosen = [
                    f"{path} = {value}" for path, value in params.items() if path.startswith("resources")
                ]
                if not chosen:
                    raise
                raise Infeasible(
                    f"{error.reason} (in a trial with {', '.join(chosen)})",
                    "narrow tune.param_space; or " + error.mend,
                ) from None
        if found is None or _size(trial.spec) > _size(found[0].spec):
            found = trial, params
    assert found  # the spec was checked: its ends make trials
    return found


def plan_search(
    loaded: LoadedSpec, planned_trial: Mapping[str, Any], nodes: Sequence[NodeFacts], rows: int
) -> SearchPlan:
    """The figures of a spec's search on these nodes, as they are free now; `rows` are those of the train part."""
    tune = loaded.spec.tune
    assert tune
    searcher = tune.search_alg.kind
    space = _space(loaded)
    trials = [loaded.spec, *(trial.spec for trial, _ in _around(loaded))]
    widest = trial_spec(loaded, planned_trial).spec
    num_trials = space.num_trials(tune.num_samples)
    widths = [trial.spec.resources.min_workers for trial, _ in _by_resources(loaded)]
    lengths = [_length(trial, rows) for trial in trials]
    epochs, steps = max(length[0] for length in lengths), max(length[1] for length in lengths)
    limit = tune.max_concurrent_trials
    side_by_side = min(_room(widest, nodes), num_trials, num_trials if limit == "auto" else limit)
    hours, limited_by = _most_hours(
        loaded.spec, tune, num_trials, max(side_by_side, 1) * max(widths), max(widths)
    )
    watts = sum(WATTS.get(name, 0.0) * amount for name, amount in widest.resources.per_worker().items())
    return SearchPlan(
        num_trials=num_trials,
        grid_points=space.num_trials(1),
        workers_per_trial=(min(widths), max(widths)),
        side_by_side=max(side_by_side, 1),
        epochs=epochs,
        gates=gate_epochs(tune, epochs),
        most_epochs=num_trials * epochs,
        most_steps=num_trials * steps,
        most_worker_hours=hours,
        most_energy_joules=None if hours is None else hours * 3600 * watts,
        limited_by=limited_by,
        retrain_epochs=epochs if tune.then == "retrain" else 0,
        searcher=searcher + (f" ({tune.search_alg.sampler})" if tune.search_alg.kind == "optuna" else ""),
        scheduler=tune.scheduler.kind,
        planned_trial=dict(planned_trial),
    )


def gate_epochs(tune: TuneSection, epochs: int) -> tuple[int, ...]:
    """After which epochs, the last one aside, a trial may be ended or paused."""
    scheduler, stop = tune.scheduler, tune.stop
    everywhere = range(1, epochs)
    if stop.metric or stop.trial_time is not None:
        return tuple(everywhere)
    found: set[int] = set()
    if stop.plateau:
        found |= {
            epoch for epoch in everywhere if epoch >= max(stop.plateau.num_results, stop.plateau.grace_period)
        }
    match scheduler:
        case Fifo():
            pass
        case Asha(grace_period=grace, reduction_factor=factor):
            found |= set(
                itertools.takewhile(
                    lambda epoch: epoch < epochs, (grace * factor**k for k in itertools.count())
                )
            )
        case Hyperband(reduction_factor=factor):
            found |= set(_hyperband_gates(epochs, factor))
        case MedianStopping(grace_period=grace):
            found |= {epoch for epoch in everywhere if epoch >= grace}
        case _:
            found |= {epoch for epoch in everywhere if epoch % scheduler.perturbation_interval == 0}
    return tuple(sorted(found))


def _hyperband_gates(epochs: int, factor: int) -> Iterator[int]:
    """Where the trials of each bracket wait for one another, as Ray Tune's HyperBandScheduler counts it; after the
    last of them the best train to the end."""
    for halvings in range(round(math.log(epochs) / math.log(factor)) + 1):
        first = int(epochs * factor**-halvings)
        yield from (gate for k in range(halvings) if 0 < (gate := first * factor**k) < epochs)


def _most_hours(
    spec: JobSpec, tune: TuneSection, num_trials: int, workers_at_once: int, workers: int
) -> tuple[float | None, str]:
    """Worker-hours that the settings allow, and the one that allows the least."""
    limits = [(seconds * num_trials * workers / 3600, name) for seconds, name in (
        (tune.stop.trial_time, "tune.stop.trial_time"), (spec.train.max_time, "train.max_time"),
    ) if seconds is not None]  # fmt: skip
    if tune.time_budget is not None:
        limits.append((tune.time_budget * workers_at_once / 3600, "tune.time_budget"))
    return min(limits) if limits else (None, "")


def _length(spec: JobSpec, rows: int) -> tuple[int, int]:
    """The most epochs and steps of a trial."""
    train = spec.train
    rounded = math.floor if train.drop_last else math.ceil
    steps_per_epoch = max(1, rounded(rows / train.global_batch_size))
    steps = min(train.max_epochs * steps_per_epoch, train.max_steps or math.inf)
    return math.ceil(steps / steps_per_epoch), int(steps)


def _room(spec: JobSpec, nodes: Sequence[NodeFacts]) -> int:
    """How many trials fit on what is free of the nodes."""
    width, bundle = spec.resources.min_workers, spec.resources.bundle()
    most = 10**6
    each = [fitting([node], bundle, (1, most)) for node in nodes]
    if spec.resources.placement_strategy == "STRICT_PACK":
        return sum(count // width for count in each)
    if spec.resources.placement_strategy == "STRICT_SPREAD":  # each takes a worker of `width` different nodes
        trials = sum(each) // width
        while sum(min(count, trials) for count in each) < trials * width:
            trials -= 1
        return trials
    return sum(each) // width


def _space(loaded: LoadedSpec) -> SearchSpace:
    assert loaded.spec.tune
    return SearchSpace.of(loaded.spec.tune, to_plain(loaded.spec))


def _by_resources(loaded: LoadedSpec) -> Iterator[tuple[LoadedSpec, dict[str, Any]]]:
    """A trial for each combination of the ends of what decides about resources."""
    space = _space(loaded)
    base = space.ends()[0]
    domains = {
        path: domain.corners()
        for path, domain in space.domains.items()
        if path.partition(".")[0] == "resources"
    }
    points = itertools.islice(itertools.product(*domains.values()), _MOST_WIDTHS)
    for values in points:
        fulfilled: dict[str, Any] = {}
        for path in domains:
            fulfilled |= space.fulfilled(path, base)
        yield from _trial(loaded, space, base | fulfilled | dict(zip(domains, values, strict=True)))


def _around(loaded: LoadedSpec) -> Iterator[tuple[LoadedSpec, dict[str, Any]]]:
    space = _space(loaded)
    for _, sampled in space.around(space.ends()[0]):
        yield from _trial(loaded, space, sampled)


def _trial(
    loaded: LoadedSpec, space: SearchSpace, sampled: Mapping[str, Any]
) -> Iterator[tuple[LoadedSpec, dict[str, Any]]]:
    """One, or none where its values do not go together."""
    try:
        params = space.resolve(sampled)
        yield trial_spec(loaded, params), params
    except (NoValue, SpecError):
        return


def _size(spec: JobSpec) -> tuple[float, float, int]:
    resources = spec.resources
    each = resources.per_worker()
    return (
        resources.min_workers * each.get("GPU", 0.0),
        resources.min_workers * each.get("CPU", 0.0),
        resources.min_workers,
    )
