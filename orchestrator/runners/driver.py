"""`run_job`: a job spec from beginning to end, wherever its workers are.

Ray starts in one thread while the data is prepared in another and MLflow is reached by the tracker's own: what
can overlap, does. Imports: everything above the runners; ray only in the files that are made for it.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import OrchestratorError, TrackingError
from orchestrator.monitor.log_copy import copied_log
from orchestrator.monitor.progress_lines import format_verdict
from orchestrator.monitor.rank_log import rank_log
from orchestrator.records import Verdict
from orchestrator.runners import verdicts
from orchestrator.runners.books import close_books, journal_folder
from orchestrator.runners.chronicle import Chronicle
from orchestrator.runners.ending import let_go, on_storage, write_record, write_verdict
from orchestrator.runners.environment import environment
from orchestrator.runners.job import Job, resolve_job, search_paths
from orchestrator.runners.preparing import prepare_data
from orchestrator.runners.ray_workers.start import (
    NODES_JOIN_S,
    connected,
    submission_id,
    wait_until_fits,
)
from orchestrator.runners.recording import record_data, record_end, start_of
from orchestrator.runners.result import Result
from orchestrator.runners.stop_signals import stop_signals
from orchestrator.runners.watch import Observer, Silent, Watch
from orchestrator.runs.choose import Choice, choose_run
from orchestrator.runs.folder import RunFolder
from orchestrator.runs.heartbeat import Heartbeat
from orchestrator.runs.identity import identify
from orchestrator.runs.logs import log_attempts
from orchestrator.tracking.links import run_link, ui_base
from orchestrator.tracking.tracker import Tracker

if TYPE_CHECKING:
    from orchestrator.data.prepared.prepared import Prepared
    from orchestrator.runners.ray_workers.staff import Staff
    from orchestrator.spec import JobSpec, LoadedSpec
    from orchestrator.worker import WorkerTask

_log = logging.getLogger(__name__)
_TRACKING_PATIENCE_S = 60.0


def run_job(
    loaded: LoadedSpec,
    *,
    inline: bool = False,
    address: str | None = None,
    fresh: bool = False,
    resume: str | None = None,
    observer: Observer | None = None,
) -> Result:
    """Run a spec to its end and say how it ended; a failure of the training is a verdict, not an exception.

    Raises OrchestratorError where the run could not begin: a bad spec, data that is not there, a run that
    another driver holds, a cluster that is too small or does not answer.
    """
    began = time.monotonic()
    from orchestrator.data.preparing.reports import notable
    from orchestrator.spec import redact, secret_values

    job = resolve_job(loaded, inline=inline, address=address)
    secrets = secret_values(loaded.spec)
    watch = Watch(observer or Silent(), functools.partial(redact, secrets=list(secrets.values())))
    with environment(secrets), contextlib.ExitStack() as stack:
        prepared, choice, staffs = _prepare(job, watch, stack, fresh=fresh, resume=resume)
        run = choice.run
        watch.heartbeat = Heartbeat(run, choice.claim, watch.last_progress, watch.ask_to_stop)
        stack.enter_context(watch.heartbeat)
        logs, name = run.local / "logs", _log_name(run)
        stack.enter_context(copied_log(logs, run.logs, name))
        stack.enter_context(rank_log(logs / name, watch.redact, printed=False))
        watch.say(choice.why)
        for line in (prepared.manifest.summary(), *notable(prepared.folder)):
            watch.say(line)
        with on_storage(run):
            tracker = _open_tracker(job, run, stack)
            watch.chronicle = Chronicle(run, tracker, watch.redact, began_s=began)
            watch.heartbeat.keep = watch.chronicle.keep
            record_data(tracker, loaded, run, prepared)
        with stop_signals(watch.ask_to_stop):
            verdict = _execute(job, run, prepared, watch, staffs, tracker)
        result = _conclude(job, run, prepared, tracker, verdict, time.monotonic() - began, watch)
    try:
        for line in close_books(job.storage, now_s=time.time()):
            watch.say(line)
    except OSError as error:  # which is the trouble of other runs
        watch.say(f"the books of {job.storage.uri} could not be closed: {error}")
    return replace(result, resumed=choice.resumed)


def _prepare(
    job: Job,
    watch: Watch,
    stack: contextlib.ExitStack,
    *,
    fresh: bool,
    resume: str | None,
) -> tuple[Prepared, Choice, list[Staff]]:
    """Start Ray and prepare the data at the same time, then choose the run. The workers come up meanwhile."""
    from orchestrator.data.preparing.prepare import discard
    from orchestrator.data.sources.fingerprint import fingerprint, memo_file
    from orchestrator.imports import add_search_paths, check_object
    from orchestrator.runners.init_from import fetch_initial, place_initial

    loaded, spec = job.loaded, job.loaded.spec
    add_search_paths(loaded.search_paths)
    named = (spec.model.name, spec.train.function or "", spec.train.loss.name, *(spec.train.metrics or ()))
    for name in named:
        if ":" in name:
            check_object(name)  # before Ray takes its time
    source = fingerprint(spec.data, [str(path) for path in loaded.search_paths], memo_file(job.storage))
    initial = None
    if spec.init_from is not None:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="orchestrator-init-"))
        initial = fetch_initial(spec.init_from, job.storage, job.tracking_uri, Path(scratch))
    identity = identify(spec, source, loaded.search_paths, initial.sha256 if initial else "")
    there: Future[list[Staff]] = Future()  # Ray is, and the workers are on their way
    staffs: list[Staff] = []
    stop = threading.Event()
    with ThreadPoolExecutor(2, thread_name_prefix="prepare") as pool, _set_on_error(stop):
        preparing: Future[Prepared] = pool.submit(
            prepare_data,
            job,
            fingerprint=source,
            cluster=None if job.inline else functools.partial(_cluster_for_data, there),
            say=watch.say,
            stop=stop,
        )
        if not job.inline:
            # While Ray's processes come up there is time to import torch.
            pool.submit(_import_after, preparing, "orchestrator.worker")
            try:
                widest = _widest(loaded)
                stack.enter_context(connected(widest, job.address))
                wait_until_fits(widest, 0.0 if job.embedded else NODES_JOIN_S, watch.say)
                staffs = _open_staffs(job, stack)
            except BaseException as error:
                there.set_exception(error)  # preparation may wait for it
                raise
            there.set_result(staffs)
        prepared = preparing.result()
    stack.callback(discard, spec.data, job.storage, prepared)
    choice = choose_run(job.storage, spec, identity, fresh=fresh, resume=resume)
    stack.callback(let_go, choice.run, choice.claim)
    if initial is not None:
        place_initial(initial, choice.run)
    return prepared, choice, staffs


def _import_after(preparing: Future[Prepared], module: str) -> None:
    """Not beside it: SciPy and others look for torch among the loaded modules, and fail where it is half loaded."""
    if preparing.exception() is None:
        importlib.import_module(module)


@contextlib.contextmanager
def _set_on_error(stop: threading.Event) -> Iterator[None]:
    """An error, and Ctrl-C, end the preparation too, which would be waited for."""
    try:
        yield
    except BaseException:
        stop.set()
        raise


def _widest(loaded: LoadedSpec) -> JobSpec:
    """The job, or that of its trials which takes the most of the cluster."""
    if loaded.spec.tune is None:
        return loaded.spec
    from orchestrator.runners.search_plan import widest_trial

    return widest_trial(loaded, None)[0].spec


def _open_staffs(job: Job, stack: contextlib.ExitStack) -> list[Staff]:
    """Let the workers' processes come up, and import what they need, while the data is prepared: those of a run, or
    of as many trials of a search as run side by side."""
    from orchestrator.runners.ray_workers.staff import Staff

    spec = job.loaded.spec
    if spec.tune is None:
        staffs = [Staff(spec.resources)]
    else:
        from orchestrator.runners.ray_workers.pool import num_side_by_side
        from orchestrator.spec import to_plain
        from orchestrator.spec.space import SearchSpace

        forget = tuple(search_paths(job))
        num_trials = SearchSpace.of(spec.tune, to_plain(spec)).num_trials(spec.tune.num_samples)
        staffs = [Staff(spec.resources, forget) for _ in range(min(num_side_by_side(spec), num_trials))]
    for staff in staffs:
        stack.callback(staff.close)
        staff.open_early()
    return staffs


def _cluster_for_data(there: Future[list[Staff]]) -> None:
    """Wait for Ray, where it shall prepare the data: the workers' places are given back for so long."""
    for staff in there.result():
        staff.close()


