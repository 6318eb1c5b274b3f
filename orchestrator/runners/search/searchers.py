"""What suggests the values of the next trial: our own random and grid search, and Ray Tune's wrappers of Optuna
and HyperOpt. Imports: ray.tune and optuna in functions, numpy, spec, runners.search.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from orchestrator.errors import UsageError
from orchestrator.imports import import_optional
from orchestrator.runners.search import spaces
from orchestrator.runners.search.chance import Chance

if TYPE_CHECKING:
    from orchestrator.spec.space import SearchSpace
    from orchestrator.spec.tune import TuneSection


class Searcher:
    """Suggests values for trials and is told how they did. Values told are finite: what is infinite or NaN comes as
    something worse than all else. One for each metric."""

    @property
    def exhausted(self) -> bool:
        """Whether nothing more will be suggested."""
        return False

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """A value for each domain (one that does not hold may be left out); None where it has none for now."""
        raise NotImplementedError

    def reported(self, trial_id: str, epoch: int, values: Sequence[float]) -> None:
        """A trial came to the end of an epoch."""

    def completed(self, trial_id: str, values: Sequence[float]) -> None:
        """A trial was trained to its end: its best values."""

    def pruned(self, trial_id: str, values: Sequence[float]) -> None:
        """A trial was ended because others are better."""
        self.completed(trial_id, values)

    def failed(self, trial_id: str) -> None:
        """A trial says nothing of the values it had: it failed, or the search ended."""


class RandomSearch(Searcher):
    """The points to evaluate, then draws from all domains; with grids, every combination as often as asked for."""

    def __init__(
        self, space: SearchSpace, seed: int, points: Sequence[Mapping[str, Any]], walks: int
    ) -> None:
        self._domains = {
            path: (domain, spaces.to_tune(domain))
            for path, domain in space.domains.items()
            if domain.kind != "grid_search"
        }
        self._points = [dict(point) for point in points]
        self._grid = space.grid_points() if space.has_grid else []
        self._left = walks * len(self._grid) if self._grid else None
        self._state = np.random.RandomState(seed)
        self._number = 0

    @property
    def exhausted(self) -> bool:
        return not self._points and self._left == 0

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        del trial_id
        if self.exhausted:
            return None
        drawn = self.draw()
        if self._points:
            first = dict(self._grid[0]) if self._grid else {}
            return drawn | first | self._points.pop(0)
        if self._left is not None:
            drawn |= self._grid[self._number % len(self._grid)]
            self._number += 1
            self._left -= 1
        return drawn

    def draw(self) -> dict[str, Any]:
        """One value from each domain that is no grid."""
        return {
            path: spaces.decode(domain, tuned.sample(random_state=self._state))
            for path, (domain, tuned) in self._domains.items()
        }


class OptunaSearch(Searcher):
    """Tune's wrapper of Optuna. With no conditions, Optuna alone would suggest the same with the same seed."""

    def __init__(
        self, space: SearchSpace, section: TuneSection, seed: int, points: Sequence[Mapping[str, Any]]
    ) -> None:
        import optuna
        from ray.tune.search.optuna import OptunaSearch as Tuned

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = space
        self._metrics = section.metrics
        several = len(section.metrics) > 1
        with _quiet():
            self._tuned = Tuned(
                self._by_run if spaces.has_conditions(space) else self._distributions(),
                metric=list(section.metrics) if several else section.metrics[0],
                mode=list(section.modes) if several else section.modes[0],
                sampler=_sampler(section.search_alg, seed),
            )
            for point in points:
                self._tuned._ot_study.enqueue_trial(spaces.encode_all(space, point))

    def _distributions(self) -> dict[str, Any]:
        return {path: spaces.to_optuna(domain) for path, domain in self._space.domains.items()}

    def _by_run(self, trial: Any) -> None:
        """Ask for the values that hold, one after the other."""
        distributions = self._distributions()
        chosen: dict[str, Any] = {}
        for path in self._space.order:
            domain = self._space.params[path]
            by_expr = any(
                self._space.params[other].kind == "expr"
                for other in domain.when
                if other in self._space.params
            )
            if domain.kind != "expr" and (by_expr or self._space.is_active(path, chosen)):
                chosen[path] = spaces.decode(domain, _suggest(trial, path, distributions[path]))

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        return spaces.decode_all(self._space, self._tuned.suggest(trial_id))

    def reported(self, trial_id: str, epoch: int, values: Sequence[float]) -> None:
        if len(self._metrics) == 1:
            self._tuned.on_trial_result(trial_id, {self._metrics[0]: values[0], "training_iteration": epoch})

    def completed(self, trial_id: str, values: Sequence[float]) -> None:
        self._tuned.on_trial_complete(trial_id, dict(zip(self._metrics, values, strict=True)))

    def pruned(self, trial_id: str, values: Sequence[float]) -> None:
        if len(self._metrics) > 1:
            self.completed(trial_id, values)
        else:
            self._tuned.on_trial_complete(trial_id)

    def failed(self, trial_id: str) -> None:
        self._tuned.on_trial_complete(trial_id, error=True)


