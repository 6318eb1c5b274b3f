"""One trial of a search: in our words, and as Ray Tune's schedulers see it. Imports: the standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Literal

State = Literal["PENDING", "RUNNING", "PAUSED", "COMPLETED", "PRUNED", "FAILED", "STOPPED"]
"""COMPLETED: trained to its end, or as far as a stopper asked for. PRUNED: given up by the scheduler. STOPPED: the
search ended before it did."""
End = Literal["COMPLETED", "PRUNED", "FAILED", "STOPPED"]
Decision = Literal["go on", "pause", "stop"]
"""Of a trial: "pause" is to save and give the workers back, "stop" is to end without saving."""
Ending = Literal["completed", "paused", "stopped", "failed", "broken off"]
"""How a trial left its workers; one that was broken off by a fault of theirs goes on later."""

_TUNE_STATUS: dict[State, str] = {
    "PENDING": "PENDING",
    "RUNNING": "RUNNING",
    "PAUSED": "PAUSED",
    "COMPLETED": "TERMINATED",
    "PRUNED": "TERMINATED",
    "STOPPED": "TERMINATED",
    "FAILED": "ERROR",
}


@dataclass(frozen=True, slots=True)
class HandOver:
    """The checkpoint of a trial at the end of an epoch."""

    trial_id: str
    epoch: int


class _Checkpoints:
    """Where Tune's population based training leaves the checkpoint that a trial has to go on from."""

    checkpoint_config = SimpleNamespace(num_to_keep=None)

    def __init__(self, trial: Trial) -> None:
        self._trial = trial

    @property
    def _latest_checkpoint_result(self) -> Any:
        return SimpleNamespace(checkpoint=self._trial.checkpoint, metrics=self._trial.last_result)

    @_latest_checkpoint_result.setter
    def _latest_checkpoint_result(self, result: Any) -> None:
        self._trial.handed_over = result.checkpoint


@dataclass(eq=False)
class Trial:
    """A trial and where it stands. Hashed by identity, as Tune's schedulers keep trials in sets."""

    trial_id: str
    config: dict[str, Any]
    """Values of all domains, as the scheduler has them; those that do not hold are among them."""
    params: dict[str, Any]
    """What the trial trains with: field of the spec and value."""
    state: State = "PENDING"
    epoch: int = 0
    """The newest one reported."""
    step: int = 0
    score: float | None = None
    """The best value of the first metric so far that is a number."""
    best_epoch: int = 0
    best_params: dict[str, Any] = field(default_factory=dict)
    """Those that held in the best epoch: population based training changes them on the way."""
    newest: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    """In training."""
    error: str = ""
    why: str = ""
    """Why it was ended before its last epoch."""
    attempts: int = 0
    start_from: HandOver | None = None
    """The other trial's checkpoint that it was to go on from last: it is given that before it starts again."""
    verdict: End | None = None
    """What it becomes once it has left its workers."""
    pausing: bool = False
    """It was told to pause and has not said yet that it did. Where its checkpoint of `epoch` is there after the
    driver was killed, tell the conductor that it paused instead of running it."""
    last_result: dict[str, Any] = field(default_factory=dict)
    """As Tune's schedulers want it: `training_iteration` and metrics, none of which is infinite or NaN."""
    judged_epoch: int = 0
    """The newest one that the scheduler was told of."""
    handed_over: HandOver | None = None
    """What the scheduler has just decided it should go on from."""

    experiment_tag: str = ""
    local_experiment_path: str = ""
    local_dir: str = ""

    def __post_init__(self) -> None:
        self.evaluated_params: dict[str, Any] = {}
        self.run_metadata = SimpleNamespace(checkpoint_manager=_Checkpoints(self))
        self.temporary_state = SimpleNamespace(saving_to=None)

    def __str__(self) -> str:
        return self.trial_id

    __repr__ = __str__

    @property
    def status(self) -> str:
        """The state in Tune's words."""
        return _TUNE_STATUS[self.state]

    def is_finished(self) -> bool:
        return self.state in ("COMPLETED", "PRUNED", "FAILED", "STOPPED")

    @property
    def is_saving(self) -> bool:
        return self.pausing

    @property
    def checkpoint(self) -> HandOver | None:
        return HandOver(self.trial_id, self.epoch) if self.epoch else None

    def set_config(self, config: dict[str, Any]) -> None:
        self.config = config

    def set_experiment_tag(self, tag: str) -> None:
        self.experiment_tag = tag

    def observe(self, epoch: int, step: int, metrics: Mapping[str, float], seconds: float) -> None:
        """Take in what it reported; `score` is for `improve`."""
        self.epoch, self.step = epoch, step
        self.newest = dict(metrics)
        self.seconds = max(self.seconds, seconds)

    def improve(self, score: float) -> None:
        self.score, self.best_epoch, self.best_params = score, self.epoch, self.params

    def summary(self) -> dict[str, Any]:
        """Its part of `summary.json`."""
        return {
            "id": self.trial_id,
            "state": self.state,
            "params": self.params,
            "epoch": self.epoch,
            "score": self.score,
            "best_epoch": self.best_epoch,
            "best_params": self.best_params,
            "metrics": self.newest,
            "seconds": self.seconds,
            "error": self.error,
            "why": self.why,
            "attempts": self.attempts,
        }
