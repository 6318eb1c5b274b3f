"""Made-up specs and run folders for the tests of `runs` and of the verbs that look at runs."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import Any

from orchestrator.records import Progress
from orchestrator.runs.choose import Choice, choose_run
from orchestrator.runs.claim import HOLDER_FILE, Claim, newest_claim
from orchestrator.runs.folder import Beat, RunFolder
from orchestrator.runs.identity import Identity, identify
from orchestrator.spec.job import JobSpec
from orchestrator.storage import Folder

NO_PROCESS = 2**22 + 1
"""More than Linux ever gives."""

HALFWAY = Progress(
    epoch=3, max_epochs=6, step=120, max_steps=240, samples_per_s=3120, train_loss=0.123, eta_s=12
)


def make_spec(**changes: Any) -> JobSpec:
    """A small spec; `changes` replace whole sections."""
    spec = {
        "name": "digits",
        "data": {"source": {"kind": "sklearn", "name": "digits"}, "target": "label"},
        "model": {"name": "cnn"},
        "train": {"max_epochs": 5},
    }
    return JobSpec.model_validate(spec | changes)


def start(storage: Folder, spec: JobSpec | None = None, **options: Any) -> Choice:
    spec = spec or make_spec()
    return choose_run(storage, spec, identity_of(spec), **options)


def identity_of(spec: JobSpec) -> Identity:
    return identify(spec, "same-data", [])


def beat(run: RunFolder, *, ago_s: float = 0.0, progress: Progress | None = HALFWAY) -> None:
    """A heartbeat of the newest claim, as it was written `ago_s` seconds ago."""
    claim = newest_claim(run)
    assert claim is not None
    run.write_beat(Beat(time.time() - ago_s, claim.host, claim.pid, claim.number, progress=progress))


def kill(run: RunFolder) -> None:
    """Make the newest claim one of a process that is no more, and has been silent for ten minutes."""
    rewrite_claim(run, pid=NO_PROCESS, since_s=time.time() - 600)
    beat_ = run.read_beat()
    if beat_ is not None:
        run.write_beat(replace(beat_, time_s=time.time() - 600, pid=NO_PROCESS))


def rewrite_claim(run: RunFolder, **changes: Any) -> Claim:
    claim = newest_claim(run)
    assert claim is not None
    claim = replace(claim, **changes)
    (run.claims / str(claim.number)).write_json(HOLDER_FILE, asdict(claim))
    return claim
