"""The `tune` section: which fields of the job are searched, by what, for how long, and what becomes of the winner.

Names are Ray Tune's wherever it has one. `space` gives the domains their meaning, `search_faults` checks the section
against the rest of the job.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from orchestrator.spec.base import Duration, Section, Size
from orchestrator.spec.domain import KINDS, Domain, same_value

Mode = Literal["min", "max"]
Effort = Literal["quick", "standard", "thorough"]
_LESS_IS_BETTER = ("loss", "mse", "rmse", "mae", "perplexity", "bits_per_token")
_SAMPLES = {"quick": 10, "standard": 40, "thorough": 120}


def default_mode(metric: str) -> Mode:
    """Whether less or more of a metric is better, by its name: losses and errors fall, all else rises."""
    return "min" if metric.rpartition("/")[2] in _LESS_IS_BETTER else "max"


class RandomSearch(Section):
    """Draws at random, and walks grids."""

    kind: Literal["random"]


class OptunaSearch(Section):
    """Optuna's samplers."""

    kind: Literal["optuna"]
    sampler: Literal["tpe", "cmaes", "nsgaii", "random"] = "tpe"
    """`tpe`: tree-structured Parzen estimator; `cmaes`: numbers only; `nsgaii`: genetic, for several metrics."""
    startup_trials: int = Field(default=10, ge=0)
    """So many are drawn at random before the sampler learns from them (nsgaii: the size of its population)."""


class HyperoptSearch(Section):
    """Hyperopt's tree-structured Parzen estimator."""

    kind: Literal["hyperopt"]
    startup_trials: int = Field(default=10, ge=0)
    """So many are drawn at random before it learns from them."""


class AxSearch(Section):
    """Ax: Bayesian optimisation by Gaussian processes."""

    kind: Literal["ax"]


SearchAlg = Annotated[RandomSearch | OptunaSearch | HyperoptSearch | AxSearch, Field(discriminator="kind")]


class Fifo(Section):
    """No trial is ended early."""

    kind: Literal["fifo"]


class Asha(Section):
    """Asynchronous successive halving (Li et al. 2020): at epochs `grace_period`, times `reduction_factor`, and so on,
    the worse of those that came so far are ended."""

    kind: Literal["asha"]
    grace_period: int = Field(default=1, ge=1)
    """Epochs that every trial may train."""
    reduction_factor: int = Field(default=4, ge=2)
    """One of so many goes on."""
    brackets: int = Field(default=1, ge=1)
    """Trials are dealt out over so many; each begins to end trials later than the one before."""


class Hyperband(Section):
    """HyperBand (Li et al. 2018): trials of a bracket pause until all have come as far, and the best go on."""

    kind: Literal["hyperband"]
    reduction_factor: int = Field(default=3, ge=2)
    """One of so many goes on."""


class MedianStopping(Section):
    """Ends a trial whose best is worse than the median of the others' means so far (Golovin et al. 2017)."""

    kind: Literal["median_stopping"]
    grace_period: int = Field(default=1, ge=1)
    """Epochs that every trial may train."""
    min_samples_required: int = Field(default=3, ge=1)
    """No trial is ended before so many have come as far."""


class Pbt(Section):
    """Population based training (Jaderberg et al. 2017): bad trials go on from the checkpoints of good ones, with
    changed parameters."""

    kind: Literal["pbt"]
    perturbation_interval: int = Field(default=4, ge=1)
    """Epochs between two such changes of a trial."""
    quantile_fraction: float = Field(default=0.25, gt=0, le=0.5)
    """The share of the trials that is replaced, and the share that they are replaced by."""
    resample_probability: float = Field(default=0.25, ge=0, le=1)
    """How often a parameter is drawn anew instead of being raised or lowered a little."""


class Pb2(Section):
    """Population based bandits (Parker-Holder et al. 2020): as pbt, and a Gaussian process chooses the changes. For
    `uniform` and `loguniform` parameters."""

    kind: Literal["pb2"]
    perturbation_interval: int = Field(default=4, ge=1)
    """Epochs between two such changes of a trial."""
    quantile_fraction: float = Field(default=0.25, gt=0, le=0.5)
    """The share of the trials that is replaced, and the share that they are replaced by."""


Scheduler = Annotated[Fifo | Asha | Hyperband | MedianStopping | Pbt | Pb2, Field(discriminator="kind")]


class Plateau(Section):
    """A trial whose metric hardly changes any more is done."""

    std: float = Field(default=0.001, gt=0)
    """The standard deviation of its newest values …"""
    num_results: int = Field(default=4, ge=2)
    """… of so many epochs, below which it has levelled out."""
    grace_period: int = Field(default=4, ge=1)
    """Epochs that every trial may train."""


class TuneStop(Section):
    """What ends a trial or the search before its time."""

    metric: dict[str, float] = Field(default_factory=dict)
    """A trial that reaches one of these values is done, as `{val/accuracy: 0.99}`."""
    plateau: Plateau | None = None
    trial_time: Duration | None = Field(default=None, gt=0)
    """The longest that one trial may train."""
    patience: int | None = Field(default=None, ge=1)
    """The search ends after so many finished trials in a row without a better best …"""
    min_improvement: float = Field(default=0.0, ge=0)
    """… by at least this share of it."""


def _concurrency(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int) and not isinstance(value, bool) and value >= 1):
        return value
    raise ValueError(f"must be 'auto' (as many as fit) or a whole number of at least 1, not {value!r}")


