"""Metrics of an evaluation, by torchmetrics, right over any number of ranks.

Each rank updates with its own samples; `compute` sums the states over the ranks. Nothing is padded, so no
sample counts twice. Imports: torch, torchmetrics (which takes a second to import, hence inside functions).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from orchestrator.errors import UsageError, UserCodeError
from orchestrator.imports import load_object
from orchestrator.vision import prepare_torchvision

DEFAULTS = {
    "multiclass": ("accuracy", "precision", "recall", "f1"),
    "binary": ("accuracy", "precision", "recall", "f1", "auroc"),
    "regression": ("mse", "rmse", "mae", "r2"),
}
_CLASSIFICATION = ("accuracy", "precision", "recall", "f1", "auroc")
_REGRESSION = ("mse", "rmse", "mae", "r2")


def check_metrics(task: str, names: Sequence[str]) -> None:
    """Raise UsageError for names of ours that do not fit the task."""
    fitting = _REGRESSION if task == "regression" else _CLASSIFICATION
    for name in names:
        if ":" not in name and name not in fitting:
            raise UsageError(
                f"train.metrics: '{name}' does not fit the task '{task}'",
                f"choose among: {', '.join(fitting)}",
            )


class MetricSet:
    """The metrics of one evaluation. Precision, recall and F1 are macro averages over the classes.

    `update` takes logits (n, classes) or (n,) as the objective shapes them, and targets (n,).
    """

    def __init__(
        self,
        task: str,
        names: Sequence[str],
        num_outputs: int,
        *,
        device: torch.device | None = None,
        confusion: bool = False,
    ) -> None:
        prepare_torchvision()
        self._task = task
        self._metrics = {
            name.rpartition(":")[2]: _user_metric(name) if ":" in name else _built_in(task, name, num_outputs)
            for name in names
        }
        self._confusion = _confusion_matrix(task, num_outputs) if confusion and task != "regression" else None
        for metric in self._all():
            metric.to(device or torch.device("cpu"))

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        if self._task == "multiclass":
            scores = outputs.softmax(1)
        else:
            scores = outputs.sigmoid() if self._task == "binary" else outputs
        for metric in self._metrics.values():
            metric.update(outputs if isinstance(metric, _user_wrapper()) else scores, targets)
        if self._confusion is not None:
            self._confusion.update(scores, targets)

    def compute(self) -> dict[str, float]:
        """Values over the samples of all ranks; collective. NaN where a metric is undefined."""
        with warnings.catch_warnings():
            # A rank without samples, and classes without samples, are ordinary in small parts.
            warnings.simplefilter("ignore", UserWarning)
            return {name: float(metric.compute()) for name, metric in self._metrics.items()}

    def confusion_matrix(self) -> list[list[int]] | None:
        """Counts by actual (rows) and predicted class; collective."""
        if self._confusion is None:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            matrix: list[list[int]] = self._confusion.compute().tolist()
        return matrix

    def _all(self) -> list[Any]:
        return [*self._metrics.values(), *([self._confusion] if self._confusion is not None else [])]


def _built_in(task: str, name: str, num_outputs: int) -> Any:
    import torchmetrics.classification as tmc
    import torchmetrics.regression as tmr

    if task == "multiclass":
        kinds: dict[str, Callable[..., Any]] = {
            "accuracy": tmc.MulticlassAccuracy,
            "precision": tmc.MulticlassPrecision,
            "recall": tmc.MulticlassRecall,
            "f1": tmc.MulticlassF1Score,
            "auroc": tmc.MulticlassAUROC,
        }
        average = "micro" if name == "accuracy" else "macro"
        return kinds[name](num_classes=num_outputs, average=average)
    if task == "binary":
        kinds = {
            "accuracy": tmc.BinaryAccuracy,
            "precision": tmc.BinaryPrecision,
            "recall": tmc.BinaryRecall,
            "f1": tmc.BinaryF1Score,
            "auroc": tmc.BinaryAUROC,
        }
        return kinds[name]()
    if name == "rmse":
        return tmr.MeanSquaredError(squared=False)
    return {"mse": tmr.MeanSquaredError, "mae": tmr.MeanAbsoluteError, "r2": tmr.R2Score}[name]()


def _confusion_matrix(task: str, num_outputs: int) -> Any:
    import torchmetrics.classification as tmc

    return tmc.BinaryConfusionMatrix() if task == "binary" else tmc.MulticlassConfusionMatrix(num_outputs)


def _user_metric(path: str) -> Any:
    import torchmetrics

    target = load_object(path)
    if isinstance(target, type) and issubclass(target, torchmetrics.Metric):
        return target()
    if isinstance(target, torchmetrics.Metric):
        return target
    if not callable(target):
        raise UsageError(f"train.metrics: '{path}' is a {type(target).__name__}, which cannot be called")
    return _user_wrapper()(path, target)


_wrapper: type[Any] | None = None


def _user_wrapper() -> type[Any]:
    """A torchmetrics class around a plain function of all outputs and targets; made at first use, since
    torchmetrics is slow to import."""
    global _wrapper
    if _wrapper is not None:
        return _wrapper
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
            self.outputs.append(outputs.detach())
            self.targets.append(targets)

        def compute(self) -> torch.Tensor:
            try:
                value = self._function(dim_zero_cat(self.outputs), dim_zero_cat(self.targets))
                return torch.as_tensor(float(value))
            except Exception as error:
                raise UserCodeError(
                    f"train.metrics: '{self._path}' raised {type(error).__name__}: {error}"
                ) from error

    _wrapper = FunctionMetric
    return _wrapper
