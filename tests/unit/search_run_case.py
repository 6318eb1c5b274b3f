"""What the trials of a search have in common, without a cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from orchestrator.runners.job import resolve_job
from orchestrator.runners.search.trial_runs import Setting
from orchestrator.runs.folder import create_run
from orchestrator.spec import load_spec
from orchestrator.storage import Folder
from orchestrator.tracking.memory import MemorySink
from orchestrator.tracking.ops import StartRun
from orchestrator.tracking.tracker import Tracker
from tests.unit.tune_case import searching


@contextmanager
def setting_in(folder: Path, **tune: Any) -> Iterator[Setting]:
    """A search for a learning rate; further keys are those of `tune`."""
    loaded = load_spec(searching({"train.optimizer.lr": {"loguniform": [1e-4, 1e-1]}}, **tune))
    assert loaded.spec.tune
    storage = Folder.at(folder)
    run = create_run(storage, "searching")
    tracker = Tracker.open(folder / "tracking", MemorySink())
    tracker.start_run(StartRun("experiment", run.label, {}, {}))
    prepared: Any = SimpleNamespace(manifest=SimpleNamespace(key="key"))
    head: Any = SimpleNamespace(check=lambda: None)
    yield Setting(
        job=replace(resolve_job(loaded, inline=False, address=None), storage=storage),
        section=loaded.spec.tune,
        run=run,
        prepared=prepared,
        tracker=tracker,
        tags={},
        head=head,
        redact=str,
        say=lambda text: None,
    )
    tracker.close()
