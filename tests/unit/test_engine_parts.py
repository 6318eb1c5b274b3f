"""The engine's small parts against definitions written out here."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from orchestrator.engine.causes import cause_of, describe
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.optim.stopping import EarlyStopper, is_better
from orchestrator.engine.seed import rng_state, seed_everything, set_rng_state
from orchestrator.engine.window import StepWindow
from orchestrator.errors import DataError
from orchestrator.records import Letter, Point, Reply
from orchestrator.runners.desk import Desk


def test_early_stopping_waits_out_its_patience_and_keeps_its_state() -> None:
    stopper = EarlyStopper("val/loss", "min", patience=2, min_delta=0.1)
    assert [stopper.update(value) for value in (1.0, 0.95, 0.8)] == [False, False, False]
    again = EarlyStopper("val/loss", "min", patience=2, min_delta=0.1)
    again.load_state_dict(stopper.state_dict())
    assert [again.update(value) for value in (0.79, float("nan"))] == [False, True]
    assert is_better(1.0, None, mode="max")
    assert not is_better(float("nan"), None, mode="min")


def test_random_state_comes_back() -> None:
    device = torch.device("cpu")
    seed_everything(5, rank=1)
    state = rng_state(device)
    first = (np.random.rand(), torch.rand(3))
    set_rng_state(state, device)
    second = (np.random.rand(), torch.rand(3))
    assert first[0] == second[0]
    assert torch.equal(first[1], second[1])
    seed_everything(5, rank=2)
    assert not torch.equal(torch.rand(3), first[1])


def test_a_window_gives_the_loss_of_each_global_batch() -> None:
    window = StepWindow(torch.device("cpu"))
    before = window.full
    window.add(1, torch.tensor(6.0), 3.0, 5, 0.1)
    assert (before, window.full) == (False, True)
    agreement = window.agree(wish="stop", own_seconds=0.25)
    assert (agreement.wish, agreement.rank_seconds) == ("stop", [0.25])
    assert [(record.step, record.loss, record.lr) for record in agreement.records] == [(1, 2.0, 0.1)]
    assert agreement.samples_per_s == pytest.approx(5 / agreement.elapsed_s)
    assert window.agree(wish="go on", own_seconds=0.0).records == []


def test_the_link_delivers_everything_once_though_letters_get_lost() -> None:
    received: dict[int, Point] = {}
    broken = threading.Event()
    broken.set()

    class Flaky:
        calls = 0

        def exchange(self, letter: Letter) -> Reply:
            self.calls += 1
            if broken.is_set() and self.calls < 3:
                raise ConnectionError
            for offset, point in enumerate(letter.points):
                assert (
                    received.setdefault(letter.first + offset, point) is point
                    or received[letter.first + offset] == point
                )
            return Reply(len(received), "stop" if len(received) >= 100 else "go on")

    link = WorkerLink(channel=Flaky(), interval_s=0.01).start()
    for step in range(100):
        link.log({"loss": float(step)}, step)
    assert link.close()
    assert [received[index].step for index in range(100)] == list(range(100))
    assert link.unacknowledged() == []
    assert link.stop_requested()


def test_the_driver_fetches_everything_once_though_answers_get_lost() -> None:
    """It shows a notice and records a point once, as `Desk` does, though each second letter is lost on its way."""
    link = WorkerLink(fetched=True)
    assert link.letter() is None  # the attempt has no number yet
    link.start()
    recorded: list[Point] = []
    shown: list[str] = []
    desk = Desk(recorded.extend, on_notice=shown.append)
    reply = None
    for step in range(50):
        link.log({"loss": float(step)}, step)
        if step % 10 == 0:
            link.notice(f"notice {step}")
        if reply is not None:
            link.accept(reply)
        letter = link.letter()
        if letter is not None and step % 2:
            reply = desk.exchange(letter)
    closing = threading.Thread(target=link.close)
    closing.start()
    letter = link.letter()
    assert letter is not None
    link.accept(desk.exchange(letter))
    closing.join(5)
    assert not closing.is_alive()
    assert [point.step for point in recorded] == list(range(50))
    assert shown == [f"notice {step}" for step in range(0, 50, 10)]
    assert link.unacknowledged() == []


def test_a_wish_to_save_is_granted_once_for_each_time_it_is_made() -> None:
    link = WorkerLink()
    granted = []
    for wish in ("go on", "save", "save", "save", "go on", "save", "stop", "save"):
        link.accept(Reply(0, wish))
        granted += [link.wish(), link.wish()]
    assert [wish for wish in granted if wish != "go on"] == ["save", "save", "stop", "stop", "stop", "stop"]


def test_causes() -> None:
    assert cause_of(MemoryError()) == "out of memory"
    assert cause_of(RuntimeError("[../gloo/transport/tcp/pair.cc] Connection closed by peer")) == "hardware"
    assert cause_of(TypeError("forward() takes 2 arguments")) == "user error"
    assert cause_of(DataError("row 3 is damaged")) == "data"
    assert describe(ValueError("two\n  lines")) == "ValueError: two lines"