def _open_tracker(job: Job, run: RunFolder, stack: contextlib.ExitStack) -> Tracker:
    from orchestrator.spec import render
    from orchestrator.tracking.mlflow_sink import mlflow_process

    run.write_spec(render(job.loaded.spec))
    record = run.read_record()
    assert record is not None
    tracker = Tracker.open(journal_folder(run), stack.enter_context(mlflow_process(job.tracking_uri)))
    start = start_of(job.loaded, run, identity=str(record.identity.get("hash", "")), in_job=job.in_job)
    tracker.start_run(replace(start, run_id=record.mlflow_run_id))
    run.update_record(
        tracking_uri=job.tracking_uri,
        experiment_name=start.experiment,
        submission_id=submission_id(),
    )
    return tracker


def _execute(
    job: Job, run: RunFolder, prepared: Prepared, watch: Watch, staffs: list[Staff], tracker: Tracker
) -> Verdict:
    """Train, after a search where the job has one; whatever happens becomes a verdict."""
    from orchestrator.data.preparing.prepare import prepared_folder
    from orchestrator.runners.desk import Desk
    from orchestrator.runners.inline import run_inline
    from orchestrator.worker import WorkerTask

    began = time.monotonic()
    chronicle = watch.chronicle
    assert chronicle is not None
    watch.desk = desk = Desk(chronicle.log_points, watch.show, watch.say)
    if watch.stop is not None:
        desk.request_stop()
    prepared_uri = prepared_folder(job.storage, prepared.manifest.key).uri
    task = WorkerTask(job.loaded.spec, run, prepared_uri, search_paths(job))
    try:
        if job.loaded.spec.tune is not None:
            from orchestrator.runners.search.winner import search_and_train

            status = search_and_train(job, task, prepared, tracker, watch, desk, staffs, chronicle)
        elif not staffs:
            chronicle.workers_ready(1)
            status = run_inline(task, desk)
        else:
            from orchestrator.runners.ray_workers.supervise import run_ray

            status = run_ray(task, desk, staffs[0], chronicle, say=watch.say, embedded=job.embedded)
    except KeyboardInterrupt:
        chronicle.attempt_ended("killed")
        return verdicts.stopped("killed", 130, *_saved(task))
    except Exception as error:  # noqa: BLE001 - whatever ends a run becomes its verdict
        for failure in desk.failures:
            _log.info(
                "rank %d, attempt %d: %s\n%s", failure.rank, failure.attempt, failure.error, failure.traceback
            )
        _log.info("the run ended", exc_info=error)
        if watch.stop is not None:
            chronicle.attempt_ended("killed")
            return verdicts.stopped(*watch.stop, *_saved(task))
        verdict = verdicts.failed(error, desk.failures)
        chronicle.attempt_failed(verdicts.as_failure(verdict, desk.failures), failures=desk.failures)
        return _hidden(verdict, watch.redact)
    chronicle.attempt_ended(status)
    if status == "completed":
        return verdicts.succeeded((run.read_result() or {}).get("metrics", {}), time.monotonic() - began)
    return verdicts.stopped(*(watch.stop or ("stopped", 143)), *_saved(task))


