"""How much memory a training step takes, estimated from one small step on the CPU. Imports: torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from orchestrator.engine.optim.ema import averaged_tensors
from orchestrator.engine.seed import seed_everything

if TYPE_CHECKING:
    from orchestrator.engine.recipe import Recipe
    from orchestrator.spec.optim import Optimizer


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one worker. Not counted: the framework itself, and fragmentation."""

    num_parameters: int
    num_trained: int
    weights_bytes: int
    gradients_bytes: int
    optimizer_bytes: int
    activations_bytes: int
    """What the backward pass needs of one microbatch."""
    ema_bytes: int = 0
    """Averaged weights."""

    @property
    def total_bytes(self) -> int:
        fixed = self.weights_bytes + self.gradients_bytes + self.optimizer_bytes + self.ema_bytes
        return fixed + self.activations_bytes


def num_optimizer_states(section: Optimizer) -> int:
    """Tensors of a parameter's size that an optimizer keeps for each parameter."""
    if section.kind in ("adam", "adamw"):
        return 2  # averages of the gradient and of its square
    if section.kind == "rmsprop":
        return 1 + bool(section.momentum) + section.centered
    if section.kind == "sgd":
        return int(bool(section.momentum))
    return 1  # adagrad: the sum of squares


def estimate_memory(recipe: Recipe, microbatch_size: int) -> MemoryEstimate:
    """Build the model and run one forward pass on two samples; what it saves for the backward pass is
    counted and scaled to the microbatch. Raises what the model raises."""
    seed_everything(recipe.seed)
    model = recipe.build()
    parameters = list(model.parameters())
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    weights = _bytes(parameters) + _bytes(model.buffers())
    states = num_optimizer_states(recipe.train.optimizer)
    num_samples = min(2, recipe.train_part.num_rows)
    saved = _saved_bytes(recipe, model, num_samples)
    return MemoryEstimate(
        num_parameters=sum(parameter.numel() for parameter in parameters),
        num_trained=sum(parameter.numel() for parameter in trained),
        weights_bytes=weights,
        gradients_bytes=_bytes(trained),
        optimizer_bytes=states * _bytes(trained),
        activations_bytes=saved * microbatch_size // num_samples,
        ema_bytes=_bytes(averaged_tensors(model).values()) if recipe.train.ema else 0,
    )


def _saved_bytes(recipe: Recipe, model: torch.nn.Module, num_samples: int) -> int:
    """Bytes of the tensors that autograd keeps, each once, without the model's own."""
    owned = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in owned:
            # By the tensor, not its storage: a target may be a view of the whole mapped column.
            size = tensor.numel() * tensor.element_size()
            kept[tensor.data_ptr()] = max(size, kept.get(tensor.data_ptr(), 0))
        return tensor

    batch = recipe.train_part.gather(np.arange(num_samples))
    features = recipe.pipeline.transform(batch.features)
    targets = recipe.pipeline.transform_targets(batch.targets)
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = recipe.objective.shape_outputs(model(features))
        recipe.objective.losses(outputs, targets).sum()
    return sum(kept.values())


def _bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
