"""Stop anywhere and go on: the result equals that of a run that was never stopped, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from orchestrator.engine.attempt import Attempt
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.loop import train
from orchestrator.errors import Diverged
from orchestrator.records import Letter, Reply
from tests.unit.engine_case import case_attempt, case_spec

MODEL_WITH_DROPOUT = {"name": "mlp", "args": {"hidden": [16], "dropout": 0.2}}


class StopAfter(WorkerLink):
    """A link whose driver asks to stop once so many steps were taken."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.attempt_state: Attempt | None = None
        self._steps = steps

    def stop_requested(self) -> bool:
        return self.attempt_state is not None and self.attempt_state.position.step >= self._steps


def _run(spec: object, storage: Path, link: WorkerLink | None = None, run: str = "case-1") -> Attempt:
    attempt = case_attempt(spec, storage, link, run)  # type: ignore[arg-type]
    if isinstance(link, StopAfter):
        link.attempt_state = attempt
    attempt.outcome = train(attempt)  # type: ignore[attr-defined]
    return attempt


@pytest.mark.parametrize("stop_after", [1, 5, 11, 17])
def test_resumed_equals_uninterrupted(tmp_path: Path, stop_after: int) -> None:
    spec = case_spec(model=MODEL_WITH_DROPOUT, train={"early_stopping": {"patience": 50}})
    torch.set_num_threads(1)
    straight = _run(spec, tmp_path, run="straight-1")

    first = _run(spec, tmp_path, StopAfter(stop_after))
    assert first.outcome.status == "stopped"  # type: ignore[attr-defined]
    assert stop_after <= first.position.step < straight.position.step
    second = _run(spec, tmp_path)
    assert second.resumed_from == f"step-{first.position.step:09d}"
    assert second.position == straight.position
    assert second.metrics == straight.metrics
    for key, value in straight.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[key], value), key
    ours, theirs = second.optimizer.state_dict()["state"], straight.optimizer.state_dict()["state"]
    for index, entry in theirs.items():
        for name, tensor in entry.items():
            assert torch.equal(ours[index][name], tensor), (index, name)


def test_a_dead_worker_repeats_only_what_was_not_saved(tmp_path: Path) -> None:
    spec = case_spec(model=MODEL_WITH_DROPOUT, checkpoint={"every_n_steps": 4})
    torch.set_num_threads(1)
    straight = _run(spec, tmp_path, run="straight-1")

    doomed = case_attempt(spec, tmp_path)
    doomed.window.agree = None  # type: ignore[assignment]
    with pytest.raises(TypeError):  # the worker dies at its first agreement
        train(doomed)
    torch.rand(17)  # whatever another process would have done to the generators
    dying = case_attempt(spec, tmp_path)
    steps: list[int] = []
    original = dying.window.add

    def add(step: int, *rest: object) -> None:
        steps.append(step)
        if step == 10:
            raise RuntimeError("power cut")
        original(step, *rest)  # type: ignore[arg-type]

    dying.window.add = add  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError, match="power cut"):
        train(dying)
    second = _run(spec, tmp_path)
    assert second.resumed_from == "step-000000008"
    for key, value in straight.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[key], value), key


def test_points_that_were_not_acknowledged_travel_in_the_checkpoint(tmp_path: Path) -> None:
    class Deaf:
        def exchange(self, letter: Letter) -> Reply:
            raise ConnectionError

    spec = case_spec(train={"max_epochs": 1})
    first = _run(spec, tmp_path, WorkerLink(channel=Deaf()))
    logged = {(point.key, point.step) for point in first.link.unacknowledged()}
    assert ("train/loss", 1) in logged
    second = case_attempt(spec, tmp_path)
    carried = {(point.key, point.step) for point in second.link.unacknowledged()}
    assert {("train/loss", step) for step in range(1, 12)} <= carried


def test_a_longer_run_goes_on_from_a_finished_one(tmp_path: Path) -> None:
    short = _run(
        case_spec(train={"max_epochs": 1, "schedule": {"kind": "constant", "warmup_steps": 0}}), tmp_path
    )
    longer = _run(
        case_spec(train={"max_epochs": 2, "schedule": {"kind": "constant", "warmup_steps": 0}}), tmp_path
    )
    straight = _run(
        case_spec(train={"max_epochs": 2, "schedule": {"kind": "constant", "warmup_steps": 0}}),
        tmp_path,
        run="b-1",
    )
    assert longer.resumed_from is not None
    assert longer.position.step == 2 * short.position.step
    for key, value in straight.model.state_dict().items():
        assert torch.equal(longer.model.state_dict()[key], value), key


def test_a_checkpoint_carries_the_points_of_every_step_before_it(tmp_path: Path) -> None:
    spec = case_spec(train={"max_epochs": 1}, checkpoint={"every_n_steps": 5, "num_to_keep": 99})
    attempt = case_attempt(spec, tmp_path)
    attempt.window.restart_clock = lambda: None  # type: ignore[method-assign]
    train(attempt)
    for manifest in attempt.store.manifests():
        points = attempt.store.load(manifest)["points"]
        assert {step for key, _, step, _ in points if key == "train/loss"} >= set(range(1, manifest.step + 1))


def test_a_diverged_run_ends_and_says_where(tmp_path: Path) -> None:
    spec = case_spec(
        train={"optimizer": {"kind": "sgd", "lr": 1e30}, "schedule": {"kind": "constant", "warmup_steps": 0}}
    )
    with pytest.raises(Diverged, match=r"became (nan|inf) at step \d+.*train\.optimizer\.lr"):
        train(case_attempt(spec, tmp_path))
