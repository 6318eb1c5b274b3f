"""Evaluation of one part of the data, sharded over the ranks without padding. Imports: torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from orchestrator.data.order import rank_slice
from orchestrator.data.pipeline import Pipeline
from orchestrator.data.prepared import Part
from orchestrator.engine import collectives
from orchestrator.engine.metrics import MetricSet
from orchestrator.engine.objective import Objective

_MOST_PAIRS = 2000


@dataclass(frozen=True)
class Evaluation:
    """Figures over all samples of a part. Regression figures are in the target's own unit, but for the loss,
    which is the one trained on."""

    num_samples: int
    loss: float
    metrics: dict[str, float]
    confusion_matrix: list[list[int]] | None = None
    predictions: Mapping[str, list[float]] | None = None
    """`actual` and `predicted` values of a regression, of evenly spaced rows."""

    def named(self, part: str) -> dict[str, float]:
        """As metric keys: `val/loss`, `val/accuracy`, …"""
        return {f"{part}/loss": self.loss} | {f"{part}/{name}": value for name, value in self.metrics.items()}


@torch.no_grad()
def evaluate(
    model: torch.nn.Module,
    part: Part,
    pipeline: Pipeline,
    objective: Objective,
    metric_names: Sequence[str],
    *,
    num_outputs: int,
    device: torch.device,
    batch_size: int,
    detailed: bool = False,
) -> Evaluation:
    """Evaluate in eval mode; collective. `batch_size` is per rank. The model is left in train mode.

    `detailed` adds what pictures show: the confusion matrix of classes, or the predictions of a regression.
    """
    metrics = MetricSet(objective.task, metric_names, num_outputs, device=device, confusion=detailed)
    pairs: list[torch.Tensor] | None = [] if detailed and objective.task == "regression" else None
    every = max(1, -(-part.num_rows // _MOST_PAIRS))
    mine = rank_slice(part.num_rows, collectives.rank(), collectives.world_size())
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    model.eval()
    for start in range(mine.start, mine.stop, batch_size):
        batch = part.gather(np.arange(start, min(start + batch_size, mine.stop)))
        targets = batch.targets.to(device)
        outputs = objective.shape_outputs(model(pipeline.transform(batch.features.to(device))))
        loss_sum += objective.losses(outputs, pipeline.transform_targets(targets)).double().sum()
        predicted = pipeline.inverse_targets(outputs)
        metrics.update(predicted, targets)
        if pairs is not None:
            chosen = slice(-start % every, None, every)  # the same rows for any number of ranks
            pairs.append(torch.stack([targets[chosen].double(), predicted[chosen].double()]).cpu())
    model.train()
    total = float(collectives.sum_over_ranks(loss_sum))
    return Evaluation(
        num_samples=part.num_rows,
        loss=total / max(1, part.num_rows),
        metrics=metrics.compute(),
        confusion_matrix=metrics.confusion_matrix(),
        predictions=None if pairs is None else _gathered(pairs),
    )


def _gathered(pairs: Sequence[torch.Tensor]) -> dict[str, list[float]]:
    """This rank's tensors of (actual, predicted), shape (2, n) each, with those of all ranks; collective."""
    actual, predicted = torch.cat([torch.empty(2, 0), *pairs], dim=1).tolist()
    ranks = collectives.gather_objects((actual, predicted))
    return {
        "actual": [value for values, _ in ranks for value in values],
        "predicted": [value for _, values in ranks for value in values],
    }
