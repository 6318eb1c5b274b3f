"""Metrics of an evaluation, by torchmetrics, right over any number of ranks.

Each rank updates with its own samples; `compute` merges the states over the ranks. Nothing is padded, so no
sample counts twice. Imports: torch, torchmetrics (which takes a second to import, hence inside functions).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from orchestrator.engine import collectives
from orchestrator.engine.objective.losses import IGNORED
from orchestrator.engine.objective.metric_classes import (
    auroc_class,
    function_metric_class,
    merge_over_ranks,
    sums_metric_class,
)
from orchestrator.errors import UsageError, UserCodeError
from orchestrator.imports import load_object
from orchestrator.vision import prepare_torchvision

_CLASSIFICATION = ("accuracy", "precision", "recall", "f1", "auroc")
_REGRESSION = ("mse", "rmse", "mae", "r2")
_TOKENS = ("perplexity", "bits_per_token", "accuracy")
FITTING = {
    "multiclass": _CLASSIFICATION,
    "binary": _CLASSIFICATION,
    "multilabel": _CLASSIFICATION,
    "regression": _REGRESSION,
    "language_modeling": _TOKENS,
}
DEFAULTS = FITTING | {"multiclass": _CLASSIFICATION[:-1]}

MAX_EXACT_SCORES = 2**24
"""Up to so many scores (samples × outputs) AUROC keeps all of them, 64 MiB; beyond, it counts them in bins."""
_NUM_BINS = 200


def check_metrics(task: str, names: Sequence[str]) -> None:
    """Raise UsageError for metrics that do not fit the task, that share a name, or that are user code which
    is not there or cannot be called."""
    fitting = FITTING[task]
    shown = [_shown(name) for name in names]
    for name in names:
        if ":" in name:
            _user_metric(name, task)
        elif name not in fitting:
            raise UsageError(
                f"train.metrics: '{name}' does not fit the task '{task}'",
                f"choose among: {', '.join(fitting)}",
            )
        if shown.count(_shown(name)) > 1:
            raise UsageError(f"train.metrics: two metrics are named '{_shown(name)}'", "rename or drop one")


class MetricSet:
    """The metrics of one evaluation. Precision, recall, F1 and AUROC are macro averages over the classes or
    labels; accuracy is the share of right answers (multilabel: of all labels of all samples).

    `update` takes logits and targets as the objective shapes them; a regression's in the target's unit.
    `num_samples`: those of all ranks, from which AUROC decides whether to keep all scores.
    """

    def __init__(
        self,
        task: str,
        names: Sequence[str],
        num_outputs: int,
        *,
        device: torch.device | None = None,
        confusion: bool = False,
        num_samples: int | None = None,
    ) -> None:
        prepare_torchvision()
        exact = (num_samples or 0) * num_outputs <= MAX_EXACT_SCORES
        self._user = {_shown(name) for name in names if ":" in name}
        self._metrics = {
            _shown(name): _user_metric(name, task)
            if ":" in name
            else _built_in(task, name, num_outputs, exact)
            for name in names
        }
        self._views = {_shown(name): _view(task, name, self._metrics[_shown(name)]) for name in names}
        self._confusion = None
        if confusion and task in ("multiclass", "binary"):
            self._confusion = _confusion_matrix(task, num_outputs)
        for metric in [*self._metrics.values(), *([self._confusion] if self._confusion else [])]:
            metric.to(device or torch.device("cpu"))
            metric.dist_sync_fn = merge_over_ranks
            metric.distributed_available_fn = lambda: collectives.world_size() > 1

    def update(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Take one batch; one without samples is left out.

        User functions get logits. User classes get what ours get: probabilities of classes and labels, values,
        or a language model's logits.
        """
        if not len(targets):
            return
        outputs = outputs.detach()
        if outputs.dtype != torch.float64:
            outputs = outputs.float()
        if targets.ndim == 2 and targets.is_floating_point():  # labels
            targets = targets.long()
        seen = {view: view(outputs, targets) for view in self._views.values()}  # each computed once
        for name, metric in self._metrics.items():
            metric.update(seen[self._views[name]], targets)
        if self._confusion is not None:
            self._confusion.update(outputs.argmax(1) if outputs.ndim == 2 else outputs.sigmoid(), targets)

    def compute(self) -> dict[str, float]:
        """Values over the samples of all ranks; collective. NaN where a metric is undefined.

        Raises UserCodeError where a user's metric raises or does not give one number.
        """
        with warnings.catch_warnings():
            # A rank without samples, and classes without samples, are ordinary in small parts.
            warnings.simplefilter("ignore", UserWarning)
            return {
                name: _user_value(name, metric) if name in self._user else float(metric.compute())
                for name, metric in self._metrics.items()
            }

    def confusion_matrix(self) -> list[list[int]] | None:
        """Counts by actual (rows) and predicted class; collective."""
        if self._confusion is None:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            matrix: list[list[int]] = self._confusion.compute().tolist()
        return matrix


