"""Which run a driver works on: the newest unfinished one of its identity, a named one, or the next number.

Whoever gets a run here holds its claim: nobody else drives it until `release_claim`, or until he dies.
Imports: runs, spec, the standard library.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.errors import UsageError
from orchestrator.runs.claim import Claim, newest_claim, release_claim, take_claim
from orchestrator.runs.folder import RunFolder, RunRecord, create_run, list_runs
from orchestrator.runs.identity import Identity, differences
from orchestrator.spec.job import JobSpec
from orchestrator.storage import Folder


@dataclass(frozen=True)
class Choice:
    """The run to drive and the claim on it. `why` is a sentence for the user."""

    run: RunFolder
    resumed: bool
    why: str
    claim: Claim


def choose_run(
    storage: Folder, spec: JobSpec, identity: Identity, *, fresh: bool = False, resume: str | None = None
) -> Choice:
    """Choose and claim the run; its `run.json` is written, and an earlier ending of it is forgotten.

    `resume` is `digits-3` or just `3`. Raises UsageError where that run does not fit, with the difference,
    and where another driver is at work on the chosen run.
    """
    if fresh and resume is not None:
        raise UsageError("--fresh and --resume exclude each other", "give one of them")
    if resume is not None:
        return _resume(_named_run(storage, spec.name, resume), spec, identity)
    if fresh:
        return _start(storage, spec, identity, "a fresh run was asked for")
    runs = list_runs(storage, spec.name)
    for run in reversed(runs):
        if not _goes_on(run, spec, identity):
            continue
        claim = _claim(run)
        if _goes_on(run, spec, identity):  # still so, now that nobody else can change it
            return _continue(run, spec, claim, f"{run.label} is unfinished and of the same identity")
        release_claim(run, claim)
    return _start(
        storage, spec, identity, "no run before it" if not runs else "no unfinished run of this identity"
    )


def _goes_on(run: RunFolder, spec: JobSpec, identity: Identity) -> bool:
    record, verdict = run.read_record(), run.read_verdict()
    return (
        record is not None
        and Identity.from_dict(record.identity).hash == identity.hash
        and not _is_shorter(spec, record)
        and (verdict is None or verdict.status != "SUCCEEDED")
    )


def _resume(run: RunFolder, spec: JobSpec, identity: Identity) -> Choice:
    record = run.read_record()
    recorded = Identity.from_dict(record.identity) if record else identity
    if record is None or recorded.hash != identity.hash:
        changed = differences(recorded, identity, run.read_spec(), spec)
        raise UsageError(
            f"{run.label} is not the same work: " + "; ".join(changed or ["its identity differs"]),
            "undo the change, or start a new run with --fresh",
        )
    if _is_shorter(spec, record):
        raise UsageError(
            f"{run.label} was planned for {_length(record.max_epochs, record.max_steps)}, "
            f"more than this spec's {_length(spec.train.max_epochs, spec.train.max_steps)}",
            "give at least as many, or start a new run with --fresh",
        )
    claim = _claim(run)
    verdict = run.read_verdict()
    longer = (record.max_epochs, record.max_steps) != (spec.train.max_epochs, spec.train.max_steps)
    longer = longer or _searches_more(spec, record)
    if verdict is not None and verdict.status == "SUCCEEDED" and not longer:
        release_claim(run, claim)
        raise UsageError(
            f"{run.label} is finished",
            f"raise {_knobs(spec)} to go on with it, or start a new run with --fresh",
        )
    return _continue(run, spec, claim, f"--resume names {run.label}")


def _start(storage: Folder, spec: JobSpec, identity: Identity, why: str) -> Choice:
    run = create_run(storage, spec.name)
    claim = _claim(run)
    with _undone(run, claim):
        run.write_record(
            RunRecord(
                name=run.name,
                number=run.number,
                identity=identity.to_dict(),
                created_s=time.time(),
                **_extent(spec),
            )
        )
    return Choice(run, resumed=False, why=f"starting {run.label}: {why}", claim=claim)


def _continue(run: RunFolder, spec: JobSpec, claim: Claim, why: str) -> Choice:
    with _undone(run, claim):
        if run.read_verdict() is None:
            why += "; its last driver was broken off without a verdict"
        run.clear_ending()
        run.update_record(**_extent(spec))
    return Choice(run, resumed=True, why=f"resuming {run.label}: {why}", claim=claim)


def _claim(run: RunFolder) -> Claim:
    try:
        claim = take_claim(run, time.time())
        holder = newest_claim(run) if claim is None else None
    except OSError as error:
        raise _no_storage(run, error) from error
    if claim is not None:
        return claim
    held = f" ({holder})" if holder is not None and holder.host else ""
    raise UsageError(
        f"another driver is at work on {run.label}{held}",
        f"wait for it, stop it with 'orchestrator stop {run.label}', or start a new run with --fresh",
    )


@contextlib.contextmanager
def _undone(run: RunFolder, claim: Claim) -> Iterator[None]:
    """Give the run back where the storage fails."""
    try:
        yield
    except OSError as error:
        with contextlib.suppress(OSError):
            release_claim(run, claim)
        raise _no_storage(run, error) from error


def _no_storage(run: RunFolder, error: OSError) -> UsageError:
    return UsageError(
        f"{run.label} cannot be begun, as {run.folder.uri} cannot be read or written: {error}",
        "run again when the storage is there and has room, or name another one with --storage",
    )


def _named_run(storage: Folder, name: str, text: str) -> RunFolder:
    runs = list_runs(storage, name)
    for run in runs:
        if text in (run.label, str(run.number)):
            return run
    known = ", ".join(run.label for run in runs[-20:])
    raise UsageError(
        f"no run '{text}' of the job '{name}' in {storage.uri}",
        f"known runs: {known}" if known else "it has no runs yet; leave --resume out",
    )


def _extent(spec: JobSpec) -> dict[str, Any]:
    """How far a run goes, as `run.json` has it."""
    found: dict[str, Any] = {"max_epochs": spec.train.max_epochs, "max_steps": spec.train.max_steps}
    if spec.tune is not None:
        found |= {"num_samples": spec.tune.num_samples, "time_budget_s": spec.tune.time_budget}
    return found


def _searches_more(spec: JobSpec, record: RunRecord) -> bool:
    """Whether a search that ended well may have more trials now, or more time."""
    if spec.tune is None or record.num_samples is None:
        return False
    before_s = math.inf if record.time_budget_s is None else record.time_budget_s
    now_s = math.inf if spec.tune.time_budget is None else spec.tune.time_budget
    return spec.tune.num_samples > record.num_samples or now_s > before_s


def _knobs(spec: JobSpec) -> str:
    if spec.tune is None:
        return "train.max_epochs or train.max_steps"
    return "tune.num_samples (or tune.time_budget, where it was used up)"


def _is_shorter(spec: JobSpec, record: RunRecord) -> bool:
    return spec.train.max_epochs < record.max_epochs or (spec.train.max_steps or math.inf) < (
        record.max_steps or math.inf
    )


def _length(max_epochs: int, max_steps: int | None) -> str:
    return f"{max_epochs} epochs" + (f" and at most {max_steps} steps" if max_steps else "")
