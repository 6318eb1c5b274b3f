"""Which trial is the best, and numbers for values that are none. Imports: numpy, errors, runners.search.trial."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.errors import UsageError
from orchestrator.runners.search.trial import Trial


class Ranking:
    """The trials of a search by its metrics, kept while reports come."""

    def __init__(self, metrics: Sequence[str], modes: Sequence[str], trials: Mapping[str, Trial]) -> None:
        self._metrics = tuple(metrics)
        self._scales = [Scale(mode) for mode in modes]
        self._trials = trials
        self._best: Trial | None = None
        self._pareto: list[Trial] | None = None

    def finite(self, metrics: Mapping[str, float]) -> list[float]:
        """The search's metrics of a report; where one is infinite or NaN, a number worse than all so far.

        Raises UsageError where one is not among those reported.
        """
        values = []
        for name, scale in zip(self._metrics, self._scales, strict=True):
            if name not in metrics:
                there = ", ".join(sorted(metrics)) or "none"
                raise UsageError(
                    f"tune.metric: '{name}' is not among the metrics that a trial reports",
                    f"name one of those there are: {there}",
                )
            values.append(scale.finite(metrics[name]))
        return values

    def worst(self) -> list[float]:
        """Of each metric, a number worse than all so far."""
        return [scale.worst() for scale in self._scales]

    def consider(self, trial: Trial) -> None:
        """Take in its newest values."""
        self._pareto = None
        value = trial.newest[self._metrics[0]]
        if not math.isfinite(value):
            return
        if trial.score is None or self._cost(value) < self._cost(trial.score):
            trial.improve(value)
        if self._best is None or self._score_cost(trial) < self._score_cost(self._best):
            self._best = trial

    def drop(self, trial: Trial) -> None:
        """A trial has failed, and counts no more."""
        self._pareto = None
        if trial is self._best:
            left = [
                other
                for other in self._trials.values()
                if other.score is not None and other.state != "FAILED"
            ]
            self._best = min(left, key=self._score_cost, default=None)

    @property
    def best(self) -> Trial | None:
        """The trial with the best value of the metric in any epoch; of several metrics, the one with the best newest
        value of the first one."""
        if len(self._metrics) == 1:
            return self._best
        return min(self.pareto, key=lambda trial: self._cost(trial.newest[self._metrics[0]]), default=None)

    @property
    def pareto(self) -> list[Trial]:
        """Several metrics: the trials that no other one is better than, in their newest values. One: the best."""
        if len(self._metrics) == 1:
            return [self._best] if self._best else []
        if self._pareto is None:
            self._pareto = self._front()
        return self._pareto

    def _front(self) -> list[Trial]:
        trials = [
            trial
            for trial in self._trials.values()
            if trial.state != "FAILED"
            and all(math.isfinite(trial.newest.get(name, math.nan)) for name in self._metrics)
        ]
        scales = list(zip(self._metrics, self._scales, strict=True))
        costs = np.array([[scale.cost(trial.newest[name]) for name, scale in scales] for trial in trials])
        front = []
        for trial, own in zip(trials, costs, strict=True):
            beaten = (costs <= own).all(axis=1) & (costs < own).any(axis=1)
            if not beaten.any():
                front.append(trial)
        return front

    def _cost(self, value: float) -> float:
        return self._scales[0].cost(value)

    def _score_cost(self, trial: Trial) -> float:
        return math.inf if trial.score is None else self._cost(trial.score)


class Scale:
    """The values of one metric that were seen, and numbers to stand for those that are none."""

    def __init__(self, mode: str) -> None:
        self._sign = 1.0 if mode == "min" else -1.0
        self._best: float | None = None
        self._worst = 0.0

    def cost(self, value: float) -> float:
        """Less is better."""
        return self._sign * value

    def finite(self, value: float) -> float:
        """The value, or where it is infinite or NaN, one worse than all seen so far."""
        if not math.isfinite(value):
            return self.worst()
        cost = self.cost(value)
        if self._best is None:
            self._best = self._worst = cost
        self._best, self._worst = min(self._best, cost), max(self._worst, cost)
        return float(value)

    def worst(self) -> float:
        """As far beyond the worst value as that is from the best; far off where none is known."""
        if self._best is None:
            return self._sign * 1e9
        spread = self._worst - self._best
        return self._sign * (self._worst + (spread or max(1.0, abs(self._worst))))
