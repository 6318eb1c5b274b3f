"""The training loop as a trial of a search: told after each epoch how it stands, it goes on, pauses or is given up."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.engine.attempt import Attempt
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.loop import Outcome, train
from orchestrator.records import EpochReport, Letter, Point, Reply, Wish
from orchestrator.runners.desk import Desk
from orchestrator.spec import JobSpec
from tests.unit.engine_case import case_attempt, case_spec

DROPOUT = {"name": "mlp", "args": {"hidden": [16], "dropout": 0.2}}
RARELY: dict[str, Any] = {"every_n_epochs": 99}


@dataclass
class Driver:
    """Decides by a table, and keeps what it is told."""

    decisions: dict[int, Wish] = field(default_factory=dict)
    reports: list[EpochReport] = field(default_factory=list)
    points: list[Point] = field(default_factory=list)

    def decide(self, report: EpochReport) -> Wish:
        self.reports.append(report)
        return self.decisions.get(report.epoch, "go on")

    def run(
        self,
        spec: JobSpec,
        storage: Path,
        gates: Collection[int] | None,
        run: str = "trial-1",
        kind: type[WorkerLink] = WorkerLink,
    ) -> tuple[Attempt, Outcome]:
        desk = Desk(self.points.extend, on_report=self.decide)
        link = kind(channel=desk, interval_s=0.002)
        link.gates = gates
        attempt = case_attempt(spec, storage, link, run)
        link.start()
        try:
            return attempt, train(attempt)
        finally:
            assert link.close()

    def logged(self, key: str) -> dict[int, float]:
        return {point.step: point.value for point in self.points if point.key == key}


def facts(report: EpochReport) -> tuple[int, int, dict[str, float]]:
    return report.epoch, report.step, dict(report.metrics)


def saved_epochs(attempt: Attempt) -> list[int]:
    return [manifest.epoch for manifest in attempt.store.manifests()]


def assert_same_state(ours: Attempt, theirs: Attempt) -> None:
    for key, value in theirs.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[key], value), key
    for index, entry in theirs.optimizer.state_dict()["state"].items():
        for name, tensor in entry.items():
            assert torch.equal(ours.optimizer.state_dict()["state"][index][name], tensor), (index, name)


def test_what_is_reported_is_what_was_measured(tmp_path: Path) -> None:
    driver = Driver()
    attempt, outcome = driver.run(case_spec(), tmp_path, (1, 2))
    assert outcome.status == "completed"
    each = attempt.recipe.steps_per_epoch
    assert [(report.epoch, report.step) for report in driver.reports] == [(n, n * each) for n in (1, 2, 3)]
    for report in driver.reports:
        assert {"train/loss", "val/loss", "val/accuracy"} <= report.metrics.keys()
        for key, value in report.metrics.items():
            assert driver.logged(key)[report.step] == value, key
    seconds = [report.seconds for report in driver.reports]
    assert 0 < seconds[0] < seconds[1] < seconds[2] == attempt.position.seconds


def test_a_trial_that_is_given_up_leaves_at_once_and_saves_nothing(tmp_path: Path) -> None:
    driver = Driver({2: "leave"})
    attempt, outcome = driver.run(case_spec(), tmp_path, (1, 2))
    assert (outcome.status, outcome.steps) == ("left", 2 * attempt.recipe.steps_per_epoch)
    assert [report.epoch for report in driver.reports] == [1, 2]
    assert saved_epochs(attempt) == [1]
    assert attempt.store.uncommitted() == []


def test_a_trial_that_is_given_up_later_leaves_in_the_midst_of_an_epoch(tmp_path: Path) -> None:
    """No gate: it goes on while the driver decides, and learns of it at its next agreement."""
    driver = Driver({1: "leave"})
    spec = case_spec(train={"max_epochs": 500}, checkpoint=RARELY)
    attempt, outcome = driver.run(spec, tmp_path, ())
    assert outcome.status == "left"
    assert 1 <= attempt.position.epoch < 500
    assert saved_epochs(attempt) == []


def test_a_paused_trial_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    spec = case_spec(model=DROPOUT, checkpoint=RARELY)
    torch.set_num_threads(1)
    whole, first, second = Driver(), Driver({2: "stop"}), Driver()
    straight, _ = whole.run(spec, tmp_path, (1, 2), "straight-1")

    paused, outcome = first.run(spec, tmp_path, (1, 2))
    assert outcome.status == "stopped"
    assert saved_epochs(paused) == [2]
    resumed, outcome = second.run(spec, tmp_path, (1, 2))
    assert (outcome.status, outcome.steps) == ("completed", straight.recipe.steps_per_epoch)
    assert [report.epoch for report in second.reports] == [3], "what was decided is not told again"
    assert list(map(facts, first.reports + second.reports)) == list(map(facts, whole.reports))
    assert second.reports[0].seconds > first.reports[-1].seconds
    assert_same_state(resumed, straight)


class StopAfterOneEpoch(WorkerLink):
    """The driver asks to stop while the last step of the first epoch is under way."""

    def stop_requested(self) -> bool:
        return self.pulse.step >= 11


def test_an_epoch_that_was_cut_off_before_its_validation_is_reported_in_full(tmp_path: Path) -> None:
    spec = case_spec(model=DROPOUT, checkpoint=RARELY)
    torch.set_num_threads(1)
    whole, first, second = Driver(), Driver(), Driver()
    straight, _ = whole.run(spec, tmp_path, (1, 2), "straight-1")
    assert straight.recipe.steps_per_epoch == 11
    _, outcome = first.run(spec, tmp_path, (1, 2), kind=StopAfterOneEpoch)
    assert (outcome.status, outcome.steps, first.reports) == ("stopped", 11, [])
    resumed, _ = second.run(spec, tmp_path, (1, 2))
    assert list(map(facts, second.reports)) == list(map(facts, whole.reports))
    assert_same_state(resumed, straight)


def test_the_last_epoch_is_no_gate(tmp_path: Path) -> None:
    """It is told, and whatever is decided then, the trial is done and saved."""
    driver = Driver({3: "leave"})
    attempt, outcome = driver.run(case_spec(checkpoint=RARELY), tmp_path, (1, 2, 3))
    assert outcome.status == "completed"
    assert [report.epoch for report in driver.reports] == [1, 2, 3]
    assert saved_epochs(attempt) == [3]


def test_nothing_is_waited_for_but_at_gates(tmp_path: Path) -> None:
    class Away:
        def exchange(self, letter: Letter) -> Reply:
            raise ConnectionError

    link = WorkerLink(channel=Away())
    link.gates = (3,)
    attempt = case_attempt(case_spec(), tmp_path, link, "trial-1")
    assert train(attempt).status == "completed"
    letter = link.start().letter()
    assert letter is not None
    assert [report.epoch for report in letter.reports] == [1, 2, 3]
    link._reports.clear()
    link._pending.clear()
    assert link.close()


def test_only_epochs_that_are_validated_are_told(tmp_path: Path) -> None:
    spec = case_spec(train={"max_epochs": 5, "evaluate_every_n_epochs": 2})
    driver = Driver()
    driver.run(spec, tmp_path, (1, 2, 3, 4))
    assert [report.epoch for report in driver.reports] == [2, 4, 5]
    assert all("val/loss" in report.metrics for report in driver.reports)

    driver = Driver({1: "leave", 2: "go on", 3: "leave", 4: "stop"})
    attempt, outcome = driver.run(spec, tmp_path, (1, 2, 3, 4), "trial-2")
    assert (outcome.status, attempt.position.epoch) == ("stopped", 4)


@pytest.mark.parametrize("gates", [(1, 2, 3, 4), ()])
def test_a_trial_that_stops_early_by_itself_is_done(tmp_path: Path, gates: Collection[int]) -> None:
    early = {"metric": "val/loss", "patience": 1, "min_delta": 100.0}
    spec = case_spec(train={"max_epochs": 5, "early_stopping": early}, checkpoint=RARELY)
    driver = Driver({2: "leave"})
    attempt, outcome = driver.run(spec, tmp_path, gates)
    assert outcome.status == "completed"
    assert [(report.epoch, report.final) for report in driver.reports] == [(1, False), (2, True)]
    assert saved_epochs(attempt) == [2]


def test_what_is_no_trial_reports_nothing(tmp_path: Path) -> None:
    driver = Driver({1: "leave"})
    _, outcome = driver.run(case_spec(), tmp_path, None)
    assert outcome.status == "completed"
    assert driver.reports == []
    assert driver.logged("val/loss").keys() == {11, 22, 33}
