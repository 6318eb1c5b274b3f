"""The exception tree. Every error says what is wrong, and what to change.

    OrchestratorError          exit 1
    ├── UsageError             exit 2   a bad argument or setting
    │   ├── SpecError          exit 2   one or more faults of a job spec, all at once
    │   ├── SourceError        exit 2   the data that a spec names cannot be read as it says
    │   ├── MissingPackage     exit 2   an optional package is not installed
    │   └── Infeasible         exit 2   the cluster can never run what was asked for
    ├── DataError              exit 1   data went bad in the course of the run
    ├── StorageGone            exit 1   a folder that was there is away with the storage it lies on
    ├── UserCodeError          exit 1   the user's own model, loss or metric raised
    ├── Diverged               exit 1   the loss became infinite or not a number
    ├── OutOfMemory            exit 1   not even one sample fits into a worker's memory
    ├── CheckpointError        exit 1   a checkpoint is damaged or does not fit
    ├── TrackingError          exit 1   MLflow refused something for good
    └── PlacementError         exit 75  the workers could not be placed in time; the same command goes on

All of them survive pickling, since they cross process boundaries. Imports: the standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

Cause = Literal[
    "user error", "out of memory", "data", "hardware", "preemption", "control plane", "time limit", "internal"
]


class OrchestratorError(Exception):
    """Base of all errors that the orchestrator raises on purpose.

    `reason` says what is wrong and where; `mend` says what to change (may be empty).
    """

    exit_code: ClassVar[int] = 1
    """75 (EX_TEMPFAIL of sysexits.h) where the same command may succeed later."""
    cause: ClassVar[Cause] = "internal"
    retry: ClassVar[bool] = True
    """Whether another attempt may help, where the cause allows one."""

    def __init__(self, reason: str, mend: str = "") -> None:
        super().__init__(reason, mend)
        self.reason = reason
        self.mend = mend

    def __str__(self) -> str:
        return f"{self.reason.rstrip('.')}. {self.mend}" if self.mend else self.reason


class UsageError(OrchestratorError):
    exit_code = 2
    cause: ClassVar[Cause] = "user error"


@dataclass(frozen=True)
class Fault:
    """One fault of a job spec: where it stands, what is wrong, what to write instead."""

    field: str
    reason: str
    mend: str = ""
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = (
            f"{self.file}:{self.line}: " if self.file and self.line else f"{self.file}: " if self.file else ""
        )
        field = f"{self.field}: " if self.field else ""
        return f"{place}{field}{self.reason}" + (f". {self.mend}" if self.mend else "")


class SpecError(UsageError):
    """All faults of a spec, reported together."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        self.faults = tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))

    def __reduce__(self) -> tuple[type[SpecError], tuple[Any, ...]]:
        return type(self), (self.faults,)


class SourceError(UsageError):
    cause = "data"


class MissingPackage(UsageError):
    pass


class Infeasible(UsageError):
    pass


class DataError(OrchestratorError):
    cause = "data"


class StorageGone(OrchestratorError):
    cause = "hardware"


class UserCodeError(OrchestratorError):
    cause = "user error"


class Diverged(OrchestratorError):
    cause = "user error"


class OutOfMemory(OrchestratorError):
    cause = "out of memory"
    retry = False


class CheckpointError(OrchestratorError):
    cause = "hardware"


class TrackingError(OrchestratorError):
    cause = "control plane"


class PlacementError(OrchestratorError):
    cause = "control plane"
    exit_code = 75
