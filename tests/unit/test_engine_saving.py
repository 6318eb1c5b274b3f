"""When the loop saves, and that saving beside the training changes no number."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from orchestrator.checkpoints.files import Sink
from orchestrator.checkpoints.tensors import dump_state
from orchestrator.engine import attempt as attempt_module
from orchestrator.engine import window
from orchestrator.engine.attempt import Attempt
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.loop import train
from orchestrator.errors import CheckpointError
from orchestrator.records import Progress, Wish
from tests.unit.engine_case import case_attempt, case_spec

SMALL = {"max_epochs": 2, "schedule": {"kind": "constant", "warmup_steps": 0}}


class Asked(WorkerLink):
    """A link whose driver has wishes, one after the other, each once so many steps were taken."""

    def __init__(self, wishes: dict[int, Wish]) -> None:
        super().__init__()
        self.attempt_state: Attempt | None = None
        self.told: list[Progress] = []
        self._wishes = wishes

    def wish(self) -> Wish:
        assert self.attempt_state is not None
        for step in list(self._wishes):
            if self.attempt_state.position.step >= step:
                return self._wishes.pop(step)
        return "go on"

    def progress(self, progress: Progress) -> None:
        self.told.append(progress)


def _trained(spec: Any, storage: Path, wishes: dict[int, Wish] | None = None, run: str = "case-1") -> Attempt:
    torch.set_num_threads(1)
    link = Asked(wishes or {})
    attempt = case_attempt(spec, storage, link, run)
    link.attempt_state = attempt
    attempt.window.restart_clock = lambda: None  # type: ignore[method-assign]
    train(attempt)
    return attempt


def _steps(attempt: Attempt) -> list[int]:
    return [manifest.step for manifest in attempt.store.manifests()]


def test_the_driver_may_ask_for_a_save_inside_an_epoch_and_at_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window, "MAX_STEPS", 1)  # the ranks talk after each step
    spec = case_spec(train=SMALL, checkpoint={"every_n_epochs": 99, "num_to_keep": 99})
    attempt = _trained(spec, tmp_path, {3: "save", 11: "save"})
    assert _steps(attempt) == [3, 11, 22]
    assert attempt.store.load(attempt.store.manifests()[1])["position"]["epoch"] == 1


def test_saves_by_the_clock(tmp_path: Path) -> None:
    spec = case_spec(train=SMALL, checkpoint={"every": "1h", "every_n_epochs": 99, "num_to_keep": 99})
    attempt = case_attempt(spec, tmp_path)
    attempt.cadence.interval_s = 0.0  # the hour is over at each look
    train(attempt)
    assert _steps(attempt)[0] == 1
    assert _steps(attempt)[-1] == 22
    rare = case_attempt(spec, tmp_path, run="case-2")
    train(rare)
    assert _steps(rare) == [22]


def test_a_step_that_is_due_at_the_end_of_an_epoch_is_saved(tmp_path: Path) -> None:
    spec = case_spec(train=SMALL, checkpoint={"every_n_steps": 11, "every_n_epochs": 5, "num_to_keep": 99})
    assert _steps(_trained(spec, tmp_path)) == [11, 22]


def test_the_automatic_interval_is_said_and_logged(tmp_path: Path) -> None:
    spec = case_spec(train=SMALL, checkpoint={"every": "auto", "mean_time_between_failures": "1h"})
    attempt = _trained(spec, tmp_path)
    points = {point.key for point in attempt.link.unacknowledged()}
    assert {"checkpoint/interval_s", "perf/checkpoint_seconds", "perf/checkpoint_bytes"} <= points
    assert "perf/checkpoint_stall_seconds" in points
    assert any("every: auto: a save every" in notice for notice in attempt.link._notices)


def test_progress_says_what_was_saved_and_what_it_cost(tmp_path: Path) -> None:
    spec = case_spec(train=SMALL, checkpoint={"every_n_steps": 4})
    first = _trained(spec, tmp_path, {14: "stop"})
    assert isinstance(first.link, Asked)
    assert first.link.told[-1].started_step == 0
    second = _trained(spec, tmp_path)
    assert isinstance(second.link, Asked)
    told = second.link.told
    assert {progress.started_step for progress in told} == {first.position.step}
    assert told[0].saved_step == first.position.step
    assert [one.saved_step for one in told] == sorted(one.saved_step for one in told)
    assert second.saver.saved_step == 22
    assert 0 < told[-1].stall_s < 60
    assert 0 < told[-1].step_seconds <= second.position.seconds


def test_a_slow_disk_and_a_fast_one_give_the_same_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint is of the moment when it was due, however long its writing takes."""
    spec = case_spec(
        model={"name": "mlp", "args": {"hidden": [16], "dropout": 0.2}},
        train={**SMALL, "ema": {"decay": 0.9}, "early_stopping": {"patience": 50}},
        checkpoint={"every_n_steps": 5, "num_to_keep": 99},
    )
    waiting = case_spec(**spec.model_dump(mode="json"))
    waiting = waiting.model_copy(
        update={"checkpoint": waiting.checkpoint.model_copy(update={"asynchronous": False})}
    )
    fast = _trained(waiting, tmp_path, run="fast-1")
    steps_done = threading.Event()

    def slow_dump(state: Any, sink: Sink) -> None:
        steps_done.wait(0.3)  # training goes on, and changes all that it can
        dump_state(state, sink)

    monkeypatch.setattr(attempt_module, "dump_state", slow_dump)
    slow = _trained(spec, tmp_path, run="slow-1")
    assert _steps(slow) == _steps(fast) == [5, 10, 11, 15, 20, 22]
    for one, other in zip(fast.store.manifests(), slow.store.manifests(), strict=True):
        assert one.metrics == other.metrics
        _same(fast.store.load(one), slow.store.load(other), "state")


def _same(one: Any, other: Any, path: str) -> None:
    """Equal to the bit, but for what the clock decides."""
    if path in ("state.points", "state.position.seconds"):
        return
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            _same(one[key], other[key], f"{path}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            _same(left, right, f"{path}.{index}")
    else:
        assert one == other, path


def test_training_goes_on_when_a_save_fails_and_ends_when_the_last_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fails = iter([True, False, False, False, True])

    def dump(state: Any, sink: Sink) -> None:
        if next(fails):
            raise OSError(30, "Read-only file system")
        dump_state(state, sink)

    monkeypatch.setattr(attempt_module, "dump_state", dump)
    spec = case_spec(train=SMALL, checkpoint={"every_n_steps": 7})
    attempt = case_attempt(spec, tmp_path)
    with pytest.raises(CheckpointError, match=r"step-000000022 could not be written: .*Read-only") as failure:
        train(attempt)
    assert failure.value.cause == "hardware"
    assert _steps(attempt) == [11, 14, 21]  # the best and the newest two
    (notice,) = [text for text in attempt.link._notices if "could not be written" in text]
    assert "step-000000007" in notice
    assert "training goes on" in notice
    monkeypatch.undo()
    again = case_attempt(spec, tmp_path)
    assert again.resumed_from == "step-000000021"
    train(again)
    assert _steps(again)[-1] == 22
