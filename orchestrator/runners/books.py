"""Close the books: runs whose driver died get their verdict, and what MLflow has not got yet is sent.

Imports: runs, tracking (mlflow inside functions). No ray.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from orchestrator.records import Verdict
from orchestrator.runs.folder import RunFolder, list_runs
from orchestrator.runs.heartbeat import is_alive
from orchestrator.runs.reconcile import reconcile
from orchestrator.storage import Folder
from orchestrator.tracking.tracker import recover_journal

_log = logging.getLogger(__name__)
_PATIENCE_S = 20.0


def journal_folder(run: RunFolder) -> Path:
    """The tracking journal, always on this machine's disk."""
    return run.local / "tracking"


def close_books(storage: Folder, *, now_s: float) -> list[str]:
    """Set right all runs of a storage folder that no driver works on; returns what was done, a line each.

    Costs no import of mlflow where there is nothing to do.
    """
    done = [f"{run.label} had died: its run is marked FAILED" for run in reconcile(storage, _mark_dead)]
    for run in list_runs(storage):
        record = run.read_record()
        if record is None or not record.tracking_uri or not _unshipped(run) or is_alive(run, now_s):
            continue
        if _ship(run, record.tracking_uri):
            done.append(f"{run.label}: what MLflow had missed was sent")
    return done


def _unshipped(run: RunFolder) -> bool:
    """Whether the journal on this machine holds more than was shipped."""
    folder = journal_folder(run)
    try:
        size = (folder / "journal.jsonl").stat().st_size
        return int(json.loads((folder / "state.json").read_text())["offset"]) < size
    except FileNotFoundError:
        return (folder / "journal.jsonl").exists()
    except (OSError, ValueError, KeyError, TypeError):
        return True


def _ship(run: RunFolder, tracking_uri: str) -> bool:
    from orchestrator.tracking.mlflow_sink import MlflowSink

    return recover_journal(journal_folder(run), MlflowSink(tracking_uri), _PATIENCE_S)


def _mark_dead(run: RunFolder, verdict: Verdict) -> None:
    from orchestrator.tracking.mlflow_sink import mark_dead
    from orchestrator.tracking.tracker import recorded_run_id

    record = run.read_record()
    if record is None or not record.tracking_uri:
        return
    _ship(run, record.tracking_uri)
    run_id = record.mlflow_run_id or recorded_run_id(journal_folder(run))
    if run_id:
        beat = run.read_beat()
        died_ms = round(beat.time_s * 1000) if beat else None
        mark_dead(record.tracking_uri, run_id, "FAILED", verdict.reason, died_ms)
