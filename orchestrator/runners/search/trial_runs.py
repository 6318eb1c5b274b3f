"""The trials that run now, each in a thread of its own on a group of warm workers. Imports: none of ray itself.

What a thread finds is told to the conductor under one lock; who shall run next is decided elsewhere (see `search`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.checkpoints.hand_over import hand_over
from orchestrator.errors import OrchestratorError, PlacementError, SpecError, StorageGone, TrackingError
from orchestrator.records import EpochReport, Failure, Wish
from orchestrator.runners.chronicle import Chronicle
from orchestrator.runners.desk import Desk
from orchestrator.runners.job import Job, search_paths
from orchestrator.runners.preparing import prepare_data
from orchestrator.runners.ray_workers.pool import Lease, Pool
from orchestrator.runners.search.recording import start_of_trial
from orchestrator.runners.search.trial import Ending, HandOver, Trial
from orchestrator.runs.folder import RunFolder
from orchestrator.spec.tune import TuneSection

if TYPE_CHECKING:
    from orchestrator.checkpoints.manifest import Manifest
    from orchestrator.checkpoints.store import CheckpointStore
    from orchestrator.data.prepared.prepared import Prepared
    from orchestrator.runners.ray_workers.head_watch import HeadWatch
    from orchestrator.runners.search.conductor import Conductor
    from orchestrator.spec import JobSpec, LoadedSpec
    from orchestrator.tracking.tracker import ChildTracker, Tracker
    from orchestrator.worker import WorkerTask

_log = logging.getLogger(__name__)
_SAVE_EVERY_S = 60.0


@dataclass(frozen=True)
class Setting:
    """What all trials of a search have in common."""

    job: Job
    section: TuneSection
    run: RunFolder
    prepared: Prepared
    tracker: Tracker
    tags: Mapping[str, str]
    """Of each trial's MLflow run."""
    head: HeadWatch
    redact: Callable[[str], str]
    say: Callable[[str], None]


