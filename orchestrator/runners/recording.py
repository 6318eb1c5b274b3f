"""What a run records in MLflow besides its metrics: tags, params, artifacts, the model, the description.

Imports: tracking (no mlflow itself), export. No ray.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.data.prepared.manifest import PAGES
from orchestrator.export.manifest import pyfunc_fields
from orchestrator.export.pictures import (
    confusion_matrix_picture,
    loss_curves_picture,
    regression_picture,
)
from orchestrator.export.report import run_description
from orchestrator.records import Point, Verdict
from orchestrator.recovery.goodput import Account
from orchestrator.runs.folder import SPEC_FILE, RunFolder
from orchestrator.runs.logs import log_attempts
from orchestrator.storage import Folder
from orchestrator.tracking.conventions import source_tags
from orchestrator.tracking.ops import LogDataset, LogModel, StartRun
from orchestrator.tracking.recorder import Recorder
from orchestrator.tracking.tracker import Tracker

if TYPE_CHECKING:
    from orchestrator.data.prepared.manifest import Manifest
    from orchestrator.data.prepared.prepared import Prepared
    from orchestrator.spec import LoadedSpec

_log = logging.getLogger(__name__)
MODEL_NAME = "model"
ATTEMPTS_TAG = "orchestrator.attempts"
"""Tag with the number of the newest attempt."""


def start_of(loaded: LoadedSpec, run: RunFolder, *, identity: str, in_job: bool) -> StartRun:
    """The MLflow run of this run folder, with the tags and params that users look for."""
    from orchestrator.spec import to_plain

    spec = loaded.spec
    plain = to_plain(spec)
    tags = {
        **tags_of(loaded, in_job=in_job),
        "orchestrator.identity": identity,
        "orchestrator.folder": run.folder.uri,
    }
    sections = ("seed", "data", "model", "train", "resources")
    return StartRun(
        experiment=spec.mlflow.experiment_name or spec.name,
        run_name=run.label,
        tags=tags,
        params={section: plain[section] for section in sections},
        description=spec.description,
    )


def tags_of(loaded: LoadedSpec, *, in_job: bool) -> dict[str, str]:
    """The user's own tags, and those by which MLflow's UI shows where a run came from."""
    source = str(loaded.path) if loaded.path else loaded.spec.name
    folder = loaded.path.parent if loaded.path else Path.cwd()
    return {**loaded.spec.tags, **source_tags(source, folder, job=in_job)}


def record_data(tracker: Tracker, loaded: LoadedSpec, run: RunFolder, prepared: Prepared) -> None:
    """Record what the run learns from: the data set, its rows and what cleaning did to them, and the reports."""
    manifest, source = prepared.manifest, loaded.spec.data.source
    tracker.log_dataset(
        LogDataset(
            name=loaded.spec.name,
            digest=manifest.key[:36],
            source_type=source.kind,
            source=source.model_dump(mode="json", exclude_none=True),
            profile={
                "rows_read": manifest.rows_read,
                **{f"{part}_rows": n for part, n in manifest.rows.items()},
            },
        )
    )
    figures = {f"data/rows/{part}": float(count) for part, count in manifest.rows.items()}
    for number, step in enumerate(manifest.cleaning, start=1):
        figures[f"data/clean/{number}_{step['step']}"] = float(step["rows"])
    tracker.log_summary(figures | {"data/corrupt": float(manifest.corrupt)})
    kept = run.local / "data"  # prepared data may be cleared away before it is shipped
    kept.mkdir(parents=True, exist_ok=True)
    for name in PAGES:
        if name in manifest.files:
            tracker.log_artifact(Path(shutil.copy2(prepared.folder / name, kept / name)), "data")


def record_logs(tracker: Recorder, run: RunFolder, attempt: int) -> None:
    """Record the logs of an attempt as they are now. Raises OSError where the storage does not give them."""
    folder = run.attempt_logs(attempt)
    names = {info.base_name for info in folder.infos() if info.is_file and not info.base_name.startswith(".")}
    own = run.local / "logs" / f"attempt-{attempt}" / "driver.log"  # newer than its copy in remote storage
    for name in sorted(names | ({own.name} if own.exists() else set())):
        path = own.parent / name
        if not folder.is_local and not (name == own.name and own.exists()):
            path = run.local / "recorded" / f"attempt-{attempt}" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(folder.read_bytes(name))
        tracker.log_artifact(path, f"logs/attempt-{attempt}")


def record_attempts(tracker: Recorder, run: RunFolder, attempts: Sequence[Mapping[str, Any]]) -> None:
    """Record the table of a run's attempts, where there was more than one."""
    if len(attempts) > 1:
        run.local.mkdir(parents=True, exist_ok=True)
        path = run.local / "attempts.json"
        path.write_text(json.dumps(list(attempts), indent=1) + "\n")
        tracker.log_artifact(path)


