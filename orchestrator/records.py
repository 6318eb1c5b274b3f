"""The plain facts that travel between worker, driver and tracker. Imports: the standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from orchestrator.errors import Cause

Status = Literal["RUNNING", "SUCCEEDED", "FAILED", "STOPPED"]
Wish = Literal["go on", "save", "stop", "leave"]
"""What the driver wants of the workers; "save" is to save and go on, "stop" to save and end, "leave" to end at once."""


@dataclass(frozen=True, slots=True)
class Point:
    """One value of one metric. `step` counts optimizer steps from the start of the run, never epochs."""

    key: str
    value: float
    step: int
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a run stands. Losses are `None` before they are known; `eta_s` is seconds to the end."""

    epoch: int
    max_epochs: int
    step: int
    max_steps: int
    samples_per_s: float = 0.0
    train_loss: float | None = None
    val_loss: float | None = None
    eta_s: float | None = None
    phase: Literal["starting", "training", "evaluating", "saving", "finishing"] = "training"
    step_seconds: float = 0.0
    """This attempt's time in optimizer steps."""
    stall_s: float = 0.0
    """This attempt's time that training waited for checkpoints."""
    saved_step: int = 0
    """Of the newest committed checkpoint."""
    started_step: int = 0
    """Where this attempt began."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What one rank saw go wrong, and when (seconds since the epoch): the first one is the culprit.

    `rank` is -1 where no rank is at fault, but what runs them.
    """

    rank: int
    attempt: int
    time_s: float
    error: str
    cause: Cause
    mend: str = ""
    traceback: str = ""
    host: str = ""
    exit_code: int = 1
    node: str = ""
    """Ray's id of the machine, which the driver fills in."""
    peer_lost: bool = False
    """All this rank saw is that another one left: the fault is the other's."""
    final: bool = False
    """Another attempt would only meet it again."""
    diverged: bool = False
    """The training itself came to no finite loss: of a trial, a result as others are."""
    process_exit: int | None = None
    """The exit code that user code asked for (`sys.exit`), or that the process ended with, where it is known."""


@dataclass(frozen=True, slots=True)
class Pulse:
    """A worker's sign that it moves: what it is at, at which optimizer step, and a number that grows with each."""

    phase: Literal["starting", "training", "evaluating", "saving", "finishing"] = "starting"
    step: int = 0
    beat: int = 0

    def __str__(self) -> str:
        return f"{self.phase}, step {self.step}"


@dataclass(frozen=True, slots=True)
class EpochReport:
    """What a trial of a search tells at the end of an epoch, counted from 1: the newest value of each of its metrics,
    its seconds in training so far, and whether it has come to its end, be it before the last epoch."""

    epoch: int
    step: int
    metrics: Mapping[str, float]
    seconds: float = 0.0
    final: bool = False


@dataclass(frozen=True, slots=True)
class Letter:
    """What a worker sends: points and notices, numbered from `first` and `first_notice`, and where it stands."""

    rank: int
    attempt: int
    first: int
    points: tuple[Point, ...]
    progress: Progress | None = None
    failure: Failure | None = None
    notices: tuple[str, ...] = ()
    """What the user should read while the run goes on."""
    first_notice: int = 0
    reports: tuple[EpochReport, ...] = ()
    """Of a trial: the epochs that the driver has not acknowledged yet."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The driver's answer: points below `acknowledged` are safe on its disk, notices below `notices` were shown, and
    of a trial the reports of all epochs up to `reported` are; where the wish is "go on", it holds for these epochs."""

    acknowledged: int
    wish: Wish = "go on"
    notices: int = 0
    reported: int = 0


@dataclass(frozen=True)
class Verdict:
    """The last word on a run: how it ended, why, and what to do."""

    status: Status
    exit_code: int
    reason: str
    cause: Cause | None = None
    rank: int | None = None
    mend: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        blame = f" ({self.cause})" if self.cause else ""
        rank = f" rank {self.rank}:" if self.rank is not None else ""
        mend = f". To mend: {self.mend}" if self.mend else ""
        return f"{self.status}{blame}:{rank} {self.reason.rstrip('.')}{mend}"

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
