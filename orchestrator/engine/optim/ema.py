"""An exponential moving average of the weights, for evaluation and export. Imports: torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from orchestrator.engine.optim.optimizer import clean_name
from orchestrator.engine.parallel.gradients import local
from orchestrator.engine.parallel.wrap import sharded
from orchestrator.errors import CheckpointError

_STATISTICS = ("running_mean", "running_var")


class Ema:
    """Averages of what `averaged_tensors` names (Polyak and Juditsky 1992), updated once after each step.

    Made once the model is on its device and sharded. Sharded parameters (FSDP2) have sharded averages; every
    rank updates its own.
    """

    def __init__(self, model: torch.nn.Module, decay: float) -> None:
        self._decay = decay
        self._num_updates = 0
        self._sharded = [module for module in model.modules() if sharded(module)]
        self._weights = averaged_tensors(model)
        self._averages = {name: tensor.detach().clone() for name, tensor in self._weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """`average += (1 − d) · (weights − average)`, d = min(decay, (1 + n) / (10 + n)) after n updates."""
        decay = min(self._decay, (1 + self._num_updates) / (10 + self._num_updates))
        self._num_updates += 1
        averages = [local(one) for one in self._averages.values()]
        torch._foreach_lerp_(averages, [local(one) for one in self._weights.values()], 1 - decay)

    @contextlib.contextmanager
    def swap(self) -> Iterator[None]:
        """Within it the model has the averaged weights: for an evaluation or an export. Not for saving a
        checkpoint, nor for training. Contents are exchanged, so that whatever holds the tensors sees it."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def reset(self) -> None:
        """Begin anew from the model's weights, as after loading weights that came without averages."""
        self._num_updates = 0
        for name, weight in self._weights.items():
            self._averages[name].copy_(weight)

    def state_dict(self) -> dict[str, Any]:
        """The averages by parameter name (not copied), and the number of updates."""
        return {"num_updates": self._num_updates, "averages": dict(self._averages)}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` gave. Raises CheckpointError where it is of another model."""
        averages = state["averages"]
        if averages.keys() != self._averages.keys():
            odd = sorted(averages.keys() ^ self._averages.keys())
            raise CheckpointError(
                f"the averaged weights of the checkpoint do not fit the model: {', '.join(odd[:5])}",
                "train the model that the checkpoint was written for, or start again with --fresh",
            )
        self._num_updates = state["num_updates"]
        for name, average in self._averages.items():
            average.copy_(averages[name])

    @torch.no_grad()
    def _exchange(self) -> None:
        for (
            module
        ) in self._sharded:  # an evaluation leaves gathered weights behind, which would go on being used
            module.reshard()
        for name, weight in self._weights.items():  # one by one: no second copy of the whole model
            mine, theirs = local(self._averages[name]), local(weight)
            kept = theirs.clone()
            theirs.copy_(mine)
            mine.copy_(kept)


def averaged_tensors(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """By name: the trained parameters, and the running statistics of normalisation layers, which are averaged
    too so that they fit the averaged weights.

    Frozen parameters and other buffers are not among them: a mask or a count has no average.
    """
    found: dict[str, torch.Tensor] = {
        clean_name(name): parameter
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.is_floating_point()
    }
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2] in _STATISTICS and buffer.is_floating_point():
            found[clean_name(name)] = buffer
    return found
