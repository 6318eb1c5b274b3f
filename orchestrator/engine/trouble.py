"""When numbers go bad: name the step, the samples and the layer, and keep the batch for a replay. Imports: torch.

A bad value spreads to every weight within a step, so what is looked at is the first pass that shows it.
"""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from orchestrator.engine.parallel.gradients import local
from orchestrator.errors import Diverged
from orchestrator.storage import Folder

_log = logging.getLogger(__name__)
_MOST_NAMED = 8


def is_finite(value: torch.Tensor) -> bool:
    """Whether a number on the CPU is finite. Do not ask of a GPU's: it would wait for it."""
    return math.isfinite(value.item())


def diverged(
    model: torch.nn.Module,
    inputs: torch.Tensor,
    targets: torch.Tensor,
    *,
    rows: npt.NDArray[np.int64],
    step: int,
    lr: float,
    loss: float,
    evidence: Folder | None,
    rank: int,
) -> Diverged:
    """The error for a loss that is not finite at this step. Saves the batch, and the weights' names that are bad.

    `rows` are positions in the training part. A rank's own view: others may not have seen it.
    """
    layer = guilty_layer(model, inputs)
    kept = _keep(evidence, step, rank, {"inputs": inputs, "targets": targets, "rows": torch.from_numpy(rows)})
    shown = ", ".join(str(row) for row in rows[:_MOST_NAMED]) + (", …" if len(rows) > _MOST_NAMED else "")
    return Diverged(
        f"the training loss became {loss} at step {step} (learning rate {lr:g}), {layer}; "
        f"samples {shown} of the training part{kept}",
        "lower train.optimizer.lr, add train.schedule.warmup_steps or train.clip_grad_norm, or look for wrong "
        "values in the data; train.nonfinite: skip leaves such steps out",
    )


def guilty_layer(model: torch.nn.Module, inputs: torch.Tensor) -> str:
    """Where the first bad value comes from: weights that are bad already, else the first layer to give one."""
    bad = [name for name, tensor in model.named_parameters() if not bool(tensor.isfinite().all())]
    if bad:
        shown = ", ".join(bad[:3]) + (", …" if len(bad) > 3 else "")
        return f"after gradients that were not finite in the step before (weights {shown})"
    first: list[str] = []
    hooks = []
    for name, module in model.named_modules():
        if next(module.children(), None) is None:
            hooks.append(module.register_forward_hook(_watcher(name, first)))
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return f"first in the output of layer '{first[0]}'" if first else "in the loss itself, not in the outputs"


def dead_parameters(model: torch.nn.Module) -> list[str]:
    """Trained parameters to which the last backward pass brought nothing at all; of a sharded one, to this
    rank's part."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not bool(local(parameter.grad).any()))
    ]


class StragglerWatch:
    """Names a rank that is slower than the others, window after window."""

    def __init__(self, *, ratio: float = 1.5, windows: int = 6) -> None:
        self._ratio = ratio
        self._windows = windows
        self._counts: dict[int, int] = {}

    def update(self, seconds: Sequence[float]) -> tuple[int, float] | None:
        """Take each rank's own seconds (work, not waiting) of a window; (rank, how many times the median) where
        one has now been over the ratio for so many windows in a row. It is told once."""
        median = float(np.median(seconds))
        if len(seconds) < 2 or median <= 0:
            return None
        for rank, own in enumerate(seconds):
            others = float(np.median([*seconds[:rank], *seconds[rank + 1 :]]))
            over = others > 0 and own / others >= self._ratio
            self._counts[rank] = self._counts.get(rank, 0) + 1 if over else 0
            if self._counts[rank] == self._windows:
                return rank, own / others
        return None


def _watcher(name: str, first: list[str]) -> Any:
    def note(module: torch.nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001 - torch's signature
        if not first and isinstance(output, torch.Tensor) and not bool(output.isfinite().all()):
            first.append(name)

    return note


def _keep(evidence: Folder | None, step: int, rank: int, batch: dict[str, torch.Tensor]) -> str:
    if evidence is None:
        return ""
    buffer = io.BytesIO()
    torch.save({name: tensor.detach().cpu().clone() for name, tensor in batch.items()}, buffer)
    name = f"step-{step:09d}-rank-{rank}.pt"
    try:
        evidence.write_bytes(name, buffer.getvalue())
    except OSError as error:
        _log.warning("the batch could not be kept: %s", error)
        return ""
    return f", kept in {(evidence / name).uri}"