def _hidden(verdict: Verdict, redact: Callable[[str], str]) -> Verdict:
    return replace(verdict, reason=redact(verdict.reason), mend=redact(verdict.mend))


def _log_name(run: RunFolder) -> str:
    """The driver's log among the run's logs, beside those of the attempt that its workers are about to begin."""
    return f"attempt-{max(log_attempts(run), default=0) + 1}/driver.log"


def _saved(task: WorkerTask) -> tuple[int, str]:
    """The step up to which a run is saved, 0 where it is not; and how far its search is, in words."""
    searched = ""
    if task.spec.tune is not None and (summary := task.run.read_search()) is not None:
        from orchestrator.export.search_table import num_finished

        searched = f"{num_finished(summary)} of {summary['num_samples']} trials have ended"
    return _saved_step(task), searched


def _saved_step(task: WorkerTask) -> int:
    from orchestrator.worker import checkpoint_store

    try:
        manifests = checkpoint_store(task.spec, task.run).manifests()
    except OSError as error:  # it shall not keep the run from its verdict
        _log.warning("the checkpoints of %s cannot be listed: %s", task.run.label, error)
        return 0
    return manifests[-1].step if manifests else 0


def _as_trained(loaded: LoadedSpec, run: RunFolder) -> LoadedSpec:
    if loaded.spec.tune is None:
        return loaded
    from orchestrator.runners.search.winner import as_trained

    return as_trained(loaded, run)


