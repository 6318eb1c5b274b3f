"""Ray Tune's trial schedulers behind one small interface: which trial runs, goes on, pauses or ends.

Tune's objects decide; what stands in for its TuneController is in here. Imports: ray.tune in functions, spec,
runners.search.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from orchestrator.errors import UsageError
from orchestrator.runners.search import spaces, tune_schedulers
from orchestrator.runners.search.chance import Chance
from orchestrator.runners.search.trial import Decision, Trial

if TYPE_CHECKING:
    from orchestrator.spec.space import SearchSpace
    from orchestrator.spec.tune import TuneSection

_TIME = "training_iteration"
_DECISIONS: dict[str, Decision] = {"STOP": "stop", "PAUSE": "pause"}
"""By Tune's answers; all others are to go on."""


class Policy:
    """First come, first served, and none is ended early. The base of the others.

    The conductor tells it of each trial that is made, judges by `judge` at the epochs for which `gate` holds, and
    tells how each one ended.
    """

    pauses = False
    """Whether it is asked only once a paused trial's checkpoint is written: other trials may take that over."""

    hears_all = False
    """Whether it is told of the epochs, too, at which it decides nothing."""

    def __init__(self) -> None:
        self._fresh: deque[Trial] = deque()

    def gate(self, epoch: int) -> bool:
        """Whether a trial must wait for the answer at the end of this epoch."""
        del epoch
        return False

    def added(self, trial: Trial) -> None:
        self._fresh.append(trial)

    def wants_more(self) -> bool:
        """Whether more trials should be made before one is chosen."""
        return False

    def choose(self) -> Trial | None:
        """The one of those made that should run next."""
        while self._fresh and self._fresh[0].state != "PENDING":
            self._fresh.popleft()
        return self._fresh[0] if self._fresh else None

    def judge(self, trial: Trial) -> Decision:
        """What becomes of a trial after its newest report."""
        del trial
        return "go on"

    def completed(self, trial: Trial) -> None:
        """It reached its last epoch, or a stopper was content with it."""

    def failed(self, trial: Trial) -> None:
        """It failed, or was stopped with the search."""

    def settle(self) -> None:
        """Called after a trial has left its workers: wake those that waited for it."""

    def to_config(self, sampled: dict[str, Any]) -> dict[str, Any]:
        """What the scheduler knows of a trial's values, from what was sampled for it."""
        return dict(sampled)

    def to_sampled(self, config: dict[str, Any]) -> dict[str, Any]:
        """The other way."""
        return dict(config)


class _Controller:
    """The few members of Tune's TuneController that its schedulers touch."""

    search_alg = None

    def __init__(self, scheduler: Any, stop: Callable[[Trial], None]) -> None:
        self.trials: list[Trial] = []
        self._scheduler = scheduler
        self._stop = stop

    def get_trials(self) -> list[Trial]:
        return self.trials

    def get_live_trials(self) -> list[Trial]:
        return [trial for trial in self.trials if not trial.is_finished()]

    def stop_trial(self, trial: Trial) -> None:
        self._scheduler.on_trial_remove(self, trial)
        self._stop(trial)

    def pause_trial(self, trial: Trial, should_checkpoint: bool = True) -> None:
        raise AssertionError(f"{trial} is paused before the scheduler is asked, {should_checkpoint=}")

    def _schedule_trial_save(self, trial: Trial, result: object = None) -> None:
        raise AssertionError(f"{trial} is saved before the scheduler is asked, {result=}")


class _Tuned(Policy):
    """A policy that asks one of Tune's schedulers."""

    def __init__(self, scheduler: Any, chance: Chance, stop: Callable[[Trial], None]) -> None:
        super().__init__()
        self.scheduler = scheduler
        self.chance = chance
        self.controller = _Controller(scheduler, stop)

    def added(self, trial: Trial) -> None:
        super().added(trial)
        with self.chance.own():
            self.scheduler.on_trial_add(self.controller, trial)

    def judge(self, trial: Trial) -> Decision:
        trial.judged_epoch = trial.epoch
        with self.chance.own():
            answer = self.scheduler.on_trial_result(self.controller, trial, trial.last_result)
        return _DECISIONS.get(answer, "go on")

    def completed(self, trial: Trial) -> None:
        if trial.judged_epoch < trial.epoch and trial.last_result:
            self.scheduler.on_trial_complete(self.controller, trial, trial.last_result)

    def failed(self, trial: Trial) -> None:
        self.scheduler.on_trial_error(self.controller, trial)


