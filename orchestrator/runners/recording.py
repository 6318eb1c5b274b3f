"""What a run records in MLflow besides its metrics: tags, params, artifacts, the model, the description.

Imports: tracking (no mlflow itself), export. No ray.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.records import Verdict
from orchestrator.runs.folder import RunFolder
from orchestrator.tracking.conventions import source_tags
from orchestrator.tracking.ops import LogModel, StartRun
from orchestrator.tracking.tracker import Tracker

if TYPE_CHECKING:
    from orchestrator.data.prepared import Manifest
    from orchestrator.spec import LoadedSpec

MODEL_NAME = "model"


def start_of(loaded: LoadedSpec, run: RunFolder, *, identity: str, in_job: bool) -> StartRun:
    """The MLflow run of this run folder, with the tags and params that users look for."""
    from orchestrator.spec import to_plain

    spec = loaded.spec
    plain = to_plain(spec)
    source = str(loaded.path) if loaded.path else spec.name
    tags = {
        **spec.tags,
        **source_tags(source, loaded.path.parent if loaded.path else Path.cwd(), job=in_job),
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


def record_end(
    tracker: Tracker,
    loaded: LoadedSpec,
    run: RunFolder,
    verdict: Verdict,
    manifest: Manifest | None,
    facts: Mapping[str, Any],
) -> None:
    """Record how the run ended: pictures, model and description where it succeeded, logs in any case."""
    from orchestrator.export.report import run_description

    tags = {"orchestrator.verdict": str(verdict)}
    if verdict.cause:
        tags["orchestrator.cause"] = verdict.cause
    tracker.set_tags(tags)
    if verdict.status == "SUCCEEDED" and manifest is not None:
        result = run.read_result() or {}
        for picture in _pictures(run, manifest, result):
            tracker.log_artifact(picture, "evaluation")
        tracker.log_model(_logged_model(loaded, run))
    if run.folder.is_local:
        tracker.log_artifact(run.folder.local_path() / "spec.yaml")
        if run.logs.exists():
            tracker.log_artifact(run.logs.local_path(), "logs")
    tracker.set_description(run_description(**facts))
    tracker.end_run(verdict.status)


def _pictures(run: RunFolder, manifest: Manifest, result: Mapping[str, Any]) -> list[Path]:
    matrix = result.get("confusion_matrix")
    if matrix is None:
        return []
    from orchestrator.export.pictures import confusion_matrix_picture

    folder = _local(run, "pictures")
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "confusion_matrix.png"
    confusion_matrix_picture(matrix, [str(label) for label in manifest.classes or ()], picture)
    return [picture]


def _logged_model(loaded: LoadedSpec, run: RunFolder) -> LogModel:
    from orchestrator.export.bundle import load_bundle
    from orchestrator.export.pyfunc import code_paths, pip_requirements, signature

    folder = _local(run, "model")
    if not run.model.is_local:
        run.model.download(folder)
    bundle = load_bundle(folder)
    return LogModel(
        model_dir=str(folder),
        name=MODEL_NAME,
        registered_model_name=loaded.spec.mlflow.registered_model_name,
        loader_module="orchestrator.export.pyfunc",
        code_paths=tuple(code_paths(folder)),
        pip_requirements=tuple(pip_requirements()),
        signature=signature(bundle),
        input_example=bundle.input_example,
        metadata={"orchestrator.run": run.label},
    )


def _local(run: RunFolder, name: str) -> Path:
    """The run's folder of that name, or for remote storage one beside it on this machine."""
    if run.folder.is_local:
        return (run.folder / name).local_path()
    return Path(tempfile.gettempdir()) / "orchestrator" / run.label / name
