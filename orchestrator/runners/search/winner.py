"""A job with a `tune` section, from the search to what becomes of its winner. Imports: none of ray itself.

The run that searched trains the winner itself, as any run does: its checkpoints, model and figures are the run's own.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.checkpoints.hand_over import hand_over
from orchestrator.errors import OrchestratorError
from orchestrator.runners.ray_workers.head_watch import (
    HeadWatch,
    head_given_up,
    head_patience_s,
    leave_in_time,
)
from orchestrator.runners.recording import tags_of
from orchestrator.runners.search.search import Found, run_search
from orchestrator.runners.search.trial import HandOver, Trial
from orchestrator.runners.search.trial_runs import (
    Setting,
    checkpoint_of,
    prepared_for,
    trial_spec_of,
    uri_of,
)
from orchestrator.runs.folder import RunFolder
from orchestrator.spec.job import JobSpec

if TYPE_CHECKING:
    from orchestrator.data.prepared.prepared import Prepared
    from orchestrator.runners.chronicle import Chronicle
    from orchestrator.runners.desk import Desk
    from orchestrator.runners.job import Job
    from orchestrator.runners.ray_workers.staff import Staff
    from orchestrator.runners.watch import Watch
    from orchestrator.spec import LoadedSpec
    from orchestrator.tracking.tracker import Tracker
    from orchestrator.worker import WorkerTask

_WINNER = "winner.json"
"""In the search's folder: whose training the run's own checkpoints are of."""


def search_and_train(
    job: Job,
    task: WorkerTask,
    prepared: Prepared,
    tracker: Tracker,
    watch: Watch,
    desk: Desk,
    staffs: Sequence[Staff],
    chronicle: Chronicle,
) -> str:
    """Search, and do with the winner what `tune.then` says; 'completed' or 'stopped'.

    Raises SearchFailed where there is no winner, and what training raises.
    """
    from orchestrator.runners.ray_workers.supervise import run_ray

    section = job.loaded.spec.tune
    assert section is not None
    head = HeadWatch(math.inf if job.embedded else head_patience_s(), leave_in_time)
    setting = Setting(
        job=job,
        section=section,
        run=task.run,
        prepared=prepared,
        tracker=tracker,
        tags=tags_of(job.loaded, in_job=job.in_job),
        head=head,
        redact=watch.redact,
        say=watch.say,
    )
    with contextlib.nullcontext() if job.embedded else head:
        found = run_search(setting, staffs, watch, keep_workers=section.then != "nothing")
    if found.status == "stopped" or section.then == "nothing" or found.best is None:
        if found.status == "completed":
            task.run.write_result({"metrics": best_metrics(found)})
        return found.status
    assert found.staff is not None
    winner = _take_checkpoint if section.then == "checkpoint" else _retrain
    watch.say(f"{found.best.trial_id} has won: {_described(section.then)}")
    _tell(task.run, watch, found, "RETRAINING")
    loaded = trial_spec_of(setting, found.best.best_params or found.best.params)
    _begin(task, found.best, section.then)
    try:
        with prepared_for(setting, loaded) as own:
            task = replace(task, prepared_uri=uri_of(setting, own))
            return run_ray(
                winner(setting, task, found.best, loaded.spec, own),
                desk,
                found.staff,
                chronicle,
                say=watch.say,
                embedded=job.embedded,
            )
    finally:
        _tell(task.run, watch, found, "ENDED")
        found.staff.abandon() if head_given_up() else found.staff.close()


def _tell(run: RunFolder, watch: Watch, found: Found, state: str) -> None:
    summary = found.summary | {"state": state, "updated_s": time.time()}
    watch.show_search(summary)
    with contextlib.suppress(OSError):  # it is only shown
        run.write_search(summary)


def as_trained(loaded: LoadedSpec, run: RunFolder) -> LoadedSpec:
    """The job as it was trained in the end: with the winner's parameters, where it searched for them."""
    from orchestrator.spec.trials import trial_spec

    summary = run.read_search() if loaded.spec.tune is not None else None
    best = next(
        (one for one in (summary or {}).get("trials", ()) if one["id"] == (summary or {}).get("best")), None
    )
    return trial_spec(loaded, best["best_params"]) if best is not None else loaded


