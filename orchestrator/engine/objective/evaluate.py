"""Evaluation of one part of the data, sharded over the ranks without padding. Imports: torch."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from orchestrator.data.features.pipeline import Pipeline
from orchestrator.data.prepared.feed import Wanted, feed
from orchestrator.data.prepared.order import SequentialOrder, num_batches, rank_slice
from orchestrator.data.prepared.part import Part
from orchestrator.engine import collectives
from orchestrator.engine.device.precision import Precision
from orchestrator.engine.objective.metrics import MetricSet
from orchestrator.engine.objective.objective import Objective
from orchestrator.engine.recipe import Placement

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
    placement: Placement,
    batch_size: int,
    detailed: bool = False,
    precision: Precision | None = None,
    on_batch: Callable[[], None] = lambda: None,
) -> Evaluation:
    """Evaluate in eval mode; collective. `batch_size` is per rank. The model is left in train mode.

    The loss is weighted as in training: (sum of losses) / (sum of weights) over all ranks. All ranks call the
    model equally often, as a sharded model needs it: a rank without rows left takes part with one row that
    counts nothing. `detailed` adds what pictures show: the confusion matrix of classes, or the predictions of
    a regression. `precision` is that of the forward pass, by default fp32. `on_batch` is called with each batch.
    """
    num_rows, num_ranks = part.num_rows, collectives.world_size()
    metrics = MetricSet(
        objective.task,
        metric_names,
        num_outputs,
        device=placement.device,
        confusion=detailed,
        num_samples=num_rows,
    )
    pairs: list[torch.Tensor] | None = [] if detailed and objective.task == "regression" else None
    every = max(1, -(-num_rows // _MOST_PAIRS))
    mine = rank_slice(num_rows, collectives.rank(), num_ranks)
    sums = torch.zeros(2, dtype=torch.float64, device=placement.device)  # losses, weights
    order = SequentialOrder(mine.start, mine.stop, batch_size, [shard.rows for shard in part.shards])

    def wanted(k: int) -> Wanted:
        rows = order.batch(k)
        return Wanted(rows, [rows if len(rows) else np.zeros(1, dtype=np.int64)])

    model.eval()
    with feed(
        part,
        wanted,
        0,
        num_batches(-(-num_rows // num_ranks), batch_size),
        rows_per_item=min(batch_size, num_rows),
        order=order,
        pin=placement.device.type == "cuda",
    ) as items:
        for item in items:
            on_batch()
            (batch,), rows = item.batches, item.wanted.rows
            inputs = placement.lay_out(pipeline.transform(placement.put(batch.features)))
            with precision.autocast() if precision else contextlib.nullcontext():
                outputs = objective.shape_outputs(model(inputs))
            if not len(rows):
                continue
            if outputs.dtype != torch.float64:
                outputs = outputs.float()
            targets = placement.put(batch.targets)
            learned = pipeline.transform_targets(targets)
            weights = objective.weights(learned)
            sums[0] += objective.losses(outputs, learned).double().sum()
            sums[1] += len(rows) if weights is None else weights.double().sum()
            predicted = pipeline.inverse_targets(outputs)
            metrics.update(predicted, targets)
            if pairs is not None:
                chosen = slice(-int(rows[0]) % every, None, every)  # the same rows for any number of ranks
                pairs.append(torch.stack([targets[chosen].double(), predicted[chosen].double()]).cpu())
    model.train()
    loss_sum, weight_sum = collectives.sum_over_ranks(sums).tolist()
    return Evaluation(
        num_samples=num_rows,
        loss=loss_sum / weight_sum if weight_sum else math.nan,
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
