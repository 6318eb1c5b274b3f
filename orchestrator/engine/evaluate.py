"""Evaluation of one part of the data, sharded over the ranks without padding. Imports: torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from orchestrator.data.order import rank_slice
from orchestrator.data.pipeline import Pipeline
from orchestrator.data.prepared import Part
from orchestrator.engine import collectives
from orchestrator.engine.metrics import MetricSet
from orchestrator.engine.objective import Objective


@dataclass(frozen=True)
class Evaluation:
    """Figures over all samples of a part. Regression figures are in the target's own unit, but for the loss,
    which is the one trained on."""

    num_samples: int
    loss: float
    metrics: dict[str, float]
    confusion_matrix: list[list[int]] | None = None

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
    confusion: bool = False,
) -> Evaluation:
    """Evaluate in eval mode; collective. `batch_size` is per rank. The model is left in train mode."""
    metrics = MetricSet(objective.task, metric_names, num_outputs, device=device, confusion=confusion)
    mine = rank_slice(part.num_rows, collectives.rank(), collectives.world_size())
    loss_sum = torch.zeros((), dtype=torch.float64, device=device)
    model.eval()
    for start in range(mine.start, mine.stop, batch_size):
        batch = part.gather(np.arange(start, min(start + batch_size, mine.stop)))
        targets = batch.targets.to(device)
        outputs = objective.shape_outputs(model(pipeline.transform(batch.features.to(device))))
        loss_sum += objective.losses(outputs, pipeline.transform_targets(targets)).double().sum()
        metrics.update(pipeline.inverse_targets(outputs), targets)
    model.train()
    total = float(collectives.sum_over_ranks(loss_sum))
    return Evaluation(
        num_samples=part.num_rows,
        loss=total / max(1, part.num_rows),
        metrics=metrics.compute(),
        confusion_matrix=metrics.confusion_matrix(),
    )
