"""`run_search`: a job's search from its first trial to its winner, and on from where an earlier driver left it.

The conductor decides, trials run in threads of their own (`trial_runs`), and the main thread, which signals reach,
starts them, writes down what was decided, and shows how it stands. Imports: ray, inside functions.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from orchestrator.errors import OrchestratorError, TrackingError
from orchestrator.records import Failure
from orchestrator.runners.job import search_paths
from orchestrator.runners.ray_workers.pool import Pool, num_side_by_side
from orchestrator.runners.search.conductor import Conductor
from orchestrator.runners.search.journal import Journal
from orchestrator.runners.search.recording import (
    record_hand_over,
    record_search_end,
    record_search_progress,
    record_trial_end,
)
from orchestrator.runners.search.trial import HandOver, Trial
from orchestrator.runners.search.trial_runs import (
    Setting,
    TrialRuns,
    checkpoint_of,
    forget_unknown,
    give_checkpoint,
    trial_spec_of,
)
from orchestrator.spec import to_plain
from orchestrator.spec.space import SearchSpace

if TYPE_CHECKING:
    from orchestrator.runners.ray_workers.staff import Staff
    from orchestrator.runners.watch import Watch

_log = logging.getLogger(__name__)
_WAIT_S = 0.2
_SHOW_EVERY_S = 1.0
_FLUSH_EVERY_S = 0.5
_RECORD_EVERY_S = 5.0
_LOOK_EVERY_S = 5.0
_FACTS = ("started_s", "ended_s", "group", "mlflow_run_id")
_SHARE = 0.1
"""At most this part of the driver's time goes into showing how the search stands."""


