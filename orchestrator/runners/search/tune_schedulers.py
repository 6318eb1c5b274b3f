"""Ray Tune's schedulers where they need a mend: what they do is theirs. Imports: ray.tune in functions."""

from __future__ import annotations

import math
from typing import Any


def hyperband(facts: dict[str, Any], max_epochs: int, reduction_factor: float) -> Any:
    """Tune's HyperBand, whose survivors run to their end. `facts`: metric, mode and the name of the epochs."""
    from ray.tune.schedulers import HyperBandScheduler

    class WholeBrackets(HyperBandScheduler):  # type: ignore[misc]
        """Tune's, but a bracket that once was full takes no more trials when some have ended, and one that was
        halved is looked at again when a trial of it fails."""

        def on_trial_add(self, controller: Any, trial: Any) -> None:
            bracket = self._state["bracket"]
            if bracket is not None and len(bracket._all_trials) >= bracket._n0:
                self._state["bracket"] = None
            super().on_trial_add(controller, trial)

        def _process_bracket(self, controller: Any, bracket: Any) -> Any:
            try:
                return super()._process_bracket(controller, bracket)
            finally:
                bracket.is_being_processed = False

    return WholeBrackets(**facts, max_t=max_epochs, reduction_factor=reduction_factor, stop_last_trials=False)


def milestones(scheduler: Any, max_epochs: int, reduction_factor: float) -> set[int]:
    """The epochs at which some bracket is halved: bracket s is so s times."""
    found = set()
    for bracket in range(scheduler._s_max_1):
        epoch = scheduler._get_r0(bracket)
        for _ in range(bracket if epoch else 0):
            found.add(epoch)
            epoch = int(min(epoch * reduction_factor, max_epochs))
    return found - {max_epochs}


def median_stopping(facts: dict[str, Any], grace_period: int, min_samples_required: int) -> Any:
    """Tune's median stopping, which ends a trial for good. `facts`: metric, mode and the name of the epochs."""
    from ray.tune.schedulers import MedianStoppingRule

    class RunningSums(MedianStoppingRule):  # type: ignore[misc]
        """Tune's, with a trial's running mean from sums kept at each epoch instead of all its results anew."""

        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self._sums: dict[Any, list[tuple[float, float]]] = {}

        def _running_mean(self, trial: Any, time: float) -> Any:
            results = self._results[trial]
            sums = self._sums.setdefault(trial, [])
            while len(sums) < len(results):
                result = results[len(sums)]
                counts = result[self._time_attr] >= self._grace_period
                total, number = sums[-1] if sums else (0.0, 0)
                sums.append((total + result[self._metric] * counts, number + counts))
            last = len(results)
            while last and results[last - 1][self._time_attr] > time:
                last -= 1
            total, number = sums[last - 1] if last else (0.0, 0)
            return total / number if number else math.nan

    return RunningSums(
        **facts, grace_period=grace_period, min_samples_required=min_samples_required, hard_stop=True
    )