class TrialRuns:
    """The running trials. `lock` guards the conductor; `changed` is set when something may be decided anew. `keep`
    writes down what the conductor has decided."""

    def __init__(
        self, setting: Setting, conductor: Conductor, pool: Pool, keep: Callable[[], None] = lambda: None
    ) -> None:
        self._setting, self._conductor, self._pool, self._keep = setting, conductor, pool, keep
        self.lock = threading.RLock()
        self.changed = threading.Event()
        self._desks: dict[str, Desk] = {}
        self._threads: dict[str, threading.Thread] = {}
        self.crowded = False
        """The last trial that asked for a place found none, since others hold the cluster."""
        self.facts: dict[str, dict[str, Any]] = {}
        """What the conductor need not know, by trial: when it began and ended, seconds since the epoch; the number of
        its group of workers; its MLflow run."""
        self.children: dict[str, ChildTracker] = {}
        """Of the trials that are not over."""
        self.trouble: BaseException | None = None
        """What ends the whole search: the cluster is gone, no trial finds a place, or what runs a trial is broken."""
        self._stopping = threading.Event()
        self._trained = 0
        """How many times a trial has had workers."""

    @property
    def count(self) -> int:
        return len(self._threads)

    def is_running(self, trial_id: str) -> bool:
        return trial_id in self._threads

    def start(self, trial: Trial) -> None:
        """Let a trial begin, or go on, in a thread of its own. Call with the lock held."""
        thread = threading.Thread(target=self._run, args=(trial,), name=trial.trial_id, daemon=True)
        self._threads[trial.trial_id] = thread
        thread.start()

    def stop_all(self) -> None:
        """Ask all running trials to save and end. Those that have no workers yet get none."""
        self._stopping.set()
        for desk in list(self._desks.values()):
            desk.request_stop()

    def _run(self, trial: Trial) -> None:
        try:
            self._prepare_and_train(trial)
        except BaseException as error:  # noqa: BLE001 - a fault of ours must end the search, not only its thread
            _log.exception("%s broke", trial.trial_id)
            self.trouble = error
        finally:
            with self.lock:
                self._threads.pop(trial.trial_id, None)
                self._desks.pop(trial.trial_id, None)
            self.changed.set()

    def _prepare_and_train(self, trial: Trial) -> None:
        setting, trained = self._setting, self._trained
        try:
            loaded = trial_spec_of(setting, trial.params)
            with prepared_for(setting, loaded, self._stopping) as prepared:
                if self._stopping.is_set():
                    raise KeyboardInterrupt
                self._lease_and_train(trial, self._task(trial, loaded, prepared))
        except KeyboardInterrupt:  # as preparations end, too, that are told to
            self._ended(trial, "broken off")
        except PlacementError as error:
            self._setting.say(f"{trial.trial_id} waits: {error.reason}")
            with self.lock:
                self.crowded = True
                if self.count == 1 and self._trained == trained:  # there is no other one of ours to wait for
                    self.trouble = error
            self._ended(trial, "broken off")
        except (TrackingError, StorageGone):  # no fault of the trial: any other one would meet it too
            raise
        except OrchestratorError as error:
            self._fail(trial, error)

    def _lease_and_train(self, trial: Trial, task: WorkerTask) -> None:
        lease, memory_bytes = self._pool.lease(task.spec.resources), 0
        try:
            facts = self.facts.setdefault(trial.trial_id, {})
            facts.setdefault("started_s", time.time())
            facts["group"] = lease.number
            memory_bytes = self._train(trial, task, lease)
        finally:
            self._pool.give_back(lease, memory_bytes)

    def _task(self, trial: Trial, loaded: LoadedSpec, prepared: Prepared) -> WorkerTask:
        from orchestrator.worker import WorkerTask

        setting = self._setting
        return WorkerTask(
            loaded.spec,
            setting.run.trial(trial.trial_id),
            uri_of(setting, prepared),
            search_paths(setting.job),
            gates=[epoch for epoch in self._epochs(loaded.spec) if self._gate(epoch, loaded.spec)],
            initial=setting.run.init,
        )

    def _epochs(self, spec: JobSpec) -> range:
        every = spec.train.evaluate_every_n_epochs
        return range(every, spec.train.max_epochs, every)

    def _gate(self, epoch: int, spec: JobSpec) -> bool:
        """A decision waits for the next epoch that is validated."""
        return any(
            map(self._conductor.gate, range(epoch - spec.train.evaluate_every_n_epochs + 1, epoch + 1))
        )

    def _train(self, trial: Trial, task: WorkerTask, lease: Lease) -> int:
        """Train it as far as it is wanted; what its largest process takes then, 0 where that is not known."""
        from orchestrator.runners.ray_workers.supervise import RunFailed, run_trial

        setting = self._setting
        chronicle = Chronicle(task.run, self.child_of(trial), setting.redact, began_s=time.monotonic())

        def tell(text: str) -> None:
            _log.info("%s: %s", trial.trial_id, text)

        desk = Desk(
            chronicle.log_points, on_notice=tell, on_report=lambda report: self._decide(trial, report)
        )
        self._desks[trial.trial_id] = desk
        if self._stopping.is_set():  # just now, by someone who did not see the desk
            desk.request_stop()
        try:
            done = run_trial(
                task,
                desk,
                lease.staff,
                chronicle,
                setting.head,
                say=tell,
                waiting=lambda: self._pool.swap(lease),
            )
        except RunFailed as error:
            self._trained += error.failure.rank >= 0
            if error.failure.rank < 0:  # no rank's fault: the next trial would meet it too
                self.trouble = error
                self._ended(trial, "broken off")
                return 0
            chronicle.attempt_failed(error.failure, failures=desk.failures)
            chronicle.close()
            self._fail(trial, error, error.failure)
            return 0
        finally:
            trial.attempts = max(trial.attempts, desk.attempt)
            self.facts[trial.trial_id]["group"] = lease.number
        chronicle.attempt_ended(done.status)
        if desk.failures:  # the post-mortems of attempts before it
            chronicle.close()
        self._trained += 1
        self.crowded = False
        if done.status == "completed":
            self._ended(trial, "completed")
        elif done.status == "left":
            self._ended(trial, "stopped")
        else:
            self._ended(trial, "paused" if desk.decided == "stop" and done.ended else "broken off")
        return done.memory_bytes

    def child_of(self, trial: Trial) -> ChildTracker:
        """The trial's own run in MLflow."""
        if trial.trial_id not in self.children:
            setting, known = self._setting, self.facts.get(trial.trial_id, {})
            start = start_of_trial(
                setting.run.label,
                trial.trial_id,
                trial.params,
                setting.tags,
                run_id=known.get("mlflow_run_id"),
            )
            self.children[trial.trial_id] = setting.tracker.child(trial.trial_id, start)
        return self.children[trial.trial_id]

    def _decide(self, trial: Trial, report: EpochReport) -> Wish:
        with self.lock:
            decision = self._conductor.report(trial.trial_id, report)
        if decision != "go on":
            self.changed.set()
        if decision == "pause":  # what it saves now, others may take over
            self._keep()
        if decision == "go on":
            return "go on"
        kept = self._setting.section.then == "checkpoint" and trial.verdict != "PRUNED"
        return "stop" if decision == "pause" or kept else "leave"

    def _fail(self, trial: Trial, error: OrchestratorError, failure: Failure | None = None) -> None:
        failure = failure or Failure(
            rank=-1,
            attempt=0,
            time_s=time.time(),
            error=error.reason,
            cause=error.cause,
            mend=error.mend,
            exit_code=error.exit_code,
        )
        failure = replace(
            failure, error=self._setting.redact(failure.error), mend=self._setting.redact(failure.mend)
        )
        self._setting.say(f"{trial.trial_id} failed ({failure.cause}): {failure.error}")
        self._ended(trial, "failed", failure)

    def _ended(self, trial: Trial, how: Ending, failure: Failure | None = None) -> None:
        with self.lock:
            self.facts.setdefault(trial.trial_id, {})["ended_s"] = time.time()
            self._conductor.ended(trial.trial_id, how, failure)
        self.changed.set()


