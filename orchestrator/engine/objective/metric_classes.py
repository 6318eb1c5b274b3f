"""Our additions to torchmetrics: metrics out of a few sums, metrics out of a user's function, AUROC where a
class is missing, and the merging of states over ranks.

The classes are made at first use, since torchmetrics is slow to import. Imports: torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch

from orchestrator.engine import collectives
from orchestrator.errors import UserCodeError


def merge_over_ranks(state: torch.Tensor, group: object = None) -> list[torch.Tensor]:
    """Every rank's state, in rank order; torchmetrics' `dist_sync_fn`. Collective.

    A rank without samples has an empty list for a state, of neither the type nor the dimensions that the
    others' have; torchmetrics' own function fails or hangs there.
    """
    del group
    found: list[torch.Tensor] = collectives.gather_objects(state.cpu())
    like = next((one for one in found if one.numel()), found[0])
    return [(one if one.numel() else like[:0]).to(state.device) for one in found]


@functools.cache
def sums_metric_class() -> type[Any]:
    """A metric that is a function of a few sums over the samples."""
    import torchmetrics

    class SumsMetric(torchmetrics.Metric):  # type: ignore[misc]
        """`sums(outputs, targets)` gives a batch's, float64 (num_sums,); `finish` the value of their totals."""

        full_state_update = False
        totals: torch.Tensor

        def __init__(
            self,
            num_sums: int,
            sums: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
            finish: Callable[[Sequence[float]], float],
        ) -> None:
            super().__init__()
            self._sums, self._finish = sums, finish
            self.add_state("totals", default=torch.zeros(num_sums, dtype=torch.float64), dist_reduce_fx="sum")

        def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
            self.totals = self.totals + self._sums(outputs, targets)

        def compute(self) -> torch.Tensor:
            return torch.tensor(self._finish(self.totals.tolist()), dtype=torch.float64)

    return SumsMetric


@functools.cache
def auroc_class(task: str) -> type[Any]:
    """AUROC as the mean over the classes (labels) that have both positive and negative samples.

    torchmetrics' own counts the others as 0, which lowers the mean in a small part; here they are left out,
    and without any the value is NaN.
    """
    import torchmetrics.classification as tmc
    from torchmetrics.utilities import dim_zero_cat

    base: Any = getattr(tmc, f"{task.capitalize()}AUROC")

    class Auroc(base):  # type: ignore[misc]
        def compute(self) -> torch.Tensor:
            values = super().compute()  # one per class, or the one of a binary task
            if self.thresholds is None:
                targets = dim_zero_cat(self.target)
                number = torch.tensor(len(targets), device=targets.device)
                positives = (
                    targets.bincount(minlength=self.num_classes) if task == "multiclass" else targets.sum(0)
                )
            else:
                counts = self.confmat[0]  # (…, target, prediction)
                number, positives = counts.sum((-2, -1)), counts[..., 1, :].sum(-1)
            result: torch.Tensor = values[(positives > 0) & (positives < number)].mean()
            return result

    return Auroc


@functools.cache
def function_metric_class() -> type[Any]:
    """A metric around a plain function of all outputs and targets, which it keeps."""
    import torchmetrics
    from torchmetrics.utilities import dim_zero_cat

    class FunctionMetric(torchmetrics.Metric):  # type: ignore[misc]
        full_state_update = False

        def __init__(self, path: str, function: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
            super().__init__()
            self._path, self._function = path, function
            self.add_state("outputs", default=[], dist_reduce_fx="cat")
            self.add_state("targets", default=[], dist_reduce_fx="cat")

        def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
            self.outputs.append(outputs)
            self.targets.append(targets)

        def compute(self) -> torch.Tensor:
            try:
                value = self._function(dim_zero_cat(self.outputs), dim_zero_cat(self.targets))
                return torch.as_tensor(float(value))
            except Exception as error:
                raise UserCodeError(
                    f"train.metrics: '{self._path}' raised {type(error).__name__}: {error}"
                ) from error

    return FunctionMetric
