"""Losses per sample, as sums over what counts in the sample: their formulas, and the weights of classes.

All take logits as the network gives them. Imports: torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

IGNORED = -100
"""A target of a language model that counts nothing: behind it stands padding."""

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(outputs, targets) → (n,)"""

WeightFunction = Callable[[torch.Tensor], torch.Tensor]
"""targets → (n,)"""

FITTING_TASKS: dict[str, tuple[str, ...]] = {
    "cross_entropy": ("multiclass", "language_modeling"),
    "focal": ("multiclass", "binary", "multilabel"),
    "bce": ("binary", "multilabel"),
    "mse": ("regression",),
    "l1": ("regression",),
    "huber": ("regression",),
}
MIXABLE = ("cross_entropy", "bce")
"""Losses of classes that are linear in the targets, and so take mixed ones."""
SETTINGS: dict[str, tuple[str, ...]] = {
    "cross_entropy": ("label_smoothing", "class_weights"),
    "focal": ("class_weights", "gamma"),
    "bce": ("class_weights",),
    "huber": ("delta",),
}
"""The settings of `train.loss` that a loss uses; the others use none."""


class ClassWeights:
    """A weight per class, kept on every device that asks for it (a copy per step would wait for the GPU)."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = tuple(values)
        self.on = functools.cache(lambda device: torch.tensor(self.values, device=device))


def regression_loss(name: str, delta: float) -> LossFunction:
    """Squared error, absolute error, or Huber's, (n,)."""
    if name == "mse":
        return functools.partial(F.mse_loss, reduction="none")
    if name == "l1":
        return functools.partial(F.l1_loss, reduction="none")
    return functools.partial(F.huber_loss, reduction="none", delta=delta)


def cross_entropy(label_smoothing: float, weights: ClassWeights | None) -> LossFunction:
    """`w[y] · −log p[y]`, with the smoothed labels of Szegedy et al. 2016 (arXiv:1512.00567).

    Outputs (n, classes), or (n, length, classes) for tokens, whose losses are summed over the length. Targets
    of mixed samples are shares of the classes, (n, classes): the loss is the mix of the losses.
    """

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        if targets.is_floating_point():
            return F.cross_entropy(
                outputs,
                targets.to(outputs.dtype),
                weight=weights.on(outputs.device) if weights else None,
                label_smoothing=label_smoothing,
                reduction="none",
            )
        losses = F.cross_entropy(
            outputs.flatten(0, -2),
            targets.flatten(),
            weight=weights.on(outputs.device) if weights else None,
            ignore_index=IGNORED,
            label_smoothing=label_smoothing,
            reduction="none",
        )
        return losses.view_as(targets).sum(1) if targets.ndim == 2 else losses

    return loss


def binary_cross_entropy(weights: ClassWeights | None) -> LossFunction:
    """`−(w · y · log p + (1 − y) · log(1 − p))`: the weights are torch's `pos_weight`.

    Outputs (n,), or (n, labels), over which the mean is taken.
    """

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return _mean_over_labels(
            F.binary_cross_entropy_with_logits(
                outputs,
                targets.to(outputs.dtype),
                pos_weight=weights.on(outputs.device) if weights else None,
                reduction="none",
            )
        )

    return loss


def softmax_focal(gamma: float, weights: ClassWeights | None) -> LossFunction:
    """`w[y] · (1 − p[y])^γ · −log p[y]` (Lin et al. 2017, arXiv:1708.02002); outputs (n, classes)."""

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        losses = _played_down(F.cross_entropy(outputs, targets, reduction="none"), gamma)
        return losses * weights.on(outputs.device)[targets] if weights else losses

    return loss


def sigmoid_focal(gamma: float, weights: ClassWeights | None) -> LossFunction:
    """`α · (1 − p_t)^γ · −log p_t`, where p_t is the probability of the true answer (Lin et al. 2017).

    α is the weight for positive answers and 1 for negative ones: the paper's α / (1 − α). Outputs (n,), or
    (n, labels), over which the mean is taken.
    """

    def loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        truth = targets.to(outputs.dtype)
        losses = _played_down(F.binary_cross_entropy_with_logits(outputs, truth, reduction="none"), gamma)
        if weights:
            losses = losses * torch.where(truth > 0.5, weights.on(outputs.device), 1.0)
        return _mean_over_labels(losses)

    return loss


def class_weight_sums(weights: ClassWeights) -> WeightFunction:
    """What torch divides a weighted cross entropy by: the weights of the true classes, per sample, (n,); of a mixed
    sample, with targets (n, classes), the mix of their weights."""

    def sums(targets: torch.Tensor) -> torch.Tensor:
        values = weights.on(targets.device)
        if targets.is_floating_point():
            return targets @ values.to(targets.dtype)
        if targets.ndim == 1:
            return values[targets]
        return torch.where(targets == IGNORED, 0.0, values[targets.clamp_min(0)]).sum(1)

    return sums


def token_counts(targets: torch.Tensor) -> torch.Tensor:
    """Tokens that count in each sample, float (n,), of targets (n, length)."""
    return (targets != IGNORED).sum(1).float()


def _played_down(negative_log: torch.Tensor, gamma: float) -> torch.Tensor:
    """`(1 − p)^γ · −log p`, from −log p."""
    # Clamped, since with γ below 1 the slope at p = 1 is infinite, and infinity times 0 no number.
    wrong = (-torch.expm1(-negative_log)).clamp_min(torch.finfo(negative_log.dtype).tiny)
    return wrong**gamma * negative_log


def _mean_over_labels(losses: torch.Tensor) -> torch.Tensor:
    return losses.mean(1) if losses.ndim == 2 else losses