class Asha(_Tuned):
    """Asynchronous successive halving (Li et al. 2018): at each rung the worse ones end."""

    def __init__(self, scheduler: Any, chance: Chance, stop: Callable[[Trial], None]) -> None:
        super().__init__(scheduler, chance, stop)
        self._gates = {
            math.ceil(milestone) for bracket in scheduler._brackets for milestone, _ in bracket._rungs
        }

    def gate(self, epoch: int) -> bool:
        return epoch in self._gates


class MedianStopping(_Tuned):
    """A trial ends whose best is worse than the median of the others' running means (Golovin et al. 2017)."""

    hears_all = True

    def __init__(
        self, scheduler: Any, chance: Chance, stop: Callable[[Trial], None], grace_period: int
    ) -> None:
        super().__init__(scheduler, chance, stop)
        self._grace_period = grace_period

    def gate(self, epoch: int) -> bool:
        return epoch >= self._grace_period


class Hyperband(_Tuned):
    """Brackets of successive halving that wait for each other (Li et al. 2017): trials pause at the milestones.

    A bracket's trials are all made before the first of them runs, so that it is halved by all of them, however
    few run at once.
    """

    def __init__(
        self, scheduler: Any, chance: Chance, stop: Callable[[Trial], None], milestones: set[int]
    ) -> None:
        super().__init__(scheduler, chance, stop)
        self._gates = milestones

    def gate(self, epoch: int) -> bool:
        return epoch in self._gates

    def wants_more(self) -> bool:
        bracket = self.scheduler._state["bracket"]
        return bracket is not None and len(bracket._all_trials) < bracket._n0

    def choose(self) -> Trial | None:
        chosen: Trial | None = self.scheduler.choose_trial_to_run(self.controller)
        return chosen

    def completed(self, trial: Trial) -> None:
        self.scheduler.on_trial_complete(self.controller, trial, trial.last_result)


class Population(_Tuned):
    """Population based training (Jaderberg et al. 2017), synchronous: all trials run to the same epoch and pause,
    then the worst ones take over weights and values of the best and change the values a little.
    """

    pauses = True

    def __init__(
        self, scheduler: Any, chance: Chance, stop: Callable[[Trial], None], interval: int, size: int
    ) -> None:
        super().__init__(scheduler, chance, stop)
        self._interval = interval
        self._size = size

    def gate(self, epoch: int) -> bool:
        return epoch % self._interval == 0

    def added(self, trial: Trial) -> None:
        self.controller.trials.append(trial)
        super().added(trial)

    def wants_more(self) -> bool:
        return len(self.controller.trials) < self._size

    def choose(self) -> Trial | None:
        chosen: Trial | None = self.scheduler.choose_trial_to_run(self.controller)
        return chosen

    def judge(self, trial: Trial) -> Decision:
        super().judge(trial)
        return "pause"

    def settle(self) -> None:
        """Where the one that all waited for is gone, nobody reports any more: ask once more for one that waits."""
        live = self.controller.get_live_trials()
        waiting = [trial for trial in live if trial.state == "PAUSED" and not trial.pausing]
        due = self.scheduler._next_perturbation_sync
        if waiting and all(self.scheduler._trial_state[trial].last_train_time >= due for trial in live):
            self.judge(waiting[-1])

    def exploited(self) -> list[Trial]:
        """Those that took over from another one in the last call of `judge` or `settle`."""
        return [trial for trial in self.controller.trials if trial.handed_over is not None]


