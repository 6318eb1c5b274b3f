"""The driver's decisions on a trial: one for each epoch, whatever comes twice, late, or from another attempt."""

from __future__ import annotations

import pytest

from orchestrator.errors import TrackingError
from orchestrator.records import EpochReport, Letter, Point, Reply, Wish
from orchestrator.runners.desk import Desk

DECISIONS: dict[int, Wish] = {2: "stop", 3: "leave"}


class Judge:
    """Decides by the table, and tells what it was asked."""

    def __init__(self, decisions: dict[int, Wish] | None = None) -> None:
        self._decisions = DECISIONS if decisions is None else decisions
        self.asked: list[tuple[int, float]] = []

    def __call__(self, report: EpochReport) -> Wish:
        self.asked.append((report.epoch, report.metrics["val/loss"]))
        return self._decisions.get(report.epoch, "go on")


def desk_of(judge: Judge) -> Desk:
    return Desk(lambda points: None, on_report=judge)


def letter(*epochs: int, attempt: int = 1, rank: int = 0, loss: float = 0.5) -> Letter:
    reports = tuple(EpochReport(epoch, 10 * epoch, {"val/loss": loss}) for epoch in epochs)
    return Letter(rank, attempt, 0, (), reports=reports)


def test_each_epoch_has_its_decision_which_comes_with_every_reply() -> None:
    judge = Judge()
    desk = desk_of(judge)
    replies = [desk.exchange(letter(*epochs)) for epochs in [(), (1,), (1,), (1, 2), (2,), (), (2, 3)]]
    assert [(reply.reported, reply.wish) for reply in replies] == [
        (0, "go on"),
        (1, "go on"),
        (1, "go on"),
        (2, "stop"),
        (2, "stop"),
        (2, "stop"),
        (3, "leave"),
    ]
    assert [epoch for epoch, _ in judge.asked] == [1, 2, 3]
    assert desk.decided == "leave"


def test_several_epochs_in_one_letter_are_all_decided_and_the_newest_counts() -> None:
    judge = Judge({1: "leave"})
    assert desk_of(judge).exchange(letter(1, 2, 3)) == Reply(0, "go on", 0, 3)
    assert [epoch for epoch, _ in judge.asked] == [1, 2, 3]


def test_an_attempt_that_repeats_an_epoch_gets_the_same_answer() -> None:
    """Its first report counts: the search has decided by it, also on other trials."""
    judge = Judge()
    desk = desk_of(judge)
    desk.exchange(letter(1, 2))
    assert desk.exchange(letter(attempt=2)) == Reply(0, "go on", 0, 0), "it has told nothing yet"
    assert desk.decided == "go on"
    assert desk.exchange(letter(1, attempt=2, loss=0.7)) == Reply(0, "go on", 0, 1)
    assert desk.exchange(letter(1, 2, attempt=2, loss=0.7)) == Reply(0, "stop", 0, 2)
    assert judge.asked == [(1, 0.5), (2, 0.5)]
    assert desk.exchange(letter(3, attempt=2, loss=0.7)).wish == "leave"
    assert judge.asked[2:] == [(3, 0.7)]


def test_a_late_letter_of_an_older_attempt_decides_nothing() -> None:
    judge = Judge()
    desk = desk_of(judge)
    desk.exchange(letter(attempt=2))
    desk.exchange(letter(1, 2, 3, attempt=1))
    assert (judge.asked, desk.decided) == ([], "go on")
    assert desk.exchange(letter(1, attempt=2)) == Reply(0, "go on", 0, 1)


def test_only_rank_0_is_asked() -> None:
    judge = Judge()
    assert desk_of(judge).exchange(letter(2, rank=1)) == Reply(0)
    assert judge.asked == []


@pytest.mark.parametrize(("epoch", "wish"), [(1, "stop"), (2, "stop"), (3, "leave")])
def test_a_wish_to_stop_does_not_save_a_trial_that_is_given_up(epoch: int, wish: Wish) -> None:
    for before in (True, False):
        desk = desk_of(Judge())
        if before:
            desk.request_stop()
        desk.exchange(letter(epoch))
        desk.request_stop()
        assert desk.exchange(letter(epoch)) == Reply(0, wish, 0, epoch)


def test_points_that_cannot_be_recorded_hold_up_no_decision() -> None:
    def refuse(points: object) -> None:
        raise TrackingError("the disk is full")

    judge = Judge()
    desk = Desk(refuse, on_report=judge)
    reports = letter(2).reports
    reply = desk.exchange(Letter(0, 1, 0, (Point("train/loss", 1.0, 1, 0),), reports=reports))
    assert reply == Reply(0, "stop", 0, 2)


def test_without_a_search_nothing_is_acknowledged() -> None:
    assert Desk(lambda points: None).exchange(letter(1, 2)) == Reply(0)