def note_recorded(run: RunFolder, tracker: Tracker) -> None:
    """Write into the search's summary which MLflow runs its trials are: the last ones are made after their end."""
    summary = run.read_search()
    if summary is None:
        return
    summary["experiment_id"] = tracker.experiment_id
    for trial in summary["trials"]:
        trial["mlflow_run_id"] = trial.get("mlflow_run_id") or tracker.child_run_id(trial["id"])
    with contextlib.suppress(OSError):  # it is only shown
        run.write_search(summary)


def best_metrics(found: Found) -> dict[str, float]:
    """The winner's figures, under the names of the run's own."""
    if found.best is None or found.best.score is None:
        return {"search/trials": float(len(found.summary["trials"]))}
    metric = str(found.summary["metric"]).replace("val/", "val_")
    return {
        "search/trials": float(len(found.summary["trials"])),
        f"best/{metric}": found.best.score,
        "best/epoch": float(found.best.best_epoch or 0),
    }


def _described(then: str) -> str:
    if then == "checkpoint":
        return "its best checkpoint is tested and becomes the model"
    return "it is trained again, on train and validation data"


def _retrain(
    setting: Setting, task: WorkerTask, best: Trial, spec: JobSpec, prepared: Prepared
) -> WorkerTask:
    """Train with the winner's parameters on all but the test data, for as many epochs as it needed for its best."""
    train = spec.train.model_copy(
        update={"max_epochs": best.best_epoch or spec.train.max_epochs, "early_stopping": None}
    )
    return replace(
        task,
        spec=_own(spec, setting.job.loaded.spec, train=train),
        train_on=("train", "val") if prepared.manifest.rows["val"] else ("train",),
    )


def _begin(task: WorkerTask, best: Trial, then: str) -> None:
    """Forget the checkpoints of another winner, which the run had before its search went on."""
    from orchestrator.worker import checkpoint_store

    run = task.run
    facts = {"then": then, "trial": best.trial_id, "epoch": best.best_epoch, "params": best.best_params}
    if run.search.read_json(_WINNER) == json.loads(json.dumps(facts)):
        return
    store = checkpoint_store(task.spec, run)
    for name in [one.name for one in store.manifests()] + store.uncommitted():
        store.discard(name)
    run.search.write_json(_WINNER, facts)


def _take_checkpoint(
    setting: Setting, task: WorkerTask, best: Trial, spec: JobSpec, prepared: Prepared
) -> WorkerTask:
    """Let the run find the winner's best checkpoint as its own last one, with nothing left to train."""
    from orchestrator.worker import checkpoint_store

    del prepared
    source = checkpoint_store(spec, setting.run.trial(best.trial_id))
    chosen = checkpoint_of(setting, HandOver(best.trial_id, best.best_epoch))
    if chosen is None or not chosen.metrics:
        chosen = source.best() or chosen
    if chosen is None:
        raise OrchestratorError(
            f"{best.trial_id} has won, but has no checkpoint", "write tune.then: retrain, and run again"
        )
    hand_over(source, chosen, checkpoint_store(spec, task.run))
    train = spec.train.model_copy(update={"max_epochs": chosen.epoch, "max_steps": None})
    return replace(task, spec=_own(spec, setting.job.loaded.spec, train=train))


def _own(spec: JobSpec, of_run: JobSpec, **changes: Any) -> JobSpec:
    """A trial's spec as that of the run itself: saved as the user wants runs to be saved."""
    return spec.model_copy(update={"checkpoint": of_run.checkpoint, **changes})