Concurrency = Annotated[
    Literal["auto"] | int,
    BeforeValidator(_concurrency),
    WithJsonSchema({"anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1}]}),
]


def _modes(data: dict[str, Any]) -> Any:
    metric = data["metric"]
    return [default_mode(name) for name in metric] if isinstance(metric, list) else default_mode(metric)


def _samples(data: dict[str, Any]) -> int:
    return 1 if _has_grid(data) else _SAMPLES[data["effort"]]


def _scheduler(data: dict[str, Any]) -> Any:
    return effort_scheduler(data["effort"], None, several=_several(data))


def _search_alg(data: dict[str, Any]) -> Any:
    population = data["scheduler"].kind in ("pbt", "pb2")
    if (data["effort"] == "quick" and not _several(data)) or population or _has_grid(data):
        return RandomSearch(kind="random")
    return OptunaSearch(kind="optuna", startup_trials=20 if data["effort"] == "thorough" else 10)


def _then(data: dict[str, Any]) -> Literal["nothing", "retrain", "checkpoint"]:
    return "nothing" if _several(data) else "retrain"


def _has_grid(data: dict[str, Any]) -> bool:
    return any(domain.kind == "grid_search" for domain in data["param_space"].values())


def _several(data: dict[str, Any]) -> bool:
    return isinstance(data["metric"], list) and len(data["metric"]) > 1


def effort_scheduler(effort: Effort, max_epochs: int | None, *, several: bool) -> Fifo | Asha:
    """The scheduler that an effort means: asha, unless several metrics or a single epoch leave nothing to end early."""
    if several or max_epochs == 1:
        return Fifo(kind="fifo")
    reduction = 3 if effort == "thorough" else 4
    share = 9 if effort == "thorough" else 16  # two rungs or so between the grace period and the last epoch
    return Asha(kind="asha", grace_period=max(1, (max_epochs or 1) // share), reduction_factor=reduction)


class TuneSection(Section):
    """A search for the best hyperparameters, and then the training of the best."""

    param_space: dict[str, Domain] = Field(min_length=1)
    """The path of any field under seed, data, model, train, init_from or resources, and the values it may take, as
    `train.optimizer.lr: {loguniform: [1.0e-4, 1.0e-1]}`."""
    metric: str | Annotated[list[str], Field(min_length=1)] = "val/loss"
    """What is made best, as a run reports it at the end of an epoch: `val/loss`, `val/accuracy`, …; a list searches the
    Pareto front of several."""
    mode: Mode | list[Mode] = Field(default_factory=_modes)
    """Whether less or more of it is better; by default `min` for losses and errors, else `max`."""
    effort: Effort = "standard"
    """Fills num_samples, search_alg and scheduler where they are not written. quick: 10 trials, random, asha. standard:
    40, optuna, asha. thorough: 120, optuna, asha that gives each trial more time."""
    num_samples: int = Field(default_factory=_samples, ge=1, le=100_000)
    """How many trials; with grid_search, how often the grid is walked (by default once)."""
    max_concurrent_trials: Concurrency = "auto"
    """How many trials run side by side; `auto`: as many as fit."""
    time_budget: Duration | None = Field(default=None, gt=0)
    """The search ends after this time, over all its attempts; what it found so far counts."""
    seed: int | None = Field(default=None, ge=0, lt=2**32)
    """Of the drawing of parameters; by default the job's."""
    points_to_evaluate: list[dict[str, Any]] = Field(default_factory=list)
    """Parameters of the first trials."""
    scheduler: Scheduler = Field(default_factory=_scheduler)
    """Which trials are ended early, or paused."""
    search_alg: SearchAlg = Field(default_factory=_search_alg)
    """Which parameters are tried next."""
    stop: TuneStop = Field(default_factory=TuneStop)
    max_equal_failures: int = Field(default=10, ge=1)
    """The search ends as failed once so many trials in a row failed of the same cause."""
    recycle_worker_at: Size = 2 * 10**9
    """Workers that have grown by so much over their first trial are replaced."""
    then: Literal["nothing", "retrain", "checkpoint"] = Field(default_factory=_then)
    """What becomes of the best trial. `retrain`: train with its parameters on train and val together; `checkpoint`:
    take its best checkpoint; `nothing`: only report it (the default for several metrics)."""

    @property
    def metrics(self) -> tuple[str, ...]:
        return (self.metric,) if isinstance(self.metric, str) else tuple(self.metric)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """One for each of the metrics."""
        modes: Sequence[Mode] = self.mode if isinstance(self.mode, list) else [self.mode]
        return tuple(modes) if len(modes) == len(self.metrics) else tuple(modes[:1]) * len(self.metrics)

    def mode_of(self, metric: str) -> Mode:
        """Whether less or more of any metric is better: as written, or by its name."""
        return dict(zip(self.metrics, self.modes, strict=True)).get(metric, default_mode(metric))

    def for_epochs(self, max_epochs: int) -> TuneSection:
        """The same, where effort chooses the scheduler: one that suits trials of so many epochs."""
        if "scheduler" in self.model_fields_set:
            return self
        several = len(self.metrics) > 1
        return self.model_copy(
            update={"scheduler": effort_scheduler(self.effort, max_epochs, several=several)}
        )


__all__ = [
    "KINDS",
    "Asha",
    "AxSearch",
    "Domain",
    "Fifo",
    "Hyperband",
    "HyperoptSearch",
    "MedianStopping",
    "Mode",
    "OptunaSearch",
    "Pb2",
    "Pbt",
    "Plateau",
    "RandomSearch",
    "Scheduler",
    "SearchAlg",
    "TuneSection",
    "TuneStop",
    "default_mode",
    "effort_scheduler",
    "same_value",
]