def trial_spec_of(setting: Setting, params: Mapping[str, Any]) -> LoadedSpec:
    """The job of a trial with these parameters. Where the user has not said how to save, a trial saves at its end and
    now and then: its weights are wanted only if it wins, and to go on after a fault."""
    from orchestrator.spec.trials import trial_spec

    loaded = trial_spec(setting.job.loaded, params)
    if setting.section.then == "checkpoint" or "checkpoint" in loaded.document:
        return loaded
    seldom = loaded.spec.checkpoint.model_copy(
        update={"every_n_epochs": loaded.spec.train.max_epochs, "every": _SAVE_EVERY_S}
    )
    return replace(loaded, spec=loaded.spec.model_copy(update={"checkpoint": seldom}))


@contextlib.contextmanager
def prepared_for(
    setting: Setting, loaded: LoadedSpec, stop: threading.Event | None = None
) -> Iterator[Prepared]:
    """The data of a trial: that of all, or its own where what makes the data differs. With `data.cache: false` its own
    is removed again afterwards.

    Raises what `prepare_data` does, KeyboardInterrupt where `stop` is set meanwhile.
    """
    from orchestrator.data.preparing.prepare import discard

    if _data_of(loaded.spec) == _data_of(setting.job.loaded.spec):
        yield setting.prepared
        return
    prepared = prepare_data(replace(setting.job, loaded=loaded), say=_log.info, stop=stop)
    try:
        yield prepared
    finally:
        discard(loaded.spec.data, setting.job.storage, prepared)


def uri_of(setting: Setting, prepared: Prepared) -> str:
    """Where the workers find it."""
    from orchestrator.data.preparing.prepare import prepared_folder

    return prepared_folder(setting.job.storage, prepared.manifest.key).uri


def give_checkpoint(setting: Setting, trial: Trial) -> None:
    """Let a trial that takes over another's state find it as its own newest checkpoint."""
    wanted = trial.start_from
    assert wanted is not None
    chosen = checkpoint_of(setting, wanted)
    if chosen is None:
        if checkpoint_of(setting, HandOver(trial.trial_id, wanted.epoch)) is not None:
            return  # an earlier driver has given it, and the other one went on since
        raise OrchestratorError(
            f"{trial.trial_id} should go on from {wanted.trial_id}, which has no checkpoint of epoch {wanted.epoch}",
            "start the search anew with --fresh",
        )
    hand_over(_store(setting, wanted.trial_id), chosen, _store(setting, trial.trial_id))


def checkpoint_of(setting: Setting, wanted: HandOver) -> Manifest | None:
    """A trial's checkpoint at the end of an epoch, if it is there, or else one in the middle of the next."""
    after = [one for one in _store(setting, wanted.trial_id).manifests() if one.epoch == wanted.epoch]
    evaluated = [one for one in after if one.metrics]
    return next(iter(evaluated or after), None)


def forget_unknown(setting: Setting, trial: Trial) -> None:
    """Remove those checkpoints of a trial that come after epochs which it reported in vain, as the driver died: going
    on from there, it would not report them again."""
    try:
        every = trial_spec_of(setting, trial.params).spec.train.evaluate_every_n_epochs
    except SpecError:  # it fails once it is its turn
        return
    store = _store(setting, trial.trial_id)
    for manifest in store.manifests():
        reported = manifest.epoch if manifest.metrics else manifest.epoch - manifest.epoch % every
        if reported > trial.epoch:
            _log.info("%s goes back behind epoch %d, of which nothing is known", trial, reported)
            store.discard(manifest.name)


def _store(setting: Setting, trial_id: str) -> CheckpointStore:
    from orchestrator.worker import checkpoint_store

    return checkpoint_store(setting.job.loaded.spec, setting.run.trial(trial_id))


def _data_of(spec: JobSpec) -> object:
    return spec.data, spec.seed, spec.train.task
