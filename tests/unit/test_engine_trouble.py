"""Bad numbers are named: step, samples, layer; slow ranks and dead parameters too."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from orchestrator.data.prepared.order import epoch_permutation
from orchestrator.engine.link import WorkerLink
from orchestrator.engine.loop import train
from orchestrator.engine.trouble import StragglerWatch, dead_parameters, guilty_layer
from orchestrator.errors import Diverged
from orchestrator.records import Point
from tests.unit.engine_case import case_attempt, case_spec

NETS = '''
import torch
from torch import nn

class Breaks(nn.Module):
    """Gives an infinite hidden value in the training pass with the number `at`."""

    def __init__(self, input_shape, num_outputs, at):
        super().__init__()
        self.first, self.second = nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), Boom(at)
        self.third = nn.Linear(8, num_outputs)

    def forward(self, images):
        return self.third(self.second(self.first(images)))

class Boom(nn.Module):
    def __init__(self, at):
        super().__init__()
        self.at, self.passes = at, 0

    def forward(self, hidden):
        self.passes += self.training and torch.is_grad_enabled()
        return hidden * float("inf") if self.passes == self.at else hidden
'''


class Keeping(WorkerLink):
    def __init__(self) -> None:
        super().__init__()
        self.points: list[Point] = []
        self.notices: list[str] = []

    def log_points(self, points: list[Point]) -> None:
        self.points += points

    def notice(self, text: str) -> None:
        self.notices.append(text)


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trouble_nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("trouble_nets", None)


def broken_spec(at: int, **train_section: object) -> object:
    model = {"name": "trouble_nets:Breaks", "args": {"at": at + 1}}  # the probe is the first pass
    return case_spec(model=model, train={"optimizer": {"kind": "sgd", "lr": 0.01}, **train_section})


@pytest.mark.usefixtures("nets")
def test_an_infinite_loss_names_step_layer_and_samples_and_keeps_the_batch(tmp_path: Path) -> None:
    attempt = case_attempt(broken_spec(at=4), tmp_path)  # type: ignore[arg-type]
    evidence = attempt.store.folder / "evidence"
    attempt.evidence = evidence
    with pytest.raises(Diverged) as caught:
        train(attempt)
    order = epoch_permutation(attempt.recipe.train_part.num_rows, 3, 0)
    rows = order[150:200]
    assert "at step 4" in caught.value.reason
    assert "layer 'second'" in caught.value.reason
    assert f"samples {rows[0]}, {rows[1]}" in caught.value.reason
    assert "train.nonfinite: skip" in caught.value.mend
    kept = torch.load(io.BytesIO(evidence.read_bytes("step-000000004-rank-0.pt")), weights_only=True)
    assert np.array_equal(kept["rows"].numpy(), rows)
    expected = attempt.recipe.pipeline.transform(attempt.recipe.train_part.gather(rows).features)
    assert torch.equal(kept["inputs"], expected)
    assert re.search(r"kept in .*step-000000004-rank-0\.pt", caught.value.reason)


@pytest.mark.usefixtures("nets")
def test_such_a_step_is_left_out_by_choice(tmp_path: Path) -> None:
    link = Keeping()
    attempt = case_attempt(broken_spec(at=4, nonfinite="skip"), tmp_path, link)  # type: ignore[arg-type]
    outcome = train(attempt)
    losses = {point.step: point.value for point in link.points if point.key == "train/loss"}
    assert outcome.status == "completed"
    assert attempt.position.skipped == 1
    assert [step for step, loss in losses.items() if not np.isfinite(loss)] == [4]
    assert all(bool(tensor.isfinite().all()) for tensor in attempt.model.parameters())
    assert any("step 4 was left out" in text for text in link.notices)


def test_weights_that_are_bad_already_are_told_from_a_bad_layer() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 1))
    assert guilty_layer(model, torch.zeros(4, 2)) == "in the loss itself, not in the outputs"
    assert "layer '0'" in guilty_layer(model, torch.full((4, 2), torch.inf))
    with torch.no_grad():
        model[2].bias.fill_(torch.nan)
    assert "weights 2.bias" in guilty_layer(model, torch.zeros(4, 2))


def test_parameters_that_no_gradient_reaches() -> None:
    model = torch.nn.ModuleDict({"used": torch.nn.Linear(2, 1), "idle": torch.nn.Linear(2, 1)})
    model["used"](torch.ones(1, 2)).sum().backward()
    assert dead_parameters(model) == ["idle.weight", "idle.bias"]
    model["idle"].requires_grad_(False)
    assert dead_parameters(model) == []


def test_a_rank_is_a_straggler_only_when_it_stays_behind() -> None:
    watch = StragglerWatch(ratio=1.5, windows=3)
    assert [watch.update(seconds) for seconds in ([1, 1, 2], [1, 1, 2], [1, 1, 1.1], [1, 1, 2])] == [None] * 4
    assert watch.update([1, 1.2, 2]) is None
    assert watch.update([1, 1, 2]) == (2, 2.0)
    assert watch.update([1, 1, 2]) is None, "told once"
    assert StragglerWatch(windows=1).update([3.0]) is None
    assert StragglerWatch(windows=1).update([1.0, 2.0]) == (1, 2.0)