def _shown(name: str) -> str:
    return name.rpartition(":")[2]


def _view(task: str, name: str, metric: Any) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """What a metric is shown of logits and targets."""
    if isinstance(metric, function_metric_class()):
        return _logits
    if task == "language_modeling":
        return {"accuracy": _predicted_tokens, "perplexity": _token_sums, "bits_per_token": _token_sums}.get(
            name, _logits
        )
    return {"multiclass": _class_shares, "regression": _logits}.get(task, _probabilities)


def _logits(outputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return outputs


def _class_shares(outputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return outputs.softmax(1)


def _probabilities(outputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return outputs.sigmoid()


def _predicted_tokens(outputs: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return outputs.argmax(-1)


def _token_sums(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(sum of −log p of the tokens that count, their number)."""
    total = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")
    return torch.stack([total.double(), (targets != IGNORED).sum().double()])


def _built_in(task: str, name: str, num_outputs: int, exact: bool) -> Any:
    import torchmetrics.classification as tmc
    import torchmetrics.regression as tmr

    if task == "regression":
        if name == "r2":
            return sums_metric_class()(4, _r2_sums, _r2)
        kinds: dict[str, Callable[..., Any]] = {
            "mse": tmr.MeanSquaredError,
            "rmse": lambda: tmr.MeanSquaredError(squared=False),
            "mae": tmr.MeanAbsoluteError,
        }
        return kinds[name]().set_dtype(torch.float64)  # sums over many samples
    if task == "language_modeling":
        if name == "accuracy":
            return tmc.MulticlassAccuracy(
                num_outputs, average="micro", ignore_index=IGNORED, validate_args=False
            )
        finish = _perplexity if name == "perplexity" else _bits_per_token
        return sums_metric_class()(2, lambda sums, _: sums, finish)
    settings: dict[str, Any] = {"validate_args": False}  # the targets were checked before the first step
    if task != "binary":
        settings["num_classes" if task == "multiclass" else "num_labels"] = num_outputs
        settings["average"] = {"accuracy": "micro", "auroc": "none"}.get(name, "macro")
    if name == "auroc":
        return auroc_class(task)(thresholds=None if exact else _thresholds(), **settings)
    kind = {"accuracy": "Accuracy", "precision": "Precision", "recall": "Recall", "f1": "F1Score"}[name]
    return getattr(tmc, task.capitalize() + kind)(**settings)


def _thresholds() -> torch.Tensor:
    """Between the bins of scores, (bins + 1,): evenly spaced logits, since scores of a trained model crowd at
    0 and 1."""
    inner = torch.linspace(-12, 12, _NUM_BINS - 1).sigmoid()
    return torch.cat([torch.zeros(1), inner, torch.ones(1)])


def _confusion_matrix(task: str, num_outputs: int) -> Any:
    import torchmetrics.classification as tmc

    if task == "binary":
        return tmc.BinaryConfusionMatrix(validate_args=False)
    return tmc.MulticlassConfusionMatrix(num_outputs, validate_args=False)


def _perplexity(sums: Sequence[float]) -> float:
    try:
        return math.exp(_nats(sums))
    except OverflowError:
        return math.inf


def _bits_per_token(sums: Sequence[float]) -> float:
    return _nats(sums) / math.log(2)


def _nats(sums: Sequence[float]) -> float:
    return sums[0] / sums[1] if sums[1] else math.nan


def _r2_sums(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(n, Σ y, Σ y², Σ (y − ŷ)²)."""
    actual, predicted = targets.double(), outputs.double()
    number = actual.new_tensor(len(actual))
    return torch.stack([number, actual.sum(), actual.square().sum(), (actual - predicted).square().sum()])


def _r2(sums: Sequence[float]) -> float:
    """1 − residual / total sum of squares; NaN where all values are the same.

    Unlike torchmetrics' own, whose absolute tolerance takes targets of a small unit for constant.
    """
    number, total, squares, residual = sums
    spread = squares - total**2 / number if number else 0.0
    rounding = 1e-12 * squares
    return 1 - residual / spread if spread > rounding else math.nan


def _user_metric(path: str, task: str) -> Any:
    prepare_torchvision()
    import torchmetrics

    target = load_object(path)
    if isinstance(target, type) and issubclass(target, torchmetrics.Metric):
        return target()
    if isinstance(target, torchmetrics.Metric):
        fresh = target.clone()
        fresh.reset()
        return fresh
    if not callable(target):
        raise UsageError(f"train.metrics: '{path}' is a {type(target).__name__}, which cannot be called")
    if task == "language_modeling":
        raise UsageError(
            f"train.metrics: '{path}' is a function, which would need the scores of all tokens at once",
            "name a class derived from torchmetrics.Metric, which takes them batch by batch",
        )
    return function_metric_class()(path, target)


def _user_value(name: str, metric: Any) -> float:
    try:
        return float(metric.compute())
    except UserCodeError:
        raise
    except Exception as error:
        raise UserCodeError(f"train.metrics: '{name}' raised {type(error).__name__}: {error}") from error