def _suggest(trial: Any, path: str, distribution: Any) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(path, distribution.choices)
    ask = trial.suggest_float if isinstance(distribution, FloatDistribution) else trial.suggest_int
    return ask(path, distribution.low, distribution.high, step=distribution.step, log=distribution.log)


def _sampler(settings: Any, seed: int) -> Any:
    from optuna import samplers

    match settings.sampler:
        case "tpe":
            return samplers.TPESampler(n_startup_trials=settings.startup_trials, seed=seed)
        case "cmaes":
            return samplers.CmaEsSampler(
                n_startup_trials=settings.startup_trials,
                seed=seed,
                warn_independent_sampling=False,
                consider_pruned_trials=True,
            )
        case "nsgaii":
            return samplers.NSGAIISampler(population_size=max(2, settings.startup_trials), seed=seed)
        case _:
            return samplers.RandomSampler(seed=seed)


class HyperoptSearch(Searcher):
    """Tune's wrapper of HyperOpt, which knows one metric and no pruned trials: those count by their best so far.

    Conditional values are drawn with the others, and dropped where they do not hold.
    """

    def __init__(
        self,
        space: SearchSpace,
        metric: str,
        mode: str,
        startup_trials: int,
        seed: int,
        points: Sequence[Mapping[str, Any]],
    ) -> None:
        from ray.tune.search.hyperopt import HyperOptSearch as Tuned

        self._space = space
        self._metric = metric
        self._chance = Chance(seed)
        with _quiet():
            self._tuned = Tuned(
                {path: spaces.to_tune(domain) for path, domain in space.domains.items()},
                metric=metric,
                mode=mode,
                points_to_evaluate=[spaces.encode_all(space, point) for point in points] or None,
                n_initial_points=startup_trials,
                random_state_seed=seed,
            )

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        with self._chance.own():
            return spaces.decode_all(self._space, self._tuned.suggest(trial_id))

    def completed(self, trial_id: str, values: Sequence[float]) -> None:
        with self._chance.own():
            self._tuned.on_trial_complete(trial_id, {self._metric: values[0]})

    def failed(self, trial_id: str) -> None:
        with self._chance.own():
            self._tuned.on_trial_complete(trial_id, error=True)


def make_searcher(section: TuneSection, space: SearchSpace, seed: int) -> Searcher:
    """What the section asks for.

    Raises MissingPackage where the library is not installed, UsageError where it cannot do what is asked.
    """
    settings: Any = section.search_alg
    random = RandomSearch(space, seed, section.points_to_evaluate, section.num_samples)
    if settings.kind == "random":
        return random
    if space.has_grid:
        raise UsageError(
            f"tune.search_alg: {settings.kind} chooses values itself and walks no grid",
            "write choice in place of grid_search, or search_alg: {kind: random}",
        )
    if settings.kind == "optuna":
        return OptunaSearch(space, section, seed, section.points_to_evaluate)
    if len(section.metrics) > 1:
        raise UsageError(
            f"tune.metric: {settings.kind} searches by one metric, not {len(section.metrics)}",
            "name one metric, or use search_alg: {kind: optuna}",
        )
    import_optional(settings.kind, extra=settings.kind, purpose=f"tune.search_alg: {settings.kind}")
    # Both want points with a value for every domain: what one leaves open is drawn.
    points = [random.suggest("") or {} for _ in section.points_to_evaluate]
    metric, mode = section.metrics[0], section.modes[0]
    if settings.kind == "ax":
        from orchestrator.runners.search.ax_search import AxSearch

        return AxSearch(space, mode, seed, points)
    return HyperoptSearch(space, metric, mode, settings.startup_trials, seed, points)


@contextmanager
def _quiet() -> Iterator[None]:
    """While a library is set up: without its warnings of what is experimental, and Tune's of domains converted."""
    tune = logging.getLogger("ray.tune.search")
    level = tune.level
    tune.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tune.setLevel(level)
