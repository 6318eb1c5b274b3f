"""Decides what a search does next: which trials there are, which runs, goes on, pauses, ends.

It knows no workers and no clock; it is told what happened and answers. All that it was told it records, so that a
search whose driver was killed is rebuilt by telling it the same again. Imports: records, spec,
runners.search.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from orchestrator.records import EpochReport, Failure
from orchestrator.runners.search import events as happened
from orchestrator.runners.search.events import EndedBy, Event
from orchestrator.runners.search.ranking import Ranking
from orchestrator.runners.search.schedulers import Population, make_policy
from orchestrator.runners.search.searchers import make_searcher
from orchestrator.runners.search.stoppers import EqualFailures, Patience, TimeBudget, TrialStopper
from orchestrator.runners.search.trial import Decision, End, Ending, HandOver, Trial

if TYPE_CHECKING:
    from orchestrator.spec.space import SearchSpace
    from orchestrator.spec.tune import TuneSection

_log = logging.getLogger(__name__)


class Conductor:
    """Decides what runs, goes on, pauses, stops. Single-threaded.

    `record` is called with each event in its order, a dict that JSON can hold. Before a trial begins, and before
    checkpoints change hands, they should be on disk; what came after and was lost happens again.
    """

    def __init__(
        self,
        section: TuneSection,
        space: SearchSpace,
        *,
        seed: int,
        max_epochs: int,
        record: Callable[[Event], None],
    ) -> None:
        self.section = section
        self.space = space
        self.max_epochs = max_epochs
        self.trials: dict[str, Trial] = {}
        """In the order of their making."""
        self.num_trials = space.num_trials(section.num_samples)
        """How many there will be, if nothing ends the search earlier."""
        if space.has_grid:
            self.num_trials += len(section.points_to_evaluate)
        self.verdict_failure: Failure | None = None
        """That of the last of too many trials that failed alike."""
        self._record = record
        self._policy = make_policy(
            section,
            space,
            seed=seed,
            max_epochs=max_epochs,
            num_trials=self.num_trials,
            stop=self._prune,
        )
        self._searcher = make_searcher(section, space, seed)
        self._trial_stopper = TrialStopper(section)
        self._patience = Patience(section)
        self._failures = EqualFailures(section.max_equal_failures)
        self._ranking = Ranking(section.metrics, section.modes, self.trials)
        self._again: deque[Trial] = deque()
        self._num_open = 0
        self._stop_reason = ""
        self._time = TimeBudget(section.time_budget)

    # What the caller asks and tells.

    def tick(self, now_s: float) -> None:
        """Tell the time: the search ends where its time budget is used up. Time between drivers does not count."""
        self._time.tick(now_s)
        self._stop_search(self._time.why_over(), "time")

    def next_trial(self, now_s: float) -> Trial | None:
        """Make or choose the next one to run, which is RUNNING then; None where nothing can start now."""
        self.tick(now_s)
        if self._stop_reason:
            return None
        trial = self._chosen()
        if trial is not None:
            self._start(trial)
            self._record(happened.started(trial, self._time.spent_s))
        return trial

    def report(self, trial_id: str, report: EpochReport) -> Decision:
        """What becomes of a trial at the end of an epoch. One that it repeats after a fault is answered as before.

        Raises UsageError where a metric of the search is not among those reported.
        """
        trial = self.trials[trial_id]
        trial.seconds = max(trial.seconds, report.seconds)
        if report.epoch > trial.epoch and trial.state == "RUNNING":
            decision = self._judge(trial, report)
            self._record(happened.reported(trial, report, decision))
            self._note_hand_overs()
            return decision
        if trial.verdict or trial.is_finished() or self._stop_reason:
            return "stop"
        return "pause" if trial.pausing and report.epoch == trial.epoch else "go on"

    def gate(self, epoch: int) -> bool:
        """Whether a worker must wait for the answer at the end of this epoch."""
        return epoch < self.max_epochs and (self._trial_stopper.active or self._policy.gate(epoch))

    def ended(self, trial_id: str, how: Ending, failure: Failure | None = None) -> None:
        """A trial has left its workers."""
        trial = self.trials[trial_id]
        if trial.is_finished():
            return
        self._record(happened.ended(trial, how, failure))
        self._end(trial, how, failure)
        self._note_hand_overs()

    def stop_search(self, why: str) -> None:
        """No new trials. Those that run are to be told "stop" by the caller, who says when they did."""
        self._stop_search(why, "caller")

    def _stop_search(self, why: str, by: EndedBy) -> None:
        if self._stop_reason or not why:
            return
        self._record(happened.search_ended(why, by, self._time.spent_s))
        self._stop_reason = why
        for trial in list(self.trials.values()):
            if trial.state in ("PENDING", "PAUSED"):
                self._conclude(trial, "STOPPED")

    @property
    def num_ended(self) -> int:
        """How many trials are over."""
        return len(self.trials) - self._num_open

    @property
    def finished(self) -> bool:
        """Whether all is said: nothing runs, and nothing is left to run."""
        return self._num_open == 0 and bool(self._stop_reason or self._all_made)

    @property
    def why_ended(self) -> str:
        """Empty while it goes on."""
        if self._stop_reason:
            return self._stop_reason
        return f"all {len(self.trials)} trials have ended" if self.finished else ""

    @property
    def best(self) -> Trial | None:
        """The trial with the best value of the metric in any epoch. Failed ones do not count."""
        return self._ranking.best

    @property
    def pareto(self) -> list[Trial]:
        """Several metrics: the trials that no other one is better than."""
        return self._ranking.pareto if len(self.section.metrics) > 1 else []

    def summary(self) -> dict[str, Any]:
        """The decided part of `summary.json`."""
        best = self.best
        return {
            "best": best.trial_id if best else None,
            "pareto": [trial.trial_id for trial in self.pareto],
            "why_ended": self.why_ended,
            "trials": [trial.summary() for trial in self.trials.values()],
        }

    @classmethod
    def replay(
        cls,
        section: TuneSection,
        space: SearchSpace,
        *,
        seed: int,
        max_epochs: int,
        record: Callable[[Event], None],
        events: Iterable[Mapping[str, Any]],
    ) -> Conductor:
        """The conductor that recorded these events, as it was. Trials that ran are PENDING again; those that it had
        already told to stop have ended.

        Where a library suggests or decides otherwise than was recorded (another version of it, say), the record counts.
        """
        again = cls(section, space, seed=seed, max_epochs=max_epochs, record=_forget)
        for event in events:
            again._repeat(event)
        again._record = record
        for trial in list(again.trials.values()):
            if trial.state == "RUNNING":
                again.ended(trial.trial_id, "broken off")
        return again

    # Making and choosing.

    @property
    def _all_made(self) -> bool:
        return len(self.trials) >= self.num_trials or self._searcher.exhausted

    def _chosen(self) -> Trial | None:
        while self._again:
            trial = self._again.popleft()
            if trial.state == "PENDING":
                return trial
        while not self._stop_reason:
            while self._policy.wants_more() and self._make():
                pass
            chosen = self._policy.choose()
            if chosen is not None or not self._make():
                return chosen
        return None

    def _make(self, recorded: Mapping[str, Any] | None = None) -> Trial | None:
        """One more trial, of the values that the searcher suggests, or those recorded; None where it has none.

        One whose `expr` comes to nothing has failed already.
        """
        if recorded is None and (self._all_made or self._stop_reason):
            return None
        width = max(3, len(str(self.num_trials)))
        trial_id = f"trial-{len(self.trials) + 1:0{width}d}"
        sampled = self._searcher.suggest(trial_id)
        if recorded is not None and sampled != recorded["sampled"]:
            _log.warning(
                "%s: the searcher suggests %s now; the recorded %s counts",
                *(trial_id, sampled, recorded["sampled"]),
            )
            sampled = dict(recorded["sampled"])
        if sampled is None:
            return None
        trial = Trial(trial_id, config=self._policy.to_config(sampled), params={})
        self.trials[trial_id] = trial
        self._num_open += 1
        self._policy.added(trial)
        error = ""
        try:
            trial.params = self.space.resolve(self._policy.to_sampled(trial.config))
        except ValueError as reason:
            error = str(reason)
        self._record(happened.made(trial, sampled))
        if error:
            self._fail(trial, Failure(-1, 0, 0.0, error, "user error", "change tune.param_space"))
        return trial

    def _start(self, trial: Trial) -> None:
        trial.state = "RUNNING"
        trial.attempts += 1

    # Judging.

    def _judge(
        self, trial: Trial, report: EpochReport, recorded: Mapping[str, Any] | None = None
    ) -> Decision:
        """The decision after a report, or the recorded one."""
        values = self._ranking.finite(report.metrics)
        epochs = range(trial.epoch + 1, report.epoch + 1)
        heard = self._policy.hears_all or any(self._policy.gate(epoch) for epoch in epochs)
        trial.observe(report.epoch, report.step, report.metrics, report.seconds)
        trial.last_result = dict(zip(self.section.metrics, values, strict=True))
        trial.last_result["training_iteration"] = report.epoch
        self._ranking.consider(trial)
        if not trial.verdict and not self._stop_reason:
            self._searcher.reported(trial.trial_id, report.epoch, values)
        decision = self._decision(trial, report, heard)
        if recorded is not None and decision != recorded["decision"]:
            _log.warning(
                "%s: the scheduler decides '%s' at epoch %d now; the recorded '%s' counts",
                *(trial, decision, report.epoch, recorded["decision"]),
            )
            decision = recorded["decision"]
            trial.verdict = recorded["verdict"]
        if decision == "stop" and trial.verdict is None:
            trial.verdict = "STOPPED" if self._stop_reason else "PRUNED"
        trial.pausing = decision == "pause"
        return decision

    def _decision(self, trial: Trial, report: EpochReport, heard: bool) -> Decision:
        why = self._trial_stopper.why_done(trial.trial_id, report)
        if trial.verdict:
            return "stop"
        if report.final or report.epoch >= self.max_epochs:
            return "go on"
        if self._stop_reason:
            return "stop"
        if why:
            trial.verdict, trial.why = "COMPLETED", why
            return "stop"
        if trial.pausing:  # it has gone past the pause that it was told to make
            return "pause"
        if not heard:
            return "go on"
        return "pause" if self._policy.pauses else self._policy.judge(trial)

    # Ending.

    def _end(self, trial: Trial, how: Ending, failure: Failure | None) -> None:
        if trial.verdict is not None:
            self._conclude(trial, trial.verdict)
        elif how == "failed":
            self._fail(trial, failure)
        elif how == "completed":
            self._conclude(trial, "COMPLETED")
        elif how == "stopped" or self._stop_reason:
            self._conclude(trial, "STOPPED")
        elif how == "paused" and trial.pausing:
            trial.state, trial.pausing = "PAUSED", False
            if self._policy.pauses:
                self._policy.judge(trial)
        else:  # it goes on where it was; a pause that it was about to make is still to come
            trial.state = "PENDING"
            self._again.append(trial)

    def _fail(self, trial: Trial, failure: Failure | None) -> None:
        trial.error = failure.error if failure else "failed"
        if failure is not None and failure.diverged:
            worst = self._ranking.worst()
            self._searcher.reported(trial.trial_id, trial.epoch + 1, worst)
            self._conclude(trial, "FAILED", worst)
            return
        self._conclude(trial, "FAILED")
        if self._failures.failed(failure.cause if failure else "internal", trial.error):
            self.verdict_failure = failure
            first_line = trial.error.partition("\n")[0]
            self._stop_search(
                f"{self.section.max_equal_failures} trials failed alike: {first_line}", "trials"
            )

    def _conclude(self, trial: Trial, state: End, told: list[float] | None = None) -> None:
        """A trial is over. The searcher is told its values, or those of `told`."""
        trial.state = trial.verdict = state
        trial.pausing = False
        self._num_open -= 1
        if state == "FAILED":
            self._ranking.drop(trial)
        self._tell_searcher(trial, state, told)
        if self._stop_reason:
            return
        if state == "COMPLETED":
            self._policy.completed(trial)
        elif state != "PRUNED":  # the scheduler knows those
            self._policy.failed(trial)
        self._policy.settle()
        if state in ("COMPLETED", "PRUNED"):
            self._failures.succeeded()
        if self.section.stop.patience is not None:
            best = self.best
            self._stop_search(self._patience.why_over(best.score if best else None), "trials")

    def _tell_searcher(self, trial: Trial, state: End, told: list[float] | None) -> None:
        if told is not None:
            self._searcher.pruned(trial.trial_id, told)
        elif state in ("FAILED", "STOPPED") or not trial.last_result:
            self._searcher.failed(trial.trial_id)
        else:
            values = [trial.last_result[name] for name in self.section.metrics]
            if len(values) == 1:
                values = self._ranking.worst() if trial.score is None else [trial.score]
            tell = self._searcher.completed if state == "COMPLETED" else self._searcher.pruned
            tell(trial.trial_id, values)

    def _prune(self, trial: Trial) -> None:
        """The scheduler ends a trial that is paused, or about to be."""
        self._record(happened.pruned(trial))
        if trial.state == "RUNNING":
            trial.verdict = "PRUNED"
        else:
            self._conclude(trial, "PRUNED")

    # Handing over, and telling again.

    def _note_hand_overs(self) -> None:
        """Give the trials that were handed another one's checkpoint their new values."""
        if not isinstance(self._policy, Population):
            return
        for trial in self._policy.exploited():
            source = trial.handed_over
            assert source is not None
            trial.handed_over = None
            trial.start_from, trial.epoch = source, source.epoch
            sampled = self._policy.to_sampled(trial.config)
            trial.params = self.space.resolve(sampled)
            self._record(happened.exploited(trial, source, sampled))

    def _repeat(self, event: Mapping[str, Any]) -> None:
        """Do once more what was recorded. What follows of itself ("pruned") follows again."""
        kind = event["event"]
        self._time.spent_s = event.get("spent_s", self._time.spent_s)
        if kind == "made":
            self._make(event)
            return
        if kind == "search ended":
            # What the trials themselves gave rise to does so again, unless more of it is allowed now.
            if event["by"] == "caller" or (event["by"] == "time" and self._time.why_over()):
                self._stop_search(event["why"], event["by"])
            return
        trial = self.trials[event["trial"]]
        if trial.is_finished():
            return
        match kind:
            case "started":
                self._start(trial)
            case "report":
                self._judge(trial, happened.report_of(event), event)
                self._note_hand_overs()
            case "ended":
                self._end(trial, event["how"], happened.failure_of(event))
                self._note_hand_overs()
            case "exploited" if event["params"] != trial.params:
                _log.warning(
                    "%s: is given %s now; the recorded %s counts", trial, trial.params, event["params"]
                )
                trial.config = self._policy.to_config(dict(event["sampled"]))
                trial.params = dict(event["params"])
                trial.start_from = HandOver(event["from"], event["epoch"])


def _forget(event: Event) -> None:
    del event
