"""A search without workers: a conductor, and a pool of pretended ones that learn a made-up function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from orchestrator.records import EpochReport, Failure
from orchestrator.runners.search.conductor import Conductor
from orchestrator.runners.search.trial import Decision, Trial
from orchestrator.spec.space import SearchSpace
from orchestrator.spec.tune import TuneSection

LR = "train.optimizer.lr"
MOMENTUM = "train.optimizer.momentum"
HIDDEN = "model.args.hidden"
SPACE: dict[str, Any] = {
    LR: {"loguniform": [1e-4, 1.0]},
    MOMENTUM: {"uniform": [0.0, 0.99]},
    HIDDEN: {"choice": [[64], [128, 64], None]},
}


def settings(**fields: Any) -> TuneSection:
    """A `tune` section: random and fifo, if not told otherwise."""
    given = {
        "param_space": SPACE,
        "num_samples": 12,
        "search_alg": {"kind": "random"},
        "scheduler": {"kind": "fifo"},
    }
    return TuneSection.model_validate(given | fields)


def space_of(section: TuneSection, **fixed: Any) -> SearchSpace:
    return SearchSpace.of(section, {"train": {"optimizer": {"kind": "sgd"}}, **fixed})


def learn(params: Mapping[str, Any], loss: float) -> float:
    """The loss after one more epoch: it falls the faster the nearer the learning rate is to 0.03, down to a floor
    that the other values make."""
    distance = abs(math.log10(params.get(LR, 1e-3) / 0.03))
    floor = 0.1 * distance + 0.2 * abs(params.get(MOMENTUM, 0.5) - 0.9) + 0.05 * (params.get(HIDDEN) == [64])
    return floor + (loss - floor) * min(0.95, 0.5 + 0.1 * distance)


Loss = Callable[[Mapping[str, Any], float], float]


@dataclass
class Slot:
    trial: Trial
    epoch: int
    loss: float


@dataclass
class Pool:
    """`num_slots` pretended groups of workers, each of which trains one epoch after the other, in turn."""

    section: TuneSection
    space: SearchSpace
    max_epochs: int = 9
    num_slots: int = 1
    seed: int = 7
    save_every: int = 1
    learn: Loss = learn
    fault: Callable[[str, int], str] = lambda trial_id, epoch: ""
    """What befalls a trial instead of an epoch: "failed", "diverged", "broken off", or nothing."""
    events: list[dict[str, Any]] = field(default_factory=list)
    decisions: dict[tuple[str, int], Decision] = field(default_factory=dict)
    saved: dict[tuple[str, int], tuple[float, int]] = field(default_factory=dict)
    """Loss after an epoch, and how many events there were when it was saved."""
    slots: list[Slot] = field(default_factory=list)
    now_s: float = 0.0
    most_at_once: int = 0

    def __post_init__(self) -> None:
        self.conductor = Conductor(self.section, self.space, **self._facts())

    def _facts(self) -> dict[str, Any]:
        return {"seed": self.seed, "max_epochs": self.max_epochs, "record": self.events.append}

    def resumed(self, num_events: int) -> Pool:
        """Another pool that begins with what was there after so many events."""
        facts = {
            name: getattr(self, name)
            for name in ("max_epochs", "num_slots", "seed", "save_every", "learn", "fault")
        }
        other = Pool(self.section, self.space, **facts)
        other.events = self.events[:num_events]
        other.saved = {key: value for key, value in self.saved.items() if value[1] <= num_events}
        other.decisions = {
            (event["trial"], event["epoch"]): event["decision"]
            for event in other.events
            if event["event"] == "report"
        }
        other.conductor = Conductor.replay(
            self.section, self.space, **other._facts(), events=list(other.events)
        )
        return other

    def run(self, most_steps: int = 100_000) -> Pool:
        for _ in range(most_steps):
            self.fill()
            if not self.slots:
                break
            for slot in list(self.slots):
                self.step(slot)
        assert self.conductor.finished, "nothing runs, and the search is not finished"
        return self

    def fill(self) -> None:
        while len(self.slots) < self.num_slots:
            trial = self.conductor.next_trial(self.now_s)
            if trial is None:
                break
            assert trial.state == "RUNNING"
            assert all(slot.trial is not trial for slot in self.slots)
            slot = self._begun(trial)
            self.slots.append(slot)
            if slot.epoch == self.max_epochs:
                self._left(slot, "completed")
            elif trial.pausing and slot.epoch == trial.epoch:
                self._left(slot, "paused")
        self.most_at_once = max(self.most_at_once, len(self.slots))

    def _begun(self, trial: Trial) -> Slot:
        own = [epoch for trial_id, epoch in self.saved if trial_id == trial.trial_id]
        epoch = max(own, default=0)
        source = trial.start_from
        if source is not None and epoch <= source.epoch:
            return Slot(trial, source.epoch, self.saved[source.trial_id, source.epoch][0])
        return Slot(trial, epoch, self.saved[trial.trial_id, epoch][0] if epoch else 1.0)

    def step(self, slot: Slot) -> None:
        trial = slot.trial
        self.now_s += 1.0
        fault = self.fault(trial.trial_id, slot.epoch + 1)
        if fault:
            failure = Failure(
                0, 1, self.now_s, f"epoch {slot.epoch}: no good", "user error", diverged=fault == "diverged"
            )
            self._left(slot, "broken off" if fault == "broken off" else "failed", failure)
            return
        slot.loss = self.learn(trial.params, slot.loss)
        slot.epoch += 1
        report = EpochReport(
            slot.epoch, 10 * slot.epoch, {"val/loss": slot.loss, "val/other": 1 - slot.loss}, self.now_s
        )
        decision = self.conductor.report(trial.trial_id, report)
        known = self.decisions.setdefault((trial.trial_id, slot.epoch), decision)
        assert known == decision or trial.attempts > 1
        if decision == "stop":
            self._left(slot, "stopped")
            return
        if decision == "pause" or slot.epoch % self.save_every == 0 or slot.epoch == self.max_epochs:
            self.saved[trial.trial_id, slot.epoch] = slot.loss, len(self.events)
        if decision == "pause":
            self._left(slot, "paused")
        elif slot.epoch == self.max_epochs:
            self._left(slot, "completed")

    def _left(self, slot: Slot, how: Any, failure: Failure | None = None) -> None:
        self.slots.remove(slot)
        self.conductor.ended(slot.trial.trial_id, how, failure)

    def outcome(self) -> dict[str, Any]:
        """All that must be the same again after a crash."""
        best = self.conductor.best
        return {
            "trials": [
                (
                    trial.trial_id,
                    trial.state,
                    trial.params,
                    trial.epoch,
                    trial.score,
                    trial.best_epoch,
                    trial.start_from,
                )
                for trial in self.conductor.trials.values()
            ],
            "decisions": self.decisions,
            "best": best.trial_id if best else None,
            "why": self.conductor.why_ended,
        }


def states(conductor: Conductor) -> Sequence[str]:
    return [trial.state for trial in conductor.trials.values()]