class Pb2(Population):
    """Population based bandits (Parker-Holder et al. 2020): the new values come from a Gaussian process.

    It works in the logarithm of what is sampled in the logarithm.
    """

    def __init__(self, *arguments: Any, space: SearchSpace) -> None:
        super().__init__(*arguments)
        self._logs = [path for path, domain in space.domains.items() if spaces.is_log(domain)]
        self._space = space

    def judge(self, trial: Trial) -> Decision:
        with _quiet():
            return super().judge(trial)

    def to_config(self, sampled: dict[str, Any]) -> dict[str, Any]:
        return {path: math.log(value) if path in self._logs else value for path, value in sampled.items()}

    def to_sampled(self, config: dict[str, Any]) -> dict[str, Any]:
        found = {path: math.exp(value) if path in self._logs else value for path, value in config.items()}
        return spaces.clip(self._space, found)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what scikit-learn and NumPy warn of where a Gaussian process has few points."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make_policy(
    section: TuneSection,
    space: SearchSpace,
    *,
    seed: int,
    max_epochs: int,
    num_trials: int,
    stop: Callable[[Trial], None],
) -> Policy:
    """The scheduler that the section asks for. `stop` ends a trial that is paused or about to be.

    Raises UsageError where it does not fit the space.
    """
    logging.getLogger("ray.tune.schedulers").setLevel(logging.WARNING)  # events tell of each change
    scheduler = section.scheduler
    facts = {"time_attr": _TIME, "metric": section.metrics[0], "mode": section.modes[0]}
    chance = Chance(seed)
    match scheduler.kind:
        case "fifo":
            return Policy()
        case "asha":
            from ray.tune.schedulers import AsyncHyperBandScheduler

            return Asha(
                AsyncHyperBandScheduler(
                    **facts,
                    max_t=max_epochs,
                    grace_period=min(scheduler.grace_period, max_epochs),
                    reduction_factor=scheduler.reduction_factor,
                    brackets=scheduler.brackets,
                ),
                chance,
                stop,
            )
        case "hyperband":
            tuned = tune_schedulers.hyperband(facts, max_epochs, scheduler.reduction_factor)
            milestones = tune_schedulers.milestones(tuned, max_epochs, scheduler.reduction_factor)
            return Hyperband(tuned, chance, stop, milestones)
        case "median_stopping":
            tuned = tune_schedulers.median_stopping(
                facts, scheduler.grace_period, scheduler.min_samples_required
            )
            return MedianStopping(tuned, chance, stop, scheduler.grace_period)
        case "pbt" | "pb2":
            return _population(scheduler, space, facts, chance, stop, num_trials)
    raise UsageError(f"tune.scheduler: no scheduler is of the kind '{scheduler.kind}'")


def _population(
    scheduler: Any,
    space: SearchSpace,
    facts: dict[str, Any],
    chance: Chance,
    stop: Callable[[Trial], None],
    num_trials: int,
) -> Population:
    changed = spaces.mutations(space) if scheduler.kind == "pbt" else spaces.bounds(space)
    if not changed:
        raise UsageError(
            f"tune.scheduler: {scheduler.kind} changes numbers in the course of a training, and tune.param_space draws "
            "none",
            "add train.optimizer.lr, say, or use another scheduler",
        )
    interval = scheduler.perturbation_interval
    facts = facts | {"perturbation_interval": interval, "quantile_fraction": scheduler.quantile_fraction}
    facts |= {"log_config": False, "synch": True}
    if scheduler.kind == "pb2":
        from ray.tune.schedulers.pb2 import PB2

        tuned = PB2(**facts, hyperparam_bounds=changed)
        return Pb2(tuned, chance, stop, interval, num_trials, space=space)
    from ray.tune.schedulers import PopulationBasedTraining

    tuned = PopulationBasedTraining(
        **facts,
        hyperparam_mutations=changed,
        resample_probability=scheduler.resample_probability,
        custom_explore_fn=lambda config: spaces.clip(space, config),
    )
    return Population(tuned, chance, stop, interval, num_trials)