def record_end(
    tracker: Tracker,
    loaded: LoadedSpec,
    run: RunFolder,
    verdict: Verdict,
    manifest: Manifest,
    seconds: float,
    account: Account,
) -> None:
    """Record how the run ended: final figures, pictures, the model where it succeeded; logs, description always."""
    tags = {"orchestrator.verdict": str(verdict)}
    if verdict.cause:
        tags["orchestrator.cause"] = verdict.cause
    tracker.set_tags(tags)
    tracker.log_summary({**verdict.metrics, **account.figures})
    tracker.set_description(_description(tracker, loaded, run, verdict, manifest, seconds, account))
    record_attempts(tracker, run, account.attempts)
    _record_spec_and_logs(tracker, run)
    if loaded.spec.train.profile is not None and run.profile.exists():
        tracker.log_artifact(_local(run.profile, run), "profile")
    if verdict.status == "SUCCEEDED":
        for picture in _drawn(run, manifest, tracker.points()):
            tracker.log_artifact(picture, "evaluation")
        if run.model.exists():  # a train function of the user's own may give none
            _log_model(tracker, loaded, run)
    tracker.end_run(verdict.status)


def _record_spec_and_logs(tracker: Tracker, run: RunFolder) -> None:
    try:
        tracker.log_artifact(_spec_file(run))
        for attempt in log_attempts(run):
            record_logs(tracker, run, attempt)
    except OSError as error:
        _log.warning("spec and logs of %s could not be recorded: %s", run.label, error)


def _spec_file(run: RunFolder) -> Path:
    if run.folder.is_local:
        return run.folder.local_path() / SPEC_FILE
    run.local.mkdir(parents=True, exist_ok=True)
    path = run.local / SPEC_FILE
    path.write_text(run.read_spec() or "")
    return path


def _log_model(tracker: Tracker, loaded: LoadedSpec, run: RunFolder) -> None:
    folder = _local(run.model, run)
    tracker.log_model(
        LogModel(
            model_dir=str(folder),
            name=MODEL_NAME,
            registered_model_name=loaded.spec.mlflow.registered_model_name,
            metadata={"orchestrator.run": run.label},
            **pyfunc_fields(folder),
        )
    )


def _description(
    tracker: Tracker,
    loaded: LoadedSpec,
    run: RunFolder,
    verdict: Verdict,
    manifest: Manifest,
    seconds: float,
    account: Account,
) -> str:
    spec, result, beat = loaded.spec, run.read_result() or {}, run.read_beat()
    searched = run.local / "search" / "summary.md"
    of_search = f"\n\n{searched.read_text()}" if searched.exists() else ""
    trained = result.get("train", {})
    progress = beat.progress if beat else None
    logged = verdict.status == "SUCCEEDED" and tracker.run_id is not None and run.model.exists()
    own = run_description(
        verdict,
        run=run.label,
        metrics=verdict.metrics,
        rows=manifest.rows,
        classes=manifest.classes,
        model=spec.model.name,
        num_parameters=result.get("num_parameters"),
        num_workers=result.get("world_size", spec.resources.max_workers),
        global_batch_size=spec.train.global_batch_size,
        epochs=result.get("epoch", progress.epoch if progress else 0),
        steps=result.get("step", progress.step if progress else 0),
        duration_s=seconds,
        samples_per_s=trained["samples"] / trained["seconds"] if trained.get("seconds") else None,
        description=spec.description,
        model_uri=f"runs:/{tracker.run_id}/{MODEL_NAME}" if logged else None,
        command=f"orchestrator run {loaded.path}" if loaded.path else None,
        attempts=account.attempts,
        goodput=account.summary,
    )
    return own + of_search


def _drawn(run: RunFolder, manifest: Manifest, points: Iterable[Point]) -> list[Path]:
    """The pictures; a run is not lost for want of one."""
    try:
        return _pictures(run, manifest, points)
    except Exception as error:  # noqa: BLE001 - drawing has many ways to fail, and none matters as much as the model
        _log.warning("the pictures of %s could not be drawn: %s", run.label, error)
        return []


def _pictures(run: RunFolder, manifest: Manifest, points: Iterable[Point]) -> list[Path]:
    """Draw the loss curves, and what the test part gave: a confusion matrix, or predicted over actual values."""
    result = run.read_result() or {}
    folder = _local(run.pictures, run)
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [folder / "loss.png"]
    loss_curves_picture(_losses(points), drawn[0])
    if matrix := result.get("confusion_matrix"):
        drawn.append(folder / "confusion_matrix.png")
        confusion_matrix_picture(matrix, [str(label) for label in manifest.classes or ()], drawn[-1])
    if pairs := result.get("predictions"):
        drawn.append(folder / "predictions.png")
        regression_picture(pairs["predicted"], pairs["actual"], drawn[-1])
    return drawn


def _losses(points: Iterable[Point]) -> dict[str, list[tuple[int, float]]]:
    """Steps and losses of the training and of the validation."""
    curves: dict[str, list[tuple[int, float]]] = {"train": [], "val": []}
    for point in points:
        part, _, name = point.key.partition("/")
        if name == "loss" and part in curves:
            curves[part].append((point.step, point.value))
    return curves


def _local(folder: Folder, run: RunFolder) -> Path:
    """A folder of the run on this machine's disk: where storage is remote, a copy, kept until it was shipped."""
    if folder.is_local:
        return folder.local_path()
    copy = run.local / Path(folder.path).name
    if folder.exists():
        folder.download(copy)
    return copy
