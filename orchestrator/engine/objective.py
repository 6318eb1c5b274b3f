"""What a task asks of the outputs: per-sample losses, and what the outputs mean.

The loss of a step is the sum of per-sample losses over the *global* batch divided by its number of samples;
the loop does the dividing, so an objective only gives one loss per sample. Imports: torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from orchestrator.errors import UsageError, UserCodeError
from orchestrator.imports import load_object

if TYPE_CHECKING:
    from orchestrator.spec.train import Loss

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

_BY_TASK = {"multiclass": "cross_entropy", "binary": "bce", "regression": "mse"}
_FITS = {
    "cross_entropy": {"multiclass"},
    "bce": {"binary"},
    "mse": {"regression"},
    "l1": {"regression"},
    "huber": {"regression"},
}


def _cross_entropy(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs, targets, reduction="none")


def _bce(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(outputs, targets.to(outputs.dtype), reduction="none")


def _mse(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.mse_loss(outputs, targets, reduction="none")


def _l1(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.l1_loss(outputs, targets, reduction="none")


def _huber(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.huber_loss(outputs, targets, reduction="none")


_LOSSES: dict[str, LossFunction] = {
    "cross_entropy": _cross_entropy,
    "bce": _bce,
    "mse": _mse,
    "l1": _l1,
    "huber": _huber,
}


@dataclass(frozen=True)
class Objective:
    """A task with its loss. Outputs are logits (n, classes), or (n,) for binary and regression."""

    task: str
    loss: LossFunction

    def shape_outputs(self, outputs: torch.Tensor) -> torch.Tensor:
        """(n, 1) → (n,) where the task has one output per sample."""
        return outputs.squeeze(1) if self.task != "multiclass" and outputs.ndim == 2 else outputs

    def losses(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """One loss per sample, (n,). A user's loss that gives a mean counts the same for each sample.

        Raises UserCodeError for a user's loss of another length.
        """
        losses = self.loss(outputs, targets)
        if losses.ndim == 0:
            return losses.expand(len(targets))
        if len(losses) != len(targets):
            raise UserCodeError(
                f"train.loss gave a tensor of shape {tuple(losses.shape)} for {len(targets)} samples",
                "return one loss per sample, or their mean",
            )
        return losses if losses.ndim == 1 else losses.flatten(1).mean(1)

    def check_outputs(self, outputs: torch.Tensor, *, num_samples: int, num_outputs: int) -> None:
        """Raise UsageError where the network's outputs do not fit the task."""
        shape = tuple(outputs.shape)
        wanted = {(num_samples, num_outputs)} | ({(num_samples,)} if num_outputs == 1 else set())
        if shape not in wanted:
            raise UsageError(
                f"the model gives outputs of shape {shape} for {num_samples} samples, but the task "
                f"'{self.task}' needs {sorted(wanted)[-1]}",
                f"make its last layer give {num_outputs} value(s) per sample",
            )


def build_objective(task: str, section: Loss) -> Objective:
    """The objective of a resolved task ('multiclass', 'binary' or 'regression').

    Raises UsageError for a loss that does not fit the task or user code that cannot be called.
    """
    if ":" in section.name:
        return Objective(task, _user_loss(section.name))
    name = _BY_TASK[task] if section.name == "auto" else section.name
    if task not in _FITS[name]:
        fitting = sorted(known for known, tasks in _FITS.items() if task in tasks)
        raise UsageError(
            f"train.loss: '{name}' does not fit the task '{task}'",
            f"write one of: auto, {', '.join(fitting)}",
        )
    return Objective(task, _LOSSES[name])


def _user_loss(path: str) -> LossFunction:
    target = load_object(path)
    if isinstance(target, type) and issubclass(target, torch.nn.Module):
        target = target()
    if not callable(target):
        raise UsageError(f"train.loss: '{path}' is a {type(target).__name__}, which cannot be called")

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        result = target(outputs, targets)
        if not isinstance(result, torch.Tensor):
            raise UserCodeError(f"train.loss: '{path}' returned {type(result).__name__}, not a tensor")
        return result

    return loss