def _conclude(
    job: Job,
    run: RunFolder,
    prepared: Prepared,
    tracker: Tracker,
    verdict: Verdict,
    seconds: float,
    watch: Watch,
) -> Result:
    """Write the verdict, record the end in MLflow, and give back what the caller wants to know.

    Raises OrchestratorError where another driver has taken the run over: then nothing of it is touched.
    """
    if watch.heartbeat is not None and watch.heartbeat.lost:
        raise OrchestratorError(f"another driver has taken over {run.label}", "this one ends")
    chronicle = watch.chronicle
    assert chronicle is not None
    _log.info("%s", format_verdict(verdict, run.label))
    write_verdict(run, verdict, watch.say)
    watch.say("recording the run in MLflow")
    chronicle.close()
    account = chronicle.account()
    try:
        record_end(tracker, _as_trained(job.loaded, run), run, verdict, prepared.manifest, seconds, account)
    except (TrackingError, OSError) as error:  # which changes nothing of how the run ended
        watch.say(f"the end of {run.label} could not be recorded in MLflow: {error}")
    shipped = tracker.close(_TRACKING_PATIENCE_S)
    if not shipped:
        watch.say(
            f"MLflow at {job.tracking_uri} took not everything ({tracker.problem or 'no answer'}); the rest waits "
            f"in {journal_folder(run)} and is sent by the next run"
        )
    for refusal in tracker.refused:
        watch.say(f"MLflow refused: {refusal}")
    write_record(run, chronicle.keep, watch.say)
    if job.loaded.spec.tune is not None:
        from orchestrator.runners.search.winner import note_recorded

        note_recorded(run, tracker)
    result = run.read_result() or {}
    checkpoint = result.get("checkpoint")
    link = None
    if tracker.run_id and tracker.experiment_id:
        link = run_link(ui_base(job.tracking_uri), tracker.experiment_id, tracker.run_id)
    return Result(
        run=run.label,
        status=verdict.status,
        verdict=verdict,
        metrics=verdict.metrics,
        folder=run.folder.uri,
        checkpoint=(run.checkpoints / checkpoint).uri if checkpoint else None,
        model=tracker.model_uri if verdict.status == "SUCCEEDED" else None,
        mlflow_run_id=tracker.run_id,
        tracking_uri=job.tracking_uri,
        link=link,
        seconds=seconds,
        goodput=account.summary,
    )
