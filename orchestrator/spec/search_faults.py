"""What is wrong with a search, told by the rest of the job: parameters that are no fields, values that do not fit them,
schedulers and searchers that cannot do what is asked."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from typing import Any

from orchestrator.errors import Fault
from orchestrator.spec.arithmetic import parse_arithmetic
from orchestrator.spec.document import FieldPath
from orchestrator.spec.domain import Domain
from orchestrator.spec.environment import Substituted
from orchestrator.spec.job import JobSpec
from orchestrator.spec.render import to_plain
from orchestrator.spec.space import SearchSpace
from orchestrator.spec.train import METRICS
from orchestrator.spec.trial_faults import Found, TriedTrials, shown
from orchestrator.spec.tune import Asha, Fifo, MedianStopping, Pb2, Pbt, TuneSection

SEARCHED = ("seed", "data", "model", "train", "init_from", "resources")
"""The parts of a job that may differ from trial to trial."""

_MOST_TRIALS = 100_000


def search_faults(spec: JobSpec, substituted: Substituted) -> list[Fault]:
    """All faults of a job's search, each with its line; none for a job without one.

    That values fit is tried out: trials are made of the ends of each domain, and of each value of a choice.
    """
    tune, document = spec.tune, substituted.document
    if tune is None:
        return []
    plain = to_plain(spec)
    found = [*_job(spec), *_metrics(spec, tune), *_scheduler(tune, _most_epochs(spec)), *_search_alg(tune)]
    found += _paths(tune)
    try:
        space = SearchSpace.of(tune, plain)
    except ValueError as error:
        path = str(error).partition(" ")[0]
        found.append((("param_space", path), f"depends on itself: {error}", "Break the circle"))
    else:
        named = [*_references(space), *_conditions(space), *_points(tune, space)]
        found += named
        if not any(where[:1] == ("param_space",) for where, _, _ in found):
            found += TriedTrials(space, substituted, plain).faults()
    return [document.fault(("tune", *where), reason, mend) for where, reason, mend in found]


def _job(spec: JobSpec) -> Found:
    if spec.train.function is not None:
        yield (
            (),
            "cannot search over a train function of your own: it tells nothing at the end of an epoch",
            "Leave train.function out, and give the model, loss or metrics by 'module:object'",
        )
    if isinstance(spec.resources.num_workers, tuple):
        yield (
            (),
            "needs a fixed number of workers per trial, and resources.num_workers is [min, max]",
            f"Write resources.num_workers: {spec.resources.min_workers}",
        )


def _metrics(spec: JobSpec, tune: TuneSection) -> Found:
    several = len(tune.metrics) > 1
    for index, name in enumerate(tune.metrics):
        where = ("metric", index) if isinstance(tune.metric, list) else ("metric",)
        yield from _metric(name, where, spec)
        if name in tune.metrics[:index]:
            yield where, f"names {name} twice", "Remove one"
    for name in tune.stop.metric:
        yield from _metric(name, ("stop", "metric", name), spec)
    if isinstance(tune.mode, list) and len(tune.mode) != len(tune.metrics):
        yield (
            ("mode",),
            f"has {len(tune.mode)} entries for {len(tune.metrics)} metric(s)",
            "Write one for each",
        )
    if not several:
        return
    if not isinstance(tune.scheduler, Fifo):
        yield (
            ("scheduler",),
            f"{tune.scheduler.kind} compares trials by one metric, and there are {len(tune.metrics)}",
            "Write scheduler: {kind: fifo}, or name one metric",
        )
    if tune.search_alg.kind not in ("random", "optuna") or getattr(tune.search_alg, "sampler", "") == "cmaes":
        yield (
            ("search_alg",),
            f"cannot search for {len(tune.metrics)} metrics at once",
            "Write search_alg: {kind: optuna, sampler: tpe} or {kind: optuna, sampler: nsgaii}",
        )
    if tune.then != "nothing":
        yield (
            ("then",),
            f"{tune.then} needs one best trial, and several metrics have none",
            "Write then: nothing",
        )
    if tune.stop.patience is not None:
        yield ("stop", "patience"), "needs one best trial, and several metrics have none", "Leave it out"


def _metric(name: str, where: FieldPath, spec: JobSpec) -> Found:
    part, _, what = name.partition("/")
    shown = [metric.rpartition(":")[2] for metric in spec.train.metrics or METRICS]
    known = ["train/loss", "val/loss", *(f"val/{metric}" for metric in shown)]
    if part == "test" and what:
        yield where, "chooses by the test part, which would no longer test anything", f"Write val/{what}"
    elif name not in known:
        close = (
            [one for one in known if one.startswith(name)]
            or difflib.get_close_matches(name, known, 1)
            or difflib.get_close_matches(f"val/{name}", known, 1)
        )
        mend = f"Did you mean '{close[0]}'?" if close else f"Write one of {', '.join(known)}"
        named = " by the metrics of train.metrics" if spec.train.metrics else ""
        yield where, f"'{name}' is nothing that a trial reports{named}", mend
    elif part == "val" and not _has_val(spec):
        yield (
            where,
            "is measured on the val part, and data.split has none",
            "Write a share for data.split.val",
        )


def _has_val(spec: JobSpec) -> bool:
    split = spec.data.split
    if spec.tune and any(path.split(".")[:2] == ["data", "split"] for path in spec.tune.param_space):
        return True  # it is searched too: the trials will tell
    if split.kind != "given":
        return split.val > 0
    if split.files is not None:
        return bool(split.files.val)
    return split.values is None or bool(split.values.val)


def _most_epochs(spec: JobSpec) -> int:
    searched = spec.tune.param_space.get("train.max_epochs") if spec.tune else None
    ends = [value for value in (searched.corners() if searched else []) if isinstance(value, int)]
    return max(ends, default=spec.train.max_epochs)


def _scheduler(tune: TuneSection, epochs: int) -> Found:
    scheduler, where = tune.scheduler, ("scheduler",)
    if isinstance(scheduler, Fifo):
        return
    if epochs == 1:
        reason = f"{scheduler.kind} decides between epochs, and train.max_epochs is 1"
        yield where, reason, "Write more epochs, or scheduler: {kind: fifo}"
        return
    if isinstance(scheduler, Asha | MedianStopping) and scheduler.grace_period > epochs:
        reason = f"is {scheduler.grace_period}, and a trial has {epochs} epochs at most"
        yield (*where, "grace_period"), reason, f"Write at most {epochs}"
    elif isinstance(scheduler, Asha):
        most = 1
        while scheduler.grace_period * scheduler.reduction_factor**most <= epochs:
            most += 1
        if scheduler.brackets > most:
            reason = f"is {scheduler.brackets}, and {epochs} epochs leave room for {most}"
            yield (*where, "brackets"), reason, f"Write at most {most}"
    if isinstance(scheduler, Pbt | Pb2):
        yield from _population(tune, scheduler, epochs)
    if tune.stop.plateau is not None and tune.stop.plateau.num_results > epochs:
        reason = f"is {tune.stop.plateau.num_results}, and a trial has {epochs} epochs at most"
        yield ("stop", "plateau", "num_results"), reason, f"Write at most {epochs}"


def _population(tune: TuneSection, scheduler: Pbt | Pb2, epochs: int) -> Found:
    kind = scheduler.kind
    if scheduler.perturbation_interval >= epochs:
        reason = f"is {scheduler.perturbation_interval}, so that a trial of {epochs} epochs is never changed"
        yield ("scheduler", "perturbation_interval"), reason, f"Write at most {epochs - 1}"
    grid = any(domain.kind == "grid_search" for domain in tune.param_space.values())
    if tune.num_samples < 2 and not grid:
        yield ("num_samples",), f"{kind} needs a population of at least 2 trials", "Write 4 or more"
    for path, domain in tune.param_space.items():
        where = ("param_space", path)
        if domain.kind == "grid_search":
            yield (
                where,
                f"{kind} draws and changes parameters, and walks no grid",
                "Write choice for grid_search",
            )
        elif domain.when:
            yield where, f"{kind} changes all parameters of a trial, and knows no 'when'", "Leave 'when' out"
        elif not _changes_in_training(path):
            yield (
                where,
                f"{kind} changes parameters in the middle of a training, and this one cannot change there",
                "It may change those of train.optimizer, train.schedule and train.loss but their kinds and names, "
                "train.clip_grad_norm, train.clip_grad_value, train.ema.decay and dropout in model.args",
            )
        elif kind == "pb2" and domain.kind not in ("uniform", "loguniform", "expr"):
            yield (
                where,
                f"pb2 takes uniform and loguniform, not {domain.kind}",
                "Write scheduler: {kind: pbt}",
            )


def _changes_in_training(path: str) -> bool:
    """Whether a training can go on from a checkpoint with another value of the field."""
    home, _, name = path.rpartition(".")
    if home in ("train.optimizer", "train.schedule", "train.loss"):
        return name not in ("kind", "name", "class_weights", "groups")
    if home.startswith("train.optimizer.groups"):
        return name in ("lr", "weight_decay")
    if home == "model.args":
        return "dropout" in name
    return path in ("train.clip_grad_norm", "train.clip_grad_value", "train.ema.decay")


def _search_alg(tune: TuneSection) -> Found:
    searcher, kinds = tune.search_alg, {path: domain.kind for path, domain in tune.param_space.items()}
    if searcher.kind == "random":
        return
    if isinstance(tune.scheduler, Pbt | Pb2):
        reason = f"{searcher.kind} learns from a trial's parameters, which {tune.scheduler.kind} changes as it goes"
        yield ("search_alg",), reason, "Write search_alg: {kind: random}"
    elif "grid_search" in kinds.values():
        grids = ", ".join(path for path, kind in kinds.items() if kind == "grid_search")
        reason = f"{searcher.kind} walks no grid ({grids})"
        yield ("search_alg",), reason, "Write search_alg: {kind: random}, or choice for grid_search"
    elif getattr(searcher, "sampler", "") == "cmaes" and "choice" in kinds.values():
        named = ", ".join(path for path, kind in kinds.items() if kind == "choice")
        yield (
            ("search_alg", "sampler"),
            f"cmaes searches numbers, not a choice ({named})",
            "Write sampler: tpe",
        )


def _paths(tune: TuneSection) -> Found:
    for path in tune.param_space:
        parts = path.split(".")
        where = ("param_space", path)
        if parts[0] not in SEARCHED:
            if parts[0] in JobSpec.model_fields:
                yield where, f"a trial cannot change '{parts[0]}'", f"It may change {', '.join(SEARCHED)}"
                continue
            close = difflib.get_close_matches(parts[0], SEARCHED, 1)
            mend = f"Did you mean '{'.'.join([*close, *parts[1:]])}'?" if close else ""
            yield where, "is no field of a job", mend or f"Begin with one of {', '.join(SEARCHED)}"
        elif not all(parts):
            yield where, "is no path", "Write it as train.optimizer.lr"
        elif path in ("init_from", "init_from.uri"):
            yield (
                where,
                "cannot search over weights: those of init_from are fetched once, for all trials",
                "Run a search for each; init_from.head and init_from.strict may be searched",
            )
        elif path == "train.function":
            yield where, "cannot search over train functions: they tell nothing at the end of an epoch", ""


def _references(space: SearchSpace) -> Found:
    """Paths that `when` and `expr` name, and that are nothing."""
    for path, domain in space.params.items():
        names = parse_arithmetic(domain.expr).names if domain.expr is not None else ()
        for key, others in (("when", tuple(domain.when)), ("expr", names)):
            for other in others:
                if not space.knows(other):
                    known = [*space.params, *_leaves(space.fixed)]
                    close = difflib.get_close_matches(other, known, 1)
                    where = ("param_space", path, key, *([other] if key == "when" else []))
                    yield (
                        where,
                        f"{other} is neither a parameter nor a field of this job",
                        f"Did you mean '{close[0]}'?" if close else "",
                    )


def _conditions(space: SearchSpace) -> Found:
    for path in space.params:
        for other, home, values in space.fulfilling(path):
            if values or not space.knows(other):
                continue
            domain = space.params[home] if home else None
            has = f"takes {_shown_domain(domain)}" if domain else f"is {shown(space.value_of(other, {}))}"
            where = ("param_space", path, "when", other)
            yield where, f"never holds: {home or other} {has}", "Write a value that it can have"


def _points(tune: TuneSection, space: SearchSpace) -> Found:
    for index, point in enumerate(tune.points_to_evaluate):
        for name, value in point.items():
            where = ("points_to_evaluate", index, name)
            if name in space.domains:
                domain = space.domains[name]
                if not domain.holds(value):
                    yield where, f"{shown(value)} is not in its domain, {_shown_domain(domain)}", ""
            elif name in space.params:
                yield where, "follows from others by its expr", "Leave it out"
            else:
                close = difflib.get_close_matches(name, space.domains, 1)
                yield where, "is no parameter of param_space", f"Did you mean '{close[0]}'?" if close else ""
    most = space.num_trials(tune.num_samples)
    if most > _MOST_TRIALS:
        yield (
            ("param_space",),
            f"makes {most:,} trials, and {_MOST_TRIALS:,} are the most",
            "Write choice for grid_search",
        )
    if len(tune.points_to_evaluate) > most:
        reason = f"has {len(tune.points_to_evaluate)} points, and there are {most} trial(s)"
        yield ("points_to_evaluate",), reason, "Raise num_samples"


def _shown_domain(domain: Domain) -> str:
    return f"{domain.kind} {shown(domain.values)}"


def _leaves(value: Any, prefix: str = "") -> Iterator[str]:
    if prefix:
        yield prefix
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else str(key))


__all__ = ["SEARCHED", "search_faults"]
