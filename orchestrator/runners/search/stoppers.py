"""What ends a trial or a whole search before its time, apart from the scheduler. Imports: ray.tune in functions, spec,
records."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from orchestrator.records import EpochReport

if TYPE_CHECKING:
    from orchestrator.spec.tune import TuneSection


class TrialStopper:
    """Says of each report whether its trial is done: a value reached, a plateau, its time used up."""

    def __init__(self, section: TuneSection) -> None:
        stop = section.stop
        self._goals = {name: (value, section.mode_of(name)) for name, value in stop.metric.items()}
        self._metric = section.metrics[0]
        self._trial_time_s = stop.trial_time
        self._plateau: Any = None
        if stop.plateau is not None:
            from ray.tune.stopper import TrialPlateauStopper

            self._plateau = TrialPlateauStopper(
                self._metric,
                std=stop.plateau.std,
                num_results=stop.plateau.num_results,
                grace_period=stop.plateau.grace_period,
            )

    @property
    def active(self) -> bool:
        """Whether it could end any trial at all."""
        return bool(self._goals or self._plateau is not None or self._trial_time_s is not None)

    def why_done(self, trial_id: str, report: EpochReport) -> str:
        """Why the trial need not go on; empty where it should."""
        for name, (goal, mode) in self._goals.items():
            value = report.metrics.get(name, math.nan)
            if value <= goal if mode == "min" else value >= goal:
                return f"{name} reached {goal:g}"
        if self._plateau is not None:
            value = report.metrics[self._metric]
            shown = value if math.isfinite(value) else math.nan
            if self._plateau(trial_id, {self._metric: shown}):
                return f"{self._metric} levelled out"
        if self._trial_time_s is not None and report.seconds >= self._trial_time_s:
            return f"trained for {self._trial_time_s:g} s"
        return ""


class TimeBudget:
    """The seconds that a search has worked, over all its drivers, against those that it may."""

    def __init__(self, budget_s: float | None) -> None:
        self._budget_s = budget_s
        self.spent_s = 0.0
        self._now_s: float | None = None

    def tick(self, now_s: float) -> None:
        """Tell the time. What passes between two drivers does not count."""
        if self._now_s is not None:
            self.spent_s += max(0.0, now_s - self._now_s)
        self._now_s = now_s

    def why_over(self) -> str:
        """Why the search must end; empty while it has time left."""
        if self._budget_s is None or self.spent_s < self._budget_s:
            return ""
        return f"the time budget of {self._budget_s:g} s is used up"


class Patience:
    """Counts finished trials since the last better best."""

    def __init__(self, section: TuneSection) -> None:
        self._patience = section.stop.patience or 0
        self._min_improvement = section.stop.min_improvement
        self._sign = 1.0 if section.modes[0] == "min" else -1.0
        self._best: float | None = None
        self._since = 0

    def why_over(self, best: float | None) -> str:
        """Called at the end of each trial with the best score so far; why the search need not go on, or nothing."""
        if best is not None and (
            self._best is None or self._sign * (self._best - best) > self._min_improvement * abs(self._best)
        ):
            self._best, self._since = best, 0
        else:
            self._since += 1
        if self._since >= self._patience > 0:
            return f"the last {self._since} trials brought no better best"
        return ""


class EqualFailures:
    """Counts trials that failed alike, with none in between that ran to an end of its own."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._counts: dict[tuple[str, str], int] = {}

    def succeeded(self) -> None:
        self._counts.clear()

    def failed(self, cause: str, error: str) -> bool:
        """Whether there have been too many like this one."""
        kind = (cause, likeness(error))
        self._counts[kind] = self._counts.get(kind, 0) + 1
        return self._counts[kind] >= self._most


_NUMBER = re.compile(r"\d[\d.]*(?:e[-+]?\d+)?")


def likeness(error: str) -> str:
    """The message without what differs from trial to trial: paths and numbers."""
    words = ["<path>" if "/" in word or "\\" in word else word for word in error.split()]
    return _NUMBER.sub("#", " ".join(words))