class SearchFailed(OrchestratorError):
    """No winner: `failure` is what the verdict shall tell."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.error, failure.mend)
        self.failure = failure


@dataclass(frozen=True)
class Found:
    """How a search ended. `best` is None where it was stopped before, or has several objectives."""

    status: str
    """'completed', or 'stopped' where it shall go on later."""
    best: Trial | None
    summary: dict[str, Any]
    staff: Staff | None = None
    """Warm workers, for what comes after it."""


def run_search(
    setting: Setting,
    staffs: Sequence[Staff],
    watch: Watch,
    *,
    keep_workers: bool,
) -> Found:
    """Search to the end, or until the driver is asked to stop. `staffs` are workers that are coming up already.

    Raises SearchFailed where no trial gave a result, or too many failed alike, and what ends a driver.
    """
    spec = setting.job.loaded.spec
    pool = Pool(
        1,
        recycle_bytes=setting.section.recycle_worker_at,
        forget=tuple(search_paths(setting.job)),
    )
    for staff in staffs:
        pool.take_over(staff, spec.resources)
    search = _Search(setting, pool, watch)
    try:
        status = search.run()
        best = search.conductor.best if len(setting.section.metrics) == 1 else None
        kept = None
        if keep_workers and status == "completed" and best is not None:
            kept = pool.take_out(trial_spec_of(setting, best.best_params or best.params).spec.resources)
        return Found(status, best, search.summary("ENDED"), kept)
    finally:
        from orchestrator.runners.ray_workers.head_watch import head_given_up

        pool.abandon() if head_given_up() else pool.close()


class _Search:
    def __init__(self, setting: Setting, pool: Pool, watch: Watch) -> None:
        self._setting, self._pool, self._watch = setting, pool, watch
        spec = setting.job.loaded.spec
        section = setting.section
        space = SearchSpace.of(section, to_plain(spec))
        self._journal = Journal(setting.run.search)
        before = self._journal.events()
        seed = spec.seed if section.seed is None else section.seed
        if before:
            self.conductor = Conductor.replay(
                section,
                space,
                seed=seed,
                max_epochs=spec.train.max_epochs,
                record=self._journal.append,
                events=before,
            )
            setting.say(f"the search goes on: {_counts(self.conductor)}")
            self._finish_pauses()
            for trial in self.conductor.trials.values():
                if trial.state == "PENDING":
                    forget_unknown(setting, trial)
        else:
            self.conductor = Conductor(
                section, space, seed=seed, max_epochs=spec.train.max_epochs, record=self._journal.append
            )
        earlier = setting.run.read_search() or {}
        self._earlier_s = float(earlier.get("elapsed_s", 0.0))
        self._began_s = time.monotonic()
        self._ended_before = self.conductor.num_ended
        self._started_s = float(earlier.get("started_s", time.time()))
        self._runs = TrialRuns(setting, self.conductor, pool, self._flush)
        for trial in earlier.get("trials", ()):
            self._runs.facts[trial["id"]] = {name: trial[name] for name in _FACTS if name in trial}
        self._given = handed_over(self.conductor.trials, before)
        self._looked_s = self._shown_s = self._recorded_s = self._flushed_s = -math.inf
        self._show_cost_s = 0.0

    def run(self) -> str:
        self._widen()
        try:
            while True:
                if self._runs.trouble is not None:
                    raise self._runs.trouble
                self._setting.head.check()
                if self._watch.stop is not None:
                    return self._stopped()
                with self._runs.lock:
                    self.conductor.tick(self._elapsed_s)
                    self._start_trials()
                    if self._over():
                        break
                self._write()
                self._runs.changed.wait(_WAIT_S)
                self._runs.changed.clear()
        except BaseException:
            self._runs.stop_all()
            self._wait_for_trials(5.0)
            raise
        finally:
            self._close_children()
            self._flush()
            self._show()
        return self._end()

    def summary(self, state: str) -> dict[str, Any]:
        """`search/summary.json`."""
        spec, section = self._setting.job.loaded.spec, self._setting.section
        with self._runs.lock:
            return {
                "metric": list(section.metrics) if len(section.metrics) > 1 else section.metrics[0],
                "mode": list(section.modes) if len(section.modes) > 1 else section.modes[0],
                "num_samples": self.conductor.num_trials,
                "experiment_id": self._setting.tracker.experiment_id,
                "search_alg": section.search_alg.kind,
                "scheduler": section.scheduler.kind,
                "state": state,
                "limit": self._pool.limit,
                "width": spec.resources.max_workers,
                "recycled_groups": self._pool.recycled,
                "started_s": self._started_s,
                "updated_s": time.time(),
                "elapsed_s": self._elapsed_s,
                "eta_s": self._eta_s() if state == "SEARCHING" else None,
                "why_ended": self.conductor.why_ended,
                **self._trials(),
            }

    def _trials(self) -> dict[str, Any]:
        told = self.conductor.summary()
        for trial in told["trials"]:
            facts = self._runs.facts.setdefault(trial["id"], {})
            if not facts.get("mlflow_run_id"):
                facts["mlflow_run_id"] = self._setting.tracker.child_run_id(trial["id"])
            trial.update(facts)
        return told

    @property
    def _elapsed_s(self) -> float:
        return self._earlier_s + time.monotonic() - self._began_s

    def _start_trials(self) -> None:
        try:
            if not self._hand_over():
                return
        except (OSError, TrackingError) as error:
            _log.warning("what a trial takes over cannot be given to it now: %s", error)
            return
        chosen: list[Trial] = []
        while self._runs.count + len(chosen) < self._pool.limit and not self.conductor.finished:
            if self._pool.held_up or (self._runs.crowded and self._runs.count):
                break
            trial = self.conductor.next_trial(self._elapsed_s)
            if trial is None:
                break
            self._runs.crowded = False
            chosen.append(trial)
        if chosen:
            self._flush()  # before there is anything of them: their parameters are known after a crash
        for trial in chosen:
            self._runs.start(trial)

    def _hand_over(self) -> bool:
        """Give the trials that go on from another's checkpoint what they take over; False: it is not saved yet."""
        if self._setting.section.scheduler.kind not in ("pbt", "pb2"):
            return True
        for trial in self.conductor.trials.values():
            source = trial.start_from
            if source is None or trial.is_finished() or self._given.get(trial.trial_id) == source:
                continue
            if self.conductor.trials[source.trial_id].state == "RUNNING":
                return False
            self._flush()  # its own checkpoint goes
            give_checkpoint(self._setting, trial)
            record_hand_over(self._runs.child_of(trial), source.epoch, source.trial_id, trial.params)
            self._given[trial.trial_id] = source
        return True

    def _finish_pauses(self) -> None:
        """Trials that had been told to pause when the driver was killed, and had saved by then."""
        for trial in self.conductor.trials.values():
            if trial.pausing and checkpoint_of(self._setting, HandOver(trial.trial_id, trial.epoch)):
                self.conductor.ended(trial.trial_id, "paused")

    def _close_children(self) -> None:
        """Record the end of the trials that are over; what cannot be recorded now comes with the next call."""
        for trial_id, child in list(self._runs.children.items()):
            trial = self.conductor.trials[trial_id]
            if trial.is_finished() and not self._runs.is_running(trial_id):
                try:
                    record_trial_end(child, trial.summary(), self._setting.section.metrics[0])
                except TrackingError as error:
                    _log.warning("the end of %s cannot be recorded: %s", trial_id, error)
                    return
                del self._runs.children[trial_id]

    def _num_left(self) -> int:
        """How many trials have not ended, those that are still to be made included."""
        return self.conductor.num_trials - self.conductor.num_ended

    def _over(self) -> bool:
        if self.conductor.why_ended and self._runs.count:
            self._runs.stop_all()
        return self._runs.count == 0 and self.conductor.finished

    def _stopped(self) -> str:
        self._runs.stop_all()
        self._wait_for_trials(self._setting.job.loaded.spec.failure.stop_grace + 5.0)
        return "stopped"

    def _wait_for_trials(self, patience_s: float) -> None:
        until_s = time.monotonic() + patience_s
        while self._runs.count and time.monotonic() < until_s:
            self._runs.changed.wait(_WAIT_S)
            self._runs.changed.clear()

    def _end(self) -> str:
        summary = self.summary("ENDED")
        failure = self.conductor.verdict_failure
        if failure is not None:
            anew = "mend it and begin anew with --fresh, or raise tune.max_equal_failures"
            mend = "; ".join(part for part in (failure.mend, anew) if part)
            failure = replace(failure, error=self.conductor.why_ended, mend=mend)
        failure = failure or self._no_result()
        try:
            record_search_end(self._setting.tracker, self._setting.run, summary, self._setting.section)
        except (TrackingError, OSError) as error:  # which changes nothing of what was found
            self._setting.say(f"the end of the search could not be recorded in MLflow: {error}")
        if failure is not None:
            raise SearchFailed(failure)
        return "completed"

    def _no_result(self) -> Failure | None:
        if self.conductor.best is not None or self.conductor.pareto:
            return None
        failed = [trial for trial in self.conductor.trials.values() if trial.state == "FAILED"]
        why = f"; the last one: {failed[-1].error}" if failed else ""
        count, metric = len(self.conductor.trials), self._setting.section.metrics[0]
        return Failure(
            rank=-1,
            attempt=0,
            time_s=time.time(),
            error=f"none of {count} trials gave a value of {metric}{why}",
            cause="user error",
            mend="see `orchestrator tune status`; narrow tune.param_space, or run one of its points by itself",
        )

    def _widen(self) -> None:
        """How many trials run side by side: as many as the section says, or as the cluster holds now."""
        now_s = time.monotonic()
        if now_s - self._looked_s < _LOOK_EVERY_S:
            return
        self._looked_s = now_s
        import ray

        try:
            self._pool.limit = num_side_by_side(self._setting.job.loaded.spec)
        except ray.exceptions.RayError as error:  # the head is away: its own watch tells
            _log.warning("the cluster's size is not known: %s", error)

    def _write(self) -> None:
        self._close_children()
        self._widen()
        self._pool.trim(max(1, self._num_left()))
        now_s = time.monotonic()
        if now_s - self._flushed_s >= _FLUSH_EVERY_S:
            self._flushed_s = now_s
            self._flush()
        if now_s - self._shown_s >= max(_SHOW_EVERY_S, self._show_cost_s / _SHARE):
            self._show()
            self._show_cost_s = time.monotonic() - now_s

    @property
    def _taken_over(self) -> bool:
        """Another driver has the run now, and its files."""
        return self._watch.heartbeat is not None and self._watch.heartbeat.lost

    def _flush(self) -> None:
        if self._taken_over:
            return
        try:
            self._journal.flush()
        except OSError as error:  # it stays in memory, and is tried again
            _log.warning("what the search decided cannot be written: %s", error)

    def _show(self) -> None:
        summary = self.summary("SEARCHING" if not self.conductor.finished else "ENDED")
        self._shown_s = time.monotonic()
        self._watch.show_search(summary)
        if self._taken_over:
            return
        try:
            self._setting.run.write_search(summary)
        except OSError as error:
            _log.warning("how the search stands cannot be written: %s", error)
        if self._shown_s - self._recorded_s >= _RECORD_EVERY_S or self.conductor.finished:
            self._recorded_s = self._shown_s
            try:
                record_search_progress(self._setting.tracker, summary)
            except TrackingError as error:  # it comes with the next call
                _log.warning("how the search stands cannot be recorded: %s", error)

    def _eta_s(self) -> float | None:
        """By the pace up to now; None before a trial has ended."""
        ended = self.conductor.num_ended
        left, by_us = self.conductor.num_trials - ended, ended - self._ended_before
        since_s = time.monotonic() - self._began_s
        return left * since_s / by_us if by_us and since_s > 1 else None


def handed_over(trials: Mapping[str, Trial], events: Iterable[Mapping[str, Any]]) -> dict[str, HandOver]:
    """What trials have been given of others' checkpoints, by these events: none starts before it has it."""
    newest = {
        event["trial"]: event["event"] for event in events if event["event"] in ("exploited", "started")
    }
    return {
        trial_id: trial.start_from
        for trial_id, trial in trials.items()
        if trial.start_from is not None and newest.get(trial_id) == "started"
    }


def _counts(conductor: Conductor) -> str:
    states = [trial.state for trial in conductor.trials.values()]
    told = [f"{states.count(state)} {state.lower()}" for state in dict.fromkeys(sorted(states))]
    return ", ".join(told) or "no trial yet"
