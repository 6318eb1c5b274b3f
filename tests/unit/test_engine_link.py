"""A trial's reports and the decisions on it, as letters and replies carry them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection

import pytest

from orchestrator.engine.link import WorkerLink
from orchestrator.records import EpochReport, Failure, Letter, Reply, Wish
from orchestrator.runners.desk import Desk

SOON_S = 20.0


def report_of(epoch: int) -> EpochReport:
    return EpochReport(epoch, 10 * epoch, {"val/loss": 1.0 / epoch})


def trial_link(gates: Collection[int] = (2, 4), rank: int = 0) -> WorkerLink:
    link = WorkerLink(rank=rank, world_size=2, fetched=True)
    link.gates = gates
    return link.start()


def told_epochs(link: WorkerLink) -> list[int]:
    letter = link.letter()
    assert letter is not None
    return [report.epoch for report in letter.reports]


class Asking(threading.Thread):
    """A worker that waits at a gate."""

    def __init__(self, link: WorkerLink, epoch: int) -> None:
        super().__init__(daemon=True)
        self._link, self._epoch = link, epoch
        self.answer: Wish | None = None
        self.start()

    def run(self) -> None:
        self.answer = self._link.decision(self._epoch)

    @property
    def waits(self) -> bool:
        self.join(0.05)
        return self.is_alive()

    def answered(self) -> Wish | None:
        self.join(SOON_S)
        return self.answer


def test_a_gate_waits_until_its_own_epoch_is_answered() -> None:
    link = trial_link()
    for epoch in (1, 2):
        link.report(report_of(epoch))
    asking = Asking(link, 2)
    assert asking.waits
    link.accept(Reply(0))  # to a letter that was on its way before
    assert asking.waits
    link.accept(Reply(0, reported=1))
    assert asking.waits
    link.accept(Reply(0, reported=2))
    assert asking.answered() == "go on"
    assert link.decision(1) == "go on"  # what has been answered is not waited for again


@pytest.mark.parametrize("wish", ["stop", "leave"])
def test_the_end_of_a_trial_needs_no_answer_to_its_epoch(wish: Wish) -> None:
    """The driver ends the search while the worker waits: its report may never be looked at."""
    link = trial_link()
    link.report(report_of(2))
    asking = Asking(link, 2)
    assert asking.waits
    link.accept(Reply(0, wish))
    assert asking.answered() == wish


def test_to_leave_comes_before_all_else_and_stays() -> None:
    link = trial_link()
    wishes: list[Wish] = ["save", "stop", "leave", "go on", "stop"]
    found = []
    for wish in wishes:
        link.accept(Reply(0, wish))
        found.append(link.wish())
    assert found == ["save", "stop", "leave", "leave", "leave"]


def test_reports_are_sent_until_they_are_acknowledged() -> None:
    link = trial_link()
    for epoch in (1, 2, 3):
        link.report(report_of(epoch))
    assert told_epochs(link) == told_epochs(link) == [1, 2, 3]
    link.accept(Reply(0))
    assert told_epochs(link) == [1, 2, 3]
    link.accept(Reply(0, reported=2))
    assert told_epochs(link) == [3]
    link.accept(Reply(0, reported=1))  # an older reply comes late
    assert told_epochs(link) == [3]
    assert not link.close(timeout_s=0.01), "the driver does not know of epoch 3 yet"
    link.accept(Reply(0, reported=3))
    assert told_epochs(link) == []
    assert link.close(timeout_s=0.01)


def test_only_rank_0_reports() -> None:
    link = trial_link(rank=1)
    link.report(report_of(2))
    assert told_epochs(link) == []
    assert not link.news.is_set()


def test_what_the_driver_must_not_wait_for_is_news() -> None:
    """A report that needs an answer, a failure, the end; not one that waits for the next letter."""
    failure = Failure(0, 1, 0.0, "broken", "user error")
    cases: list[tuple[Callable[[WorkerLink], object], bool]] = [
        (lambda link: link.report(report_of(1)), False),
        (lambda link: link.report(report_of(2)), True),
        (lambda link: link.log({"train/loss": 1.0}, 1), False),
        (lambda link: link.fail(failure), True),
        (lambda link: link.close(timeout_s=0.0), True),
    ]
    for tell, is_news in cases:
        link = trial_link()
        tell(link)
        assert link.news.is_set() == is_news


class Shaky:
    """A way to a desk on which every second letter, and every third reply, is lost."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._letters = 0

    def exchange(self, letter: Letter) -> Reply:
        self._letters += 1
        if self._letters % 2:
            raise ConnectionError("lost letter")
        reply = self._desk.exchange(letter)
        if self._letters % 3 == 0:
            raise ConnectionError("lost reply")
        return reply


def test_each_epoch_is_decided_once_though_letters_and_replies_get_lost() -> None:
    heard: list[int] = []

    def decide(report: EpochReport) -> Wish:
        heard.append(report.epoch)
        return "stop" if report.epoch == 4 else "go on"

    link = WorkerLink(channel=Shaky(Desk(lambda points: None, on_report=decide)), interval_s=0.002)
    link.gates = (2, 4)
    link.start()
    answers = []
    for epoch in range(1, 5):
        link.report(report_of(epoch))
        if epoch in link.gates:
            answers.append(Asking(link, epoch).answered())
    assert answers == ["go on", "stop"]
    assert heard == [1, 2, 3, 4]
    assert link.close(SOON_S)


def test_the_last_report_is_delivered_though_the_driver_is_away_for_a_moment() -> None:
    """No points are left that would keep the courier at it."""
    heard: list[int] = []
    desk = Desk(lambda points: None, on_report=lambda report: heard.append(report.epoch) or "go on")  # type: ignore[func-returns-value]
    link = WorkerLink(channel=Shaky(desk), interval_s=SOON_S)
    link.gates = ()
    link.start()
    link.report(report_of(3))
    assert link.close(SOON_S)
    assert heard == [3]
